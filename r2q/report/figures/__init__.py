"""The figures of a run: one module each in this folder, found by its name.

A module has a docstring that says what is to be seen, and

    CAPTION   a sentence under the figure, on the page
    COLUMNS   of its own CSV, which holds exactly what is drawn
    data(run, variant) -> DataFrame   of COLUMNS; raises ValueError where the run has nothing to draw
    draw(frame) -> Figure             from that CSV and nothing else
    VARIANTS  names of variants, where there are several: `frontier-bytes` is the variant `bytes` of `frontier`

Adding a figure is adding such a module, and a line to what a run draws and from which CSV files (`Plan.drawn`).
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from r2q.intact import sign
from r2q.records import read_drawn, write_csv
from r2q.report.figures.style import WIDTH, save, style
from r2q.report.run import Run

HELPERS = ("labels", "style")


def names() -> list[str]:
    """Every figure there is, without its variants."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in HELPERS)


def find(name: str) -> tuple[Any, str]:
    """Module and variant of a figure's name; raises ValueError for a name that no module has."""
    module, _, variant = name.partition("-")
    if module not in names():
        raise ValueError(f"there is no figure {name}; there are {', '.join(names())}")
    drawing = importlib.import_module(f"{__name__}.{module}")
    if variant not in getattr(drawing, "VARIANTS", (variant,)):
        variants = ", ".join(f"{module}-{known}" for known in drawing.VARIANTS)
        raise ValueError(f"there is no figure {name}; there are {variants}")
    return drawing, variant


def figure(name: str, results: str | Path, out: str | Path) -> None:
    """Draw a figure of the run in the folder `results` as `<out>.png` and `<out>.svg` from `<out>.csv`, written first.

    A run without anything to draw gets a CSV without rows and a figure that says so.

    Raises FileNotFoundError or ValueError when a CSV of the run is missing or lacks a column.
    """
    module, variant = find(name)
    frame = module.data(Run(results), variant)
    columns = [*module.COLUMNS, *(column for column in frame.columns if column not in module.COLUMNS)]
    write_csv(f"{out}.csv", columns, [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")])
    with style():
        save(_nothing(name) if frame.empty else module.draw(read_drawn(f"{out}.csv", module.COLUMNS)), out)
    sign(f"{out}.sha256", [f"{out}.{ending}" for ending in ("png", "svg", "csv")])


def _nothing(name: str) -> Figure:
    empty = Figure(figsize=(WIDTH, 0.5))
    empty.text(0.5, 0.5, f"{name}: this run has nothing to draw", ha="center", va="center")
    return empty
