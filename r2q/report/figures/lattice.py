"""The lattice figure: where each method puts every weight of one real group, and how many land on each level."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from r2q.report.figures.labels import OF_A_TITLE, broken, lines_of
from r2q.report.figures.style import BLUE, GREY, ORANGE, PALE, RED, SKY, SMALLEST, WIDTH
from r2q.report.run import Run

CAPTION = (
    "Where each method puts every weight of one group, and how many land on each level. Dotted: unchanged; pale: the "
    "error of a weight. The percentile is that of the group's relative error among the groups of its layer."
)
COLUMNS = ["recipe", "model", "layer", "row", "group", "index", "weight", "code", "quantized", "level_0", "level_1"]
LEVEL_COLOURS = (BLUE, SKY, RED, ORANGE)  # lowest to highest, dark and light in turn; more levels repeat them
BINS = 24
MANY = 1000  # weights from which single marks are pixels in the SVG too


@dataclass(frozen=True)
class Group:
    """One weight group under one recipe; `place` is the index of each weight's level among the ascending `levels`."""

    recipe: str
    weight: np.ndarray  # [n]
    quantized: np.ndarray  # [n]
    levels: np.ndarray  # [different levels]
    place: np.ndarray  # [n]
    percentile: float | None = None  # of its relative error among the groups of the layer; None where not recorded

    @property
    def counts(self) -> np.ndarray:
        """Weights on each level."""
        return np.bincount(self.place, minlength=len(self.levels))

    @property
    def edges(self) -> np.ndarray:
        """Where the nearest level changes."""
        return (self.levels[1:] + self.levels[:-1]) / 2

    def colour(self, level: int) -> str:
        return LEVEL_COLOURS[level % len(LEVEL_COLOURS)]


def data(run: Run, variant: str) -> pd.DataFrame:
    """The run's lattice.csv as it is (see `r2q.models.inspect.lattice`)."""
    return run.csv("lattice", COLUMNS)


def draw(frame: pd.DataFrame) -> Figure:
    """Two recipes a row: the staircase weight -> level with counts beside it, the distribution below it."""
    groups = [_group(recipe, frame[frame["recipe"] == recipe]) for recipe in dict.fromkeys(frame["recipe"])]
    values = np.concatenate([part for group in groups for part in (group.weight, group.levels)])
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 1.0
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.02, wspace=0.01, hspace=0.01)
    columns, rows = min(2, len(groups)), (len(groups) + 1) // 2
    more = 0.11 * (lines_of(broken(group.recipe) for group in groups) - 1)  # inches of titles
    figure = Figure(figsize=(WIDTH / 2 * columns, (2.6 + more) * rows + 0.2), layout=layout)
    grid = figure.add_gridspec(2 * rows, 2 * columns, height_ratios=[2.8, 1] * rows, width_ratios=[3, 1] * columns)
    first: Axes | None = None
    for i, group in enumerate(groups):
        top, left = 2 * (i // 2), 2 * (i % 2)
        stairs = figure.add_subplot(grid[top, left])
        beside = figure.add_subplot(grid[top, left + 1], sharey=stairs)
        below = figure.add_subplot(grid[top + 1, left], sharex=stairs, sharey=first)
        first = first or below
        stairs.set_xlim(low - margin, high + margin)
        stairs.set_ylim(low - margin, high + margin)
        _staircase(stairs, group)
        _counts(beside, group, 0.05 * (high - low + 2 * margin))
        _distribution(below, group, np.linspace(low, high, BINS + 1) if high > low else np.array([low - 1, high + 1]))
        if left == 0:
            stairs.set_ylabel("quantized weight")
            below.set_ylabel("weights")
        else:
            stairs.tick_params(labelleft=False)
            below.tick_params(labelleft=False)
    where = frame.iloc[0]
    place = f"row {where['row']:.0f}, group {where['group']:.0f}, n = {len(groups[0].weight)} weights"
    title = broken(f"{where['model']}, {where['layer']}", OF_A_TITLE)
    figure.suptitle(f"{title}\n{place}", fontsize=SMALLEST)
    return figure


def _group(recipe: str, rows: pd.DataFrame) -> Group:
    named = [name for name in rows.columns if name.startswith("level_")]
    levels = np.unique(rows[named].iloc[0].dropna().to_numpy(dtype=float))  # ascending; equal levels are one
    quantized = rows["quantized"].to_numpy(dtype=float)
    distance = np.abs(quantized[:, None] - levels)  # [n, levels]
    if distance.min(1).any():
        raise ValueError(f"lattice figure, recipe {recipe}: a quantized weight is on none of the levels")
    rank = float(rows["percentile"].iloc[0]) if "percentile" in rows else None
    return Group(recipe, rows["weight"].to_numpy(dtype=float), quantized, levels, distance.argmin(1), rank)


def _staircase(axes: Axes, group: Group) -> None:
    weight, quantized, levels = group.weight, group.quantized, group.levels
    mse, power = float(np.mean((quantized - weight) ** 2)), float(np.mean(weight**2))
    relative = f"relative error {mse / power:.3f}" if power else f"MSE {mse:.2e}"
    rank = f"\npercentile {group.percentile:.0f} of the layer" if group.percentile is not None else ""
    axes.set_title(broken(group.recipe), pad=17 if rank else 10)
    axes.text(0, 1.02, f"{relative}{rank}", transform=axes.transAxes, fontsize=SMALLEST, va="bottom")
    ends = axes.get_xlim()
    axes.plot(ends, ends, color=GREY, lw=0.7, ls=":")
    for level, (start, stop) in zip(levels, pairwise([ends[0], *group.edges, ends[1]]), strict=True):
        axes.plot([start, stop], [level, level], color=GREY, lw=0.8, solid_capstyle="butt")
    for edge, (under, over) in zip(group.edges, pairwise(levels), strict=True):
        axes.plot([edge, edge], [under, over], color=GREY, lw=0.8)
    many = len(weight) > MANY
    axes.vlines(weight, weight, quantized, color=PALE, lw=0.5, zorder=1, rasterized=many)
    for j in range(len(levels)):
        here = group.place == j
        axes.plot(weight[here], quantized[here], "o", ms=2.5, mfc=group.colour(j), mec="white", mew=0.3, zorder=3,
                  rasterized=many)  # fmt: skip
    axes.tick_params(labelbottom=False)


def _counts(axes: Axes, group: Group, height: float) -> None:
    """How many weights are on each level, at the level; numbers of close levels are moved apart by `height`."""
    thin = min([height, *0.8 * np.diff(group.levels)])
    labels = group.levels.copy()
    for j in range(1, len(labels)):
        labels[j] = max(labels[j], labels[j - 1] + 0.8 * height)
    labels -= np.mean(labels - group.levels)
    for j, number in enumerate(group.counts):
        axes.barh(group.levels[j], number, height=thin, color=group.colour(j))
        axes.annotate(
            f"{number}", (number, labels[j]), (1.5, 0), textcoords="offset points", va="center", fontsize=SMALLEST
        )
    axes.text(0, 1.02, "on level", transform=axes.transAxes, fontsize=SMALLEST, va="bottom")
    axes.tick_params(left=False, labelleft=False, labelbottom=False, bottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlim(0, 1.6 * max(group.counts.max(), 1))


def _distribution(axes: Axes, group: Group, bins: np.ndarray) -> None:
    levels = range(len(group.levels))
    parts, colours = [group.weight[group.place == j] for j in levels], [group.colour(j) for j in levels]
    axes.hist(parts, bins=bins.tolist(), stacked=True, color=colours, edgecolor="white", linewidth=0.3)
    for edge in group.edges:
        axes.axvline(edge, color=GREY, lw=0.8)
    axes.plot(group.weight, np.full(len(group.weight), -0.06), "|", color="black", ms=4, mew=0.4, clip_on=False,
              transform=axes.get_xaxis_transform(), rasterized=len(group.weight) > MANY)  # fmt: skip
    axes.set_xlabel("weight", labelpad=4)
    axes.tick_params(axis="x", pad=6)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(4))
