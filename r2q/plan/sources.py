"""Which source files stand behind a verb's results: the one list for the rules and for the keys of what verbs write.

A test follows the imports of every verb and finds what is missing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from r2q.config import method_info
from r2q.kept import source_hash

TEXT = ("r2q/files.py", "r2q/tokens.py")
QUANTIZE = ("r2q/quantize.py", "r2q/models", "r2q/quantization", "r2q/kernels")
SOURCES: Mapping[str, tuple[str, ...]] = {
    "source": ("r2q/models/source.py", "r2q/models/gguf_file.py"),
    "prepare": ("r2q/prepare.py", "r2q/models"),
    "calibrate": ("r2q/models/calibration.py", *TEXT),
    "teacher_data": ("r2q/training/teacher_data.py", "r2q/training/data.py", "r2q/training/generation.py", *TEXT),
    "quantize": QUANTIZE,  # and the method
    "train": (*QUANTIZE, "r2q/training"),  # and frame and quantizer
    "reference": ("r2q/evaluation/fidelity.py", "r2q/models", "r2q/quantization", *TEXT),
    "evaluate": ("r2q/evaluation", "r2q/models", "r2q/quantization", "r2q/kernels", *TEXT),
    "report": ("r2q/report", "r2q/records.py"),
    "lattice": ("r2q/records.py", "r2q/models", "r2q/quantization"),
}


def code(verb: str) -> str:
    """sha256 over the source files of a verb."""
    return _hash(SOURCES[verb])


def method_code(method: str, options: Mapping[str, Any]) -> str:
    """sha256 over the source behind a recipe: of the verb, its method, and the methods that its options name."""
    names = {method, options.get("quantizer", method)}
    verb = "train" if method_info(method).needs == "training" else "quantize"
    return _hash((*SOURCES[verb], *sorted(str(method_info(name).path) for name in names)))


@cache  # hundreds of units ask for the same few
def _hash(paths: tuple[str, ...]) -> str:
    return source_hash(paths)
