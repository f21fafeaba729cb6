"""Errors layer by layer, one page a model: of the weights, and beside it of the layer's output on held-out text.

The two are not the same: error feedback raises the first to lower the second.
"""

import math
from itertools import groupby

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from r2q.report.figures.labels import OF_A_ROW, OF_A_TITLE, broken, lines_of
from r2q.report.figures.style import GREY, SMALLEST, WIDTH
from r2q.report.run import Run

CAPTION = (
    "Relative squared error under every recipe, by kind of layer and, within a kind, by depth: means over layers, in "
    "at most six parts of the model. Recipes by the median of what is drawn, which stands at the right. Left: of the "
    "weights, Σ(w − ŵ)² / Σw². Right: of the layers' output on held-out text, where the run had calibration text. The "
    "scale spans the middle nine tenths of the competing recipes; what is beyond has the end's colour, grey is 1 or "
    "more: no better than zeros. Every layer by itself: layers.csv."
)
MEASURES = {"relative_error": "weights", "output_error": "outputs"}
COLUMNS = ["model", "recipe", "kind", "depth", "blocks", "measure", "error", "layers", "seeds"]
DEPTHS = 6  # parts of a kind's layers; more are narrower than a printed line
ROW, HEADER = 0.105, 1.5  # inches: a recipe's row, and what a page needs besides
ZERO = 1.0  # the error of an output or weight that is all zero
WORSE = "#BDBDBD"


def data(run: Run, variant: str) -> pd.DataFrame:
    """Means over layers and seeds of both errors, by kind and depth, of the model `variant`.

    Recipes and kinds stand in the order of the run, then by depth. Layers outside of the blocks are at depth -1.
    """
    layers = run.layers[run.layers["model"] == variant].fillna({"block": -1})
    measures = [name for name in MEASURES if name in layers]
    blocks = int(layers["block"].max()) + 1 if len(layers) else 0
    depth = layers["block"] if blocks <= DEPTHS else (layers["block"] * DEPTHS // blocks).clip(lower=-1)
    keys = ["model", "recipe", "kind", "depth"]
    long = layers.assign(depth=depth).melt([*keys, "block", "layer", "seed"], measures, "measure", "error")
    long["error"] = pd.to_numeric(long["error"])
    means = long.dropna(subset="error").groupby([*keys, "measure"], sort=False, as_index=False).agg(
        error=("error", "mean"), first=("block", "min"), last=("block", "max"), layers=("layer", "nunique"),
        seeds=("seed", "nunique"),
    )  # fmt: skip
    means["blocks"] = [_blocks(a, b) for a, b in zip(means["first"], means["last"], strict=True)]
    for name in ("recipe", "kind"):
        means[name] = pd.Categorical(means[name], categories=layers[name].unique())
    means = means.sort_values(["recipe", "kind", "depth"], kind="stable").reset_index(drop=True)[COLUMNS]
    return means.astype({"recipe": str, "kind": str})


def _blocks(first: int, last: int) -> str:
    return "none" if last < 0 else f"{first}" if first == last else f"{first} to {last}"


def draw(frame: pd.DataFrame) -> Figure:
    """Both heat maps, recipe by layer, with the same rows."""
    of_weights = frame[frame["measure"] == "relative_error"]
    recipes = list(of_weights.groupby("recipe")["error"].median().sort_values(kind="stable").index)
    measures = [name for name in MEASURES if name in set(frame["measure"])]
    names = [broken(recipe, OF_A_ROW) for recipe in recipes]
    figure = Figure(figsize=(WIDTH, ROW * lines_of(names) * len(recipes) + HEADER), layout="constrained")
    title = f"{frame['model'].iloc[0]}: relative squared error, median at the right"
    figure.suptitle(broken(title, OF_A_TITLE), fontsize=7, fontweight="bold")
    axes = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for ax, measure in zip(axes, measures, strict=True):
        part = frame[frame["measure"] == measure]
        low, high = _scale(part)
        norm = LogNorm(low, high)
        mesh = _heat_map(ax, part, recipes, norm)
        ax.set_title(MEASURES[measure], fontweight="normal")
        bar = figure.colorbar(mesh, ax=ax, location="bottom", extend="both", aspect=12, pad=0.02)
        bar.ax.xaxis.set_major_locator(FixedLocator([low, high]))
        bar.ax.xaxis.set_major_formatter(FixedFormatter([_digits(low), _digits(high)]))
        bar.ax.xaxis.set_minor_locator(NullLocator())
    axes[0].set_yticks(np.arange(len(recipes)) + 0.5, names)
    return figure


def _digits(error: float) -> str:
    """Two of them, zeros included: 0.20 is not 0.2."""
    return f"{error:#.2g}".rstrip(".")


def _scale(part: pd.DataFrame) -> tuple[float, float]:
    inside = part["error"][(part["error"] > 0) & (part["error"] < ZERO)]
    if inside.nunique() < 2:
        return ZERO / 10, ZERO
    low, high = (float(inside.quantile(share)) for share in (0.05, 0.95))
    return (low, high) if low < high else (float(inside.min()), float(inside.max()))


def _heat_map(axes: Axes, part: pd.DataFrame, recipes: list[str], norm: LogNorm) -> mpl.cm.ScalarMappable:
    part = part.assign(place=part["kind"].map({kind: i for i, kind in enumerate(dict.fromkeys(part["kind"]))}))
    table = part.pivot(index="recipe", columns=["place", "depth", "kind"], values="error").sort_index(axis="columns")
    table = table.reindex(index=recipes)
    names = list(table.columns.get_level_values("kind"))
    values = np.ma.masked_invalid(table.to_numpy(dtype=float))
    colours = mpl.colormaps["viridis"].copy()
    edges = np.arange(len(names) + 1), np.arange(len(recipes) + 1)
    mesh = axes.pcolormesh(*edges, values, norm=norm, cmap=colours, linewidth=0, rasterized=True)
    zeros = np.ma.masked_where(~(np.nan_to_num(table.to_numpy(dtype=float)) >= ZERO), np.ones(table.shape))
    axes.pcolormesh(*edges, zeros, cmap=mpl.colors.ListedColormap([WORSE]), linewidth=0, rasterized=True)
    for r, c in zip(*np.nonzero(table.isna().to_numpy()), strict=True):
        axes.plot([c, c + 1], [r, r + 1], color=GREY, lw=0.5)  # no such number: a recipe that failed, or skipped it
    axes.set_ylim(len(recipes), 0)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    start, ticks = 0, []
    for kind, group in groupby(names):
        count = len(list(group))
        ticks.append((start + count / 2, kind))
        start += count
        if start < len(names):
            axes.axvline(start, color="white", lw=0.8)
    kinds = [broken(kind.replace("_proj", "")) for _, kind in ticks]
    axes.set_xticks([place for place, _ in ticks], kinds, rotation=90)
    for r, recipe in enumerate(recipes):
        median = float(np.nanmedian(table.loc[[recipe]].to_numpy(dtype=float)))
        if not math.isnan(median):
            axes.annotate(_digits(median), (1.0, r + 0.5), (1, 0), xycoords=("axes fraction", "data"),
                          textcoords="offset points", va="center", fontsize=SMALLEST)  # fmt: skip
    return mesh
