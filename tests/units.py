"""Several units in one process, which the verbs take one by one; and a report that none of them wrote."""

from pathlib import Path
from typing import Any

from r2q.config import load
from r2q.evaluation.evaluate import evaluate as evaluate_unit
from r2q.quantize import quantize as quantize_unit
from r2q.records import Facts, Report


def quantize(config: Path, prepared: Path, model: str, recipes: list[str], out: Path, **inputs: Any) -> None:
    """Quantize recipes with all of their seeds into `out/<recipe>/seed<k>`."""
    for recipe in recipes:
        for seed in load(config).seeds_of(recipe, model):
            quantize_unit(config, prepared, model, recipe, seed, out / recipe / f"seed{seed}", **inputs)


def report(**changes: Any) -> Report:
    """A report of no unit, but for `changes`."""
    fields: dict[str, Any] = {
        "key": "k", "model": "m", "family": "llama", "recipe": "r", "seed": 0, "method": "rtn", "granularity": "g64",
        "group_size": 64, "bits": 2, "options": {}, "facts": Facts(), "status": "ok", "reason": "",
        "bits_per_weight": 2.5, "quantized_weights": 8, "total_parameters": 9, "file_bytes": 10, "formula_bytes": 9,
        "layers": [], "notes": {}, "seconds": 1.0, "peak_mib": 2.0, "versions": {}, "hashes": {}, "files": {},
    }  # fmt: skip
    return Report(**fields | changes)


def evaluate(config: Path, model: str, recipes: list[str], out: Path) -> None:
    """Evaluate recipes with all of their seeds below `out`."""
    for recipe in recipes:
        for seed in load(config).seeds_of(recipe, model):
            evaluate_unit(config, model, out / recipe / f"seed{seed}")
