"""The smallest config of recipes."""

from pathlib import Path
from typing import Any


def config_of(recipes: dict[str, Any], path: str | Path = "a/b", **more: Any) -> dict[str, Any]:
    """A config of recipes on a model `tiny`, with one task unless it is said otherwise."""
    models = {"tiny": {"path": str(path)}}
    return {"run": "test", "models": models, "recipes": recipes, "tasks": {"mini_text": {}}} | more
