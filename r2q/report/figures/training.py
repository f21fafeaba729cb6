"""Gradient norm and loss by training step: R2Q and round to nearest as the paper compares them, or every quantizer.

Single steps are noisy: they are drawn pale, and over them their running median, which is what can be compared.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2q.report.figures.style import quantizer_legend, training_panels
from r2q.report.run import Run, first_of_alike

CAPTION = (
    "Gradient norm before clipping and training loss per token, by step: pale the mean over seeds of every step, dark "
    "its running median over a tenth of the steps; shade: the range over seeds of that median. Of recipes of one name, "
    "such as with several learning rates, the first."
)
VARIANTS = ("paper", "all")
PAPER = ("r2q", "rtn (clipped start)")  # what the paper's figure shows
MEASURES = {"gradient_norm": "gradient norm", "loss": "loss, nats per token"}
COLUMNS = ["model", "frame", "granularity", "quantizer", "step", "measure", "mean", "median", "low", "high", "seeds"]
SMOOTHED = 10  # a running median is over the steps divided by this


def data(run: Run, variant: str) -> pd.DataFrame:
    """Of every step the mean over seeds, and mean and range over seeds of the running median."""
    steps = first_of_alike(run.steps[run.steps["step"] > 0])
    steps = steps[steps["quantizer"].isin(PAPER)] if variant == "paper" else steps
    long = steps.melt(
        ["model", "frame", "granularity", "quantizer", "step", "recipe", "seed"], list(MEASURES), "measure", "mean"
    ).dropna(subset="mean")
    unit = ["model", "recipe", "seed", "measure"]
    long["median"] = long.groupby(unit, sort=False)["mean"].transform(_running_median)
    keys = ["model", "frame", "granularity", "quantizer", "step", "measure"]
    return long.groupby(keys, sort=False, as_index=False).agg(
        mean=("mean", "mean"),
        median=("median", "mean"),
        low=("median", "min"),
        high=("median", "max"),
        seeds=("seed", "nunique"),
    )[COLUMNS]


def _running_median(steps: pd.Series) -> pd.Series:
    """Of the steps of one unit, in their order."""
    return steps.rolling(max(1, len(steps) // SMOOTHED), center=True, min_periods=1).median()


def draw(frame: pd.DataFrame) -> Figure:
    """A row for each model, frame and granularity: the gradient norm and the loss."""
    figure = training_panels(frame, MEASURES, "step", "step", _lines)
    quantizer_legend(figure, frame["quantizer"])
    return figure


def _lines(axes: Axes, rows: pd.DataFrame, look: dict[str, Any]) -> None:
    axes.plot(rows["step"], rows["mean"], color=look["color"], linewidth=0.4, alpha=0.35)
    axes.plot(rows["step"], rows["median"], **look)
