"""How R2Q adds up: a row's weights, the first sign with its scale, the residual, the second sign, and their sum."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from r2q.report.figures.labels import OF_TWO_PANELS, broken
from r2q.report.figures.style import BLUE, GREY, ORANGE, PALE, RED, SMALLEST, WIDTH
from r2q.report.run import Run

CAPTION = (
    "One group of real weights (grey bars) in two steps: the first sign with its scale α₁, the mean magnitude; the "
    "second sign with α₂, of what is left; and the sum of both, which is what is stored, in four levels."
)
COLUMNS = ["model", "layer", "index", "weight", "first", "residual", "second", "quantized", "alpha_1", "alpha_2"]
SHOWN = 64  # weights; more cannot be told apart


def data(run: Run, variant: str) -> pd.DataFrame:
    """The first weights of the group in the run's lattice.csv, under its first recipe that is plain R2Q at two bits.

    Others have more levels, or scales that were refined.

    Raises:
        ValueError: there are recipes of R2Q, and none is of this kind.
    """
    lattice = run.csv("lattice", ["method", "recipe", "model", "layer", "index", "weight", "quantized", "level_0"])
    lattice = lattice[lattice["method"] == "r2q"]
    if lattice.empty:
        return pd.DataFrame(columns=COLUMNS)
    for _, rows in lattice.groupby("recipe", sort=False):
        levels = rows[[name for name in rows.columns if name.startswith("level_")]].iloc[0].dropna().abs()
        alpha = (levels.max() + levels.min()) / 2, (levels.max() - levels.min()) / 2
        first = np.where(rows["weight"] >= 0, alpha[0], -alpha[0])
        parts = {"first": first, "residual": rows["weight"] - first, "second": rows["quantized"] - first}
        means = rows["weight"].abs().mean(), parts["residual"].abs().mean()  # are stored in 16 bits
        signs = np.allclose(parts["second"].abs(), alpha[1], atol=1e-3 * max(alpha))
        if len(levels) == 4 and signs and np.allclose(alpha, means, rtol=1e-3, atol=1e-7):
            return rows.assign(**parts, alpha_1=alpha[0], alpha_2=alpha[1])[COLUMNS].head(SHOWN)
    raise ValueError("figure mechanism: no recipe's levels are two signs in a row, each times the mean magnitude")


def draw(frame: pd.DataFrame) -> Figure:
    """Three panels over the same weights."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, sharey=True)
    a, b = frame["alpha_1"].iloc[0], frame["alpha_2"].iloc[0]
    steps = (
        (f"Weights and ±α₁ = {a:.3g}", "weight", "first", ORANGE),
        (f"Residual and ±α₂ = {b:.3g}", "residual", "second", RED),
        ("Weights and the sum of both", "weight", "quantized", BLUE),
    )
    for axes, (title, bars, line, colour) in zip(panels, steps, strict=True):
        axes.bar(frame["index"], frame[bars], color=PALE, edgecolor=GREY, linewidth=0.3, width=0.8)
        axes.plot(frame["index"], frame[line], drawstyle="steps-mid", color=colour, lw=0.9)
        error = float(((frame[bars] - frame[line]) ** 2).mean())
        axes.set_title(title)
        axes.set_title(f"mean squared rest {error:.2e}", loc="right", fontsize=SMALLEST, fontweight="normal")
        axes.axhline(0, color=GREY, lw=0.5)
        axes.set_ylabel("value")
    where = broken(f"{frame['model'].iloc[0]}, {frame['layer'].iloc[0]}", OF_TWO_PANELS)
    panels[-1].set_xlabel(f"weight of the group, n = {len(frame)}\n{where}")
    return figure
