"""Which source files stand behind a verb's results: the one list for the rules and for the keys of what verbs write.

A file brings what it imports from its own package. A test follows all imports of every verb, and finds what is missing.
"""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from r2q.config import method_info, methods_named
from r2q.kept import source_hash

TEXT = ("r2q/files.py", "r2q/tokens.py")
WEIGHTS = ("r2q/quantization/method.py", "r2q/quantization/packing.py")  # packed ones, and what they import
QUANTIZE = ("r2q/quantize.py", "r2q/kept.py", "r2q/models", "r2q/quantization", "r2q/kernels")  # kept: seeds
SOURCES: Mapping[str, tuple[str, ...]] = {
    "source": ("r2q/models/source.py", *WEIGHTS),
    "prepare": ("r2q/prepare.py", "r2q/tokens.py", "r2q/models"),
    "calibrate": ("r2q/models/calibration.py", "r2q/kernels", *WEIGHTS, *TEXT),
    "teacher_data": ("r2q/training/teacher_data.py", "r2q/models", "r2q/kernels", "r2q/kept.py", *WEIGHTS, *TEXT),
    "quantize": QUANTIZE,  # and the method
    "train": (*QUANTIZE, "r2q/training"),  # and frame and quantizer
    "reference": ("r2q/evaluation/fidelity.py", "r2q/models", "r2q/quantization", "r2q/kernels", *TEXT),
    "evaluate": ("r2q/evaluation", "r2q/models", "r2q/quantization", "r2q/kernels", *TEXT),
    "report": ("r2q/report", "r2q/records.py"),
    "latency": ("r2q/bench.py", "r2q/models", "r2q/quantization", "r2q/kernels"),
    "lattice": ("r2q/records.py", "r2q/models", "r2q/quantization", "r2q/kernels"),
}


def code(verb: str) -> str:
    """sha256 over the source files of a verb."""
    return _hash(SOURCES[verb])


def method_code(method: str, options: Mapping[str, Any]) -> str:
    """sha256 over the source behind a recipe: of the verb, its method, and the methods that its options name."""
    verb = "train" if method_info(method).needs == "training" else "quantize"
    methods = methods_named(method, options)
    files = {str(path) for method in methods for path in (method.path, inspect.getsourcefile(method.options))}
    return _hash((*SOURCES[verb], *sorted(files)))


@cache  # hundreds of units ask for the same few
def _hash(paths: tuple[str, ...]) -> str:
    return source_hash(paths)
