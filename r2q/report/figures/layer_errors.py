"""Errors layer by layer, one page a model: of the weights, and beside it of the layer's output on held-out text.

The two are not the same: error feedback raises the first to lower the second.
"""

from __future__ import annotations

import math
from itertools import groupby

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from r2q.report.figures.style import GREY, WIDTH
from r2q.report.run import Run

CAPTION = (
    "Relative squared error of every layer under every recipe, recipes by their median. Left: of the weights, "
    "Σ(w − ŵ)² / Σw². Right: of the layer's output on held-out text, where the run had calibration text. The scale spans "
    "the middle nine tenths of the competing recipes; what is beyond has the end's colour, grey is 1 or more: no better than zeros."
)
MEASURES = {"relative_error": "weights", "output_error": "layer outputs"}
COLUMNS = ["model", "recipe", "bits_per_weight", "layer", "kind", "block", "weights", "measure", "error", "seeds"]
ROW, HEADER = 0.155, 1.15  # inches: a recipe's row, and what a page needs besides
ZERO = 1.0  # the error of an output or weight that is all zero
WORSE = "#BDBDBD"


def data(run: Run, variant: str) -> pd.DataFrame:
    """Means over seeds of both errors of every layer of the model `variant`."""
    return prepare(run.layers[run.layers["model"] == variant])


def prepare(layers: pd.DataFrame) -> pd.DataFrame:
    """See `data`; recipes in the order of the run, layers by kind and then by depth."""
    measures = [name for name in MEASURES if name in layers]
    whole = layers.assign(weights=[math.prod(map(int, shape.split("x"))) for shape in layers["shape"]])
    keys = ["model", "recipe", "layer", "kind", "block", "weights"]
    long = whole.melt([*keys, "bits_per_weight", "seed"], measures, "measure", "error")
    long["error"] = pd.to_numeric(long["error"])
    found = long.dropna(subset="error").groupby([*keys, "measure"], sort=False, as_index=False).agg(
        bits_per_weight=("bits_per_weight", "mean"), error=("error", "mean"), seeds=("seed", "nunique")
    )  # fmt: skip
    order = {kind: place for place, kind in enumerate(dict.fromkeys(found["kind"]))}
    recipes = {recipe: place for place, recipe in enumerate(dict.fromkeys(found["recipe"]))}
    found = found.assign(a=found["recipe"].map(recipes), b=found["kind"].map(order))
    return found.sort_values(["a", "b", "block"], kind="stable").reset_index(drop=True)[COLUMNS]


def draw(frame: pd.DataFrame) -> Figure:
    """Both heat maps, recipe by layer, with the same rows."""
    of_weights = frame[frame["measure"] == "relative_error"]
    recipes = list(of_weights.groupby("recipe")["error"].median().sort_values().index)
    measures = [name for name in MEASURES if name in set(frame["measure"])]
    figure = Figure(figsize=(WIDTH, ROW * len(recipes) + HEADER), layout="constrained")
    axes = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for ax, measure in zip(axes, measures, strict=True):
        part = frame[frame["measure"] == measure]
        low, high = _scale(part)
        norm = LogNorm(low, high)
        mesh = _heat_map(ax, part, recipes, norm)
        ax.set_title(f"{frame['model'].iloc[0]}: {MEASURES[measure]}")
        bar = figure.colorbar(mesh, ax=ax, location="bottom", extend="both", aspect=30, pad=0.02)
        ticks = [float(f"{x:.2g}") for x in np.geomspace(low, high, 4)]
        bar.ax.xaxis.set_major_locator(FixedLocator(ticks))
        bar.ax.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
        bar.ax.xaxis.set_minor_locator(NullLocator())
        bar.set_label("relative squared error; at the right: median")
    bits = of_weights.groupby("recipe")["bits_per_weight"].mean()
    axes[0].set_yticks(np.arange(len(recipes)) + 0.5, [f"{name}  {bits[name]:.2f}" for name in recipes])
    axes[0].annotate("bits/weight", (0, 1), (-3, 5), xycoords="axes fraction", textcoords="offset points", ha="right",
                     fontsize=7)  # fmt: skip
    return figure


def _scale(part: pd.DataFrame) -> tuple[float, float]:
    inside = part["error"][(part["error"] > 0) & (part["error"] < ZERO)]
    if inside.nunique() < 2:
        return ZERO / 10, ZERO
    low, high = (float(inside.quantile(share)) for share in (0.05, 0.95))
    return (low, high) if low < high else (float(inside.min()), float(inside.max()))


def _heat_map(axes: Axes, part: pd.DataFrame, recipes: list[str], norm: LogNorm) -> mpl.cm.ScalarMappable:
    layers = part.drop_duplicates("layer").sort_values(["kind", "block"], kind="stable")
    order = {kind: place for place, kind in enumerate(dict.fromkeys(part["kind"]))}
    layers = layers.assign(place=layers["kind"].map(order)).sort_values(["place", "block"], kind="stable")
    names = list(layers["layer"])
    table = part.pivot(index="recipe", columns="layer", values="error").reindex(index=recipes, columns=names)
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
    for kind, group in groupby(layers["kind"]):
        count = len(list(group))
        ticks.append((start + count / 2, kind))
        start += count
        if start < len(names):
            axes.axvline(start, color="white", lw=1.5)
    shown = [kind.replace("_proj", "").replace(".", "\n") for _, kind in ticks]
    axes.set_xticks([place for place, _ in ticks], shown, fontsize=6)
    for r, recipe in enumerate(recipes):
        median = float(np.nanmedian(table.loc[[recipe]].to_numpy(dtype=float)))
        if not math.isnan(median):
            axes.annotate(f"{median:.2g}", (1.0, r + 0.5), (2, 0), xycoords=("axes fraction", "data"),
                          textcoords="offset points", va="center", fontsize=6)  # fmt: skip
    return mesh
