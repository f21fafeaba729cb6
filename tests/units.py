"""Several units in one process, which the verbs take one by one."""

from pathlib import Path
from typing import Any

from r2q.config import load
from r2q.evaluation.evaluate import evaluate as evaluate_unit
from r2q.quantize import quantize as quantize_unit


def quantize(config: Path, prepared: Path, model: str, recipes: list[str], out: Path, **inputs: Any) -> None:
    """Quantize recipes with all of their seeds into `out/<recipe>/seed<k>`."""
    for recipe in recipes:
        for seed in load(config).seeds_of(recipe, model):
            quantize_unit(config, prepared, model, recipe, seed, out / recipe / f"seed{seed}", **inputs)


def evaluate(config: Path, model: str, recipes: list[str], out: Path) -> None:
    """Evaluate recipes with all of their seeds below `out`."""
    for recipe in recipes:
        for seed in load(config).seeds_of(recipe, model):
            evaluate_unit(config, model, out / recipe / f"seed{seed}")
