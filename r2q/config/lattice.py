"""Whether the lattice figure's recipes are there, and its layer, row and group by the shapes that `prepare` found."""

import math
from collections.abc import Mapping
from typing import Any

from r2q.config.base import group_size, nearest
from r2q.config.run import Config


def lattice_lacks(config: Config) -> str:
    """The sentence for a config without `lattice_units`."""
    shown, recipes = config.figures.lattice.model, config.figures.lattice.recipes
    plain = "a recipe rtn and a recipe r2q with default options and the same bits and granularity, not tensor"
    needs, where = ", ".join(recipes) or plain, "recipes" if shown is None else "model"
    have = f"{shown} lacks" if shown else "no model has"
    return f"figures.lattice.{where}: the figure needs {needs}; {have} them"


def lattice_problems(config: Config, model: str, facts: Mapping[str, Any]) -> list[str]:
    """A sentence when `figures.lattice` asks for what this model does not have; none when it is about another one.

    `facts` is what `prepare` wrote of it: `targets`, each with `name` and `shape` ([out, in] or [experts, out, in]).
    """
    units, figure = config.lattice_units(), config.figures.lattice
    if units is None or units[0] != model or not facts["targets"]:
        return []
    shapes = {target["name"]: target["shape"] for target in facts["targets"]}
    layer = figure.layer or next(iter(shapes))
    if layer not in shapes:
        return [f"figures.lattice.layer: {model} has no layer {layer}{nearest(layer, shapes)}"]
    *out, width = shapes[layer]
    size = group_size(config.recipes[units[1][0]].granularity) or width
    problems = []
    for name, value, count in (("row", figure.row, math.prod(out)), ("group", figure.group, max(width // size, 1))):
        if value is not None and value >= count:
            problems.append(f"figures.lattice.{name}: {layer} of {model} has {name}s 0 to {count - 1}, not {value}")
    return problems
