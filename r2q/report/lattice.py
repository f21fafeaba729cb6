"""The lattice figure: where each method puts every weight of one real group, and how many land on each level."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from r2q.report.scores import read_csv
from r2q.report.style import BLUE, GREY, ORANGE, PALE, RED, SKY, WIDTH, save, style

COLUMNS = ["recipe", "model", "layer", "row", "group", "index", "weight", "code", "quantized", "level_0", "level_1"]
LEVEL_COLOURS = (BLUE, SKY, ORANGE, RED)  # lowest to highest; more levels repeat them
BINS = 24


def plot(data: str | Path, out: str | Path) -> None:
    """Draw the CSV `data` of `r2q.models.inspect.lattice_data` as `<out>.png` and `<out>.svg`.

    Raises FileNotFoundError or ValueError when the CSV is missing or lacks a column.
    """
    frame = read_csv(data, COLUMNS)
    if frame.empty:
        raise ValueError(f"{data} has no rows: there is no group to draw")
    with style():
        save(draw(frame), out)


def draw(frame: pd.DataFrame) -> Figure:
    """One column per recipe: the staircase weight -> level with counts beside it, the distribution below it."""
    recipes = list(dict.fromkeys(frame["recipe"]))
    layout = ConstrainedLayoutEngine(w_pad=0.01, wspace=0.01)
    figure = Figure(figsize=(WIDTH / 2 * len(recipes), 4.3), layout=layout)
    grid = figure.add_gridspec(2, 2 * len(recipes), height_ratios=[3.4, 1], width_ratios=[3.8, 1] * len(recipes))
    first: list[Axes] = []
    for i, recipe in enumerate(recipes):
        rows = frame[frame["recipe"] == recipe]
        share = {"sharex": first[0], "sharey": first[0]} if first else {}
        stairs = figure.add_subplot(grid[0, 2 * i], **share)
        counts = figure.add_subplot(grid[0, 2 * i + 1], sharey=stairs)
        below = figure.add_subplot(grid[1, 2 * i], sharex=stairs, **({"sharey": first[1]} if first else {}))
        first = first or [stairs, below]
        _panel(recipe, rows, stairs, counts, below)
        if i == 0:
            stairs.set_ylabel("quantized weight")
            below.set_ylabel("weights")
            note = "dotted: unchanged\npale: error of a weight"
            stairs.text(0.98, 0.03, note, transform=stairs.transAxes, ha="right", fontsize=6.5, color=GREY)
    where = frame.iloc[0]
    group = f"row {where['row']}, group {where['group']}"
    weights = frame["recipe"].value_counts().iloc[0]
    figure.suptitle(f"{where['model']}   {where['layer']}   {group}: {weights} weights", fontsize=8)
    return figure


def _panel(recipe: str, rows: pd.DataFrame, stairs: Axes, counts: Axes, below: Axes) -> None:
    weight, quantized = rows["weight"].to_numpy(), rows["quantized"].to_numpy()
    named = sorted((name for name in rows.columns if name.startswith("level_")), key=lambda name: int(name[6:]))
    levels = np.unique(rows[named].iloc[0].dropna().to_numpy(dtype=float))  # ascending; equal levels are one
    place = np.abs(quantized[:, None] - levels).argmin(1)
    number = np.bincount(place, minlength=len(levels))
    edges = (levels[1:] + levels[:-1]) / 2
    low, high = min(weight.min(), levels[0]), max(weight.max(), levels[-1])
    margin = 0.06 * (high - low or 1.0)

    mse = float(np.mean((quantized - weight) ** 2))
    power = float(np.mean(weight**2))
    relative = f", relative error {mse / power:.3f}" if power else ""
    stairs.set_title(f"{recipe}\n", pad=2)
    stairs.text(0, 1.02, f"MSE {mse:.2e}{relative}", transform=stairs.transAxes, fontsize=7, va="bottom")
    stairs.plot([low - margin, high + margin], [low - margin, high + margin], color=GREY, lw=0.7, ls=":")
    ends = [low - margin, *edges, high + margin]
    for level, (start, stop) in zip(levels, pairwise(ends), strict=True):
        stairs.plot([start, stop], [level, level], color=GREY, lw=0.8, solid_capstyle="butt")
    for edge, (under, over) in zip(edges, pairwise(levels), strict=True):
        stairs.plot([edge, edge], [under, over], color=GREY, lw=0.8)
        below.axvline(edge, color=GREY, lw=0.8)
    stairs.vlines(weight, np.minimum(weight, quantized), np.maximum(weight, quantized), color=PALE, lw=0.5, zorder=1)
    for j in range(len(levels)):
        colour = LEVEL_COLOURS[j % len(LEVEL_COLOURS)]
        here = place == j
        stairs.plot(weight[here], quantized[here], "o", ms=3, mfc=colour, mec="white", mew=0.3, zorder=3)
        counts.barh(levels[j], number[j], height=0.055 * (high - low or 1.0), color=colour)
        counts.annotate(f"{number[j]}", (number[j], levels[j]), (2, 0), textcoords="offset points", va="center",
                        fontsize=7)  # fmt: skip
    bins = np.linspace(low, high, BINS + 1).tolist() if high > low else 1
    parts = [weight[place == j] for j in range(len(levels))]
    colours = [LEVEL_COLOURS[j % len(LEVEL_COLOURS)] for j in range(len(levels))]
    below.hist(parts, bins=bins, stacked=True, color=colours, edgecolor="white", linewidth=0.3)
    below.plot(weight, np.full(len(weight), -0.06), "|", color="black", ms=4, mew=0.4, clip_on=False,
               transform=below.get_xaxis_transform())  # fmt: skip
    below.set_xlabel("weight", labelpad=4)
    below.tick_params(axis="x", pad=6)
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    stairs.tick_params(labelbottom=False)
    counts.text(0, 1.02, "on level", transform=counts.transAxes, fontsize=7, va="bottom")
    counts.tick_params(left=False, labelleft=False, labelbottom=False, bottom=False)
    counts.spines[["left", "bottom"]].set_visible(False)
    counts.set_xlim(0, 1.35 * max(number.max(), 1))
