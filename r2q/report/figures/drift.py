"""Deviation of the weights: distance of the quantized ones to full precision, and how far the latent ones moved.

A line per quantizer, a point per decoder block; an output head, which is in none, is not drawn.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from r2q.report.figures.style import GREY, quantizer_legend, training_panels
from r2q.report.run import Run, first_of_alike

CAPTION = (
    "Squared distances over the squared weights, block by block, mean over seeds. Left: the stored (quantized) weights "
    "to full precision, before (dotted) and after training (solid). Right: how far training moved the latent weights. "
    "Of recipes of one name, such as with several learning rates, the first."
)
KINDS = {  # columns before and after training
    "quantized": ("quantized_before", "quantized_after"),
    "moved": (None, "latent_moved"),
}
TITLES = {"quantized": "stored weights: error / Σw²", "moved": "latent weights: way / Σw²"}
COLUMNS = ["model", "frame", "granularity", "quantizer", "block", "measure", "before", "after", "low", "high", "seeds"]


def data(run: Run, variant: str) -> pd.DataFrame:
    """Of each block, means over seeds before and after training, and the range after it; of layers in blocks."""
    drift = first_of_alike(run.drift[run.drift["block"] >= 0])
    unit = ["model", "frame", "granularity", "quantizer", "block", "seed"]
    parts = []
    for measure, columns in KINDS.items():
        part = drift[unit].copy()
        part["measure"] = measure
        for when, column in zip(("before", "after"), columns, strict=True):
            part[when] = 0.0 if column is None else drift[column] * drift["weights"]
        part["power"] = drift["power"] * drift["weights"]
        parts.append(part.dropna(subset=["after"]))
    sums = pd.concat(parts).groupby([*unit, "measure"], sort=False, as_index=False).sum()
    for when in ("before", "after"):
        sums[when] /= sums["power"]
    return sums.groupby([*unit[:-1], "measure"], sort=False, as_index=False).agg(
        before=("before", "mean"),
        after=("after", "mean"),
        low=("after", "min"),
        high=("after", "max"),
        seeds=("seed", "nunique"),
    )[COLUMNS]


def draw(frame: pd.DataFrame) -> Figure:
    """A row for each model, frame and granularity: both measures."""
    figure = training_panels(frame, TITLES, "block", "decoder block", _lines)
    quantizer_legend(figure, frame["quantizer"], Line2D([], [], color=GREY, linestyle=":", label="before training"))
    return figure


def _lines(axes: Axes, rows: pd.DataFrame, look: dict[str, Any]) -> None:
    axes.plot(rows["block"], rows["after"], **look)
    if (rows["before"] > 0).any():
        axes.plot(rows["block"], rows["before"], color=look["color"], linewidth=0.7, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
