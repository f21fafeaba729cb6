"""The smallest configs."""

from pathlib import Path
from typing import Any


def config_of(recipes: dict[str, Any], path: str | Path = "a/b", **more: Any) -> dict[str, Any]:
    """A config of recipes on a model `tiny`, with one task unless it is said otherwise."""
    models = {"tiny": {"path": str(path)}}
    return {"run": "test", "models": models, "recipes": recipes, "tasks": {"mini_text": {}}} | more


def full_precision_of(run: str, path: str, text: str = "own/text:a:test") -> dict[str, Any]:
    """A run of nothing but a model's perplexity on a text."""
    recipes = {"full_precision": {"method": "full_precision"}}
    return config_of(recipes, path, run=run, tasks={}, perplexity={"text": {"path": text, "window": 16}})
