"""The weight-error figure: relative weight error of every layer under every recipe, model by model."""

from __future__ import annotations

import math
import re
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from r2q.report.scores import LAYER_COLUMNS, read_csv, write_csv
from r2q.report.figures.style import GREY, PALE, WIDTH, recipe_mark, save, style

DATA_COLUMNS = ["model", "recipe", "bits_per_weight", "layer", "kind", "block", "weights", "relative_error", "seeds"]
ROW, HEADER = 0.155, 0.62  # inches: a recipe's row, and what a model's panel needs besides its rows
CONTAINERS = ("self_attn", "mlp", "block_sparse_moe", "attention")  # parts of a layer's name that say nothing
ZERO = 1.0  # the relative error of weights that are all zero: what is worse needs no shade of its own
WORSE = "#BDBDBD"
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def plot(layers: str | Path, out: str | Path) -> None:
    """Draw the relative errors in `layers` (a run's layers.csv) as `<out>.png` and `<out>.svg`.

    What is drawn (the mean over seeds of each model, recipe and layer) is written to `<out>.csv`.
    Raises FileNotFoundError or ValueError when the CSV is missing, lacks a column or has no quantized layer.
    """
    frame = prepare(read_csv(layers, LAYER_COLUMNS))
    if frame.empty:
        raise ValueError(f"{layers} has no layers: every recipe of the run left the weights as they are, or failed")
    write_csv(f"{out}.csv", DATA_COLUMNS, [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")])
    with style():
        save(draw(frame), out)


def prepare(layers: pd.DataFrame) -> pd.DataFrame:
    """The columns of `DATA_COLUMNS`: models as they come, recipes by bits, layers by kind and then by depth."""
    frame = layers.groupby(["model", "recipe", "layer"], sort=False, as_index=False).agg(
        bits_per_weight=("bits_per_weight", "mean"),
        shape=("shape", "first"),
        relative_error=("relative_error", "mean"),
        seeds=("seed", "nunique"),
    )
    parts = [split_name(name) for name in frame["layer"]]
    frame["kind"], frame["block"] = [kind for kind, _ in parts], [block for _, block in parts]
    frame["weights"] = [math.prod(map(int, shape.split("x"))) for shape in frame.pop("shape")]
    order = pd.DataFrame(
        {
            "model": frame["model"].map(_places(frame["model"])),
            "bits": frame["recipe"].map({recipe: _bits(rows) for recipe, rows in frame.groupby("recipe")}),
            "recipe": frame["recipe"].map(_places(frame["recipe"])),
            "kind": frame["kind"].map(_places(frame["kind"])),
            "block": frame["block"],
        }
    )
    order["layer"] = range(len(frame))
    return frame.loc[order.sort_values(list(order.columns)).index, DATA_COLUMNS].reset_index(drop=True)


def split_name(layer: str) -> tuple[str, int]:
    """`model.layers.3.mlp.experts.5.w1` is kind `experts.w1` of block 3; without a number the block is -1."""
    block = re.search(r"(?:^|\.)(\d+)\.", layer)
    if not block:
        return layer.rsplit(".", 1)[-1], -1
    rest = layer[block.end() :].split(".")
    return ".".join(part for part in rest if part not in CONTAINERS and not part.isdigit()), int(block[1])


def _bits(rows: pd.DataFrame) -> float:
    """Bits per weight over all layers of `rows`, as the main table counts them."""
    return float((rows["bits_per_weight"] * rows["weights"]).sum() / rows["weights"].sum())


def _places(values: pd.Series) -> dict[str, int]:
    return {value: place for place, value in enumerate(dict.fromkeys(values))}


def draw(frame: pd.DataFrame) -> Figure:
    """Per model a heat map recipe x layer, and beside it each recipe's median over the layers with its range.

    The scale ends at the largest error below that of zero weights, so that random codes do not hide the rest.
    """
    models, recipes = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["recipe"]))
    errors = frame["relative_error"]
    inside = errors[(errors > 0) & (errors < ZERO)]
    low, high = (float(inside.min()), float(inside.max())) if inside.nunique() > 1 else (ZERO / 10, ZERO)
    norm = LogNorm(low, high)
    sizes = [ROW * frame[frame["model"] == model]["recipe"].nunique() + HEADER for model in models]
    figure = Figure(figsize=(WIDTH, sum(sizes) + 0.55), layout="constrained")
    grid = figure.add_gridspec(len(models), 2, width_ratios=[3, 1.25], height_ratios=sizes)
    strip, maps = None, []
    for i, model in enumerate(models):
        rows = frame[frame["model"] == model]
        here = [recipe for recipe in recipes if recipe in set(rows["recipe"])]
        axes = figure.add_subplot(grid[i, 0])
        mesh = _heat_map(axes, rows, here, _places(rows["kind"]), norm)
        axes.set_title(model)
        maps.append(axes)
        strip = figure.add_subplot(grid[i, 1], sharey=axes, **({"sharex": strip} if strip else {}))
        _strip(strip, rows, here, low, high)
        if i == 0:
            strip.set_title("median and range over layers", fontweight="normal", fontsize=7)
            axes.annotate("bits/weight", (0, 1), (-3, 5), xycoords="axes fraction", textcoords="offset points",
                          ha="right", fontsize=7)  # fmt: skip
        if i < len(models) - 1:
            strip.tick_params(labelbottom=False)
        else:
            strip.set_xlabel("relative weight error")
            axes.set_xlabel("layers by kind, each from the first block to the last")
    bar = figure.colorbar(mesh, ax=maps, location="bottom", extend="max", aspect=45, pad=0.01, fraction=0.03)
    bar.set_label("relative weight error: Σ(w − ŵ)² / Σw²      grey, >: 1 or more, no better than zeros")
    _log_ticks(bar.ax.xaxis, low, high)
    return figure


def _heat_map(axes: Axes, rows: pd.DataFrame, recipes: list[str], kinds: dict[str, int], norm: LogNorm) -> QuadMesh:
    layers = rows.drop_duplicates("layer")
    layers = layers.assign(kind_place=layers["kind"].map(kinds)).sort_values(["kind_place", "block"], kind="stable")
    names = list(layers["layer"])
    table = rows.pivot(index="recipe", columns="layer", values="relative_error").reindex(index=recipes, columns=names)
    axes.set_facecolor("white")
    colours = mpl.colormaps["viridis"].with_extremes(over=WORSE)
    edges = np.arange(len(names) + 1), np.arange(len(recipes) + 1)
    mesh = axes.pcolormesh(*edges, table.to_numpy(), norm=norm, cmap=colours, linewidth=0, rasterized=True)
    for r, c in zip(*np.nonzero(table.isna().to_numpy()), strict=True):
        axes.plot([c, c + 1], [r, r + 1], color=GREY, lw=0.5)  # no such number: a recipe that failed, or skipped it
    bits = {recipe: _bits(rows[rows["recipe"] == recipe]) for recipe in recipes}
    axes.set_yticks(np.arange(len(recipes)) + 0.5, [f"{recipe}  {bits[recipe]:.2f}" for recipe in recipes])
    axes.set_ylim(len(recipes), 0)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    start, ticks = 0, []
    for kind, group in groupby(layers["kind"]):
        count = len(list(group))
        ticks.append((start + count / 2, kind))
        start += count
        if start < len(names):
            axes.axvline(start, color="white", lw=2.5)
    axes.set_xticks([place for place, _ in ticks], [kind.replace(".", "\n") for _, kind in ticks])
    return mesh


def _strip(axes: Axes, rows: pd.DataFrame, recipes: list[str], low: float, high: float) -> None:
    """Median and range over the layers; a median beyond the scale is an arrow at its end."""
    axes.set_xscale("log")
    axes.set_xlim(low / (high / low) ** 0.06, high * (high / low) ** 0.06)
    for i, recipe in enumerate(recipes):
        errors = rows.loc[rows["recipe"] == recipe, "relative_error"]
        mark, median = recipe_mark(recipe), float(errors.median())
        if median < ZERO:
            axes.plot([errors.min(), errors.max()], [i + 0.5] * 2, color=mark.colour, lw=1, solid_capstyle="butt")
            axes.plot([median], [i + 0.5], **mark.plot() | {"linestyle": "none"})
        else:
            axes.plot([0.97], [i + 0.5], ">", color=mark.colour, ms=4, transform=axes.get_yaxis_transform())
        axes.annotate(f"{median:.3f}", (1.0, i + 0.5), (3, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", va="center", fontsize=6.5)  # fmt: skip
    axes.grid(True, axis="y", color=PALE)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.spines["left"].set_visible(False)
    _log_ticks(axes.xaxis, low, high)


def _log_ticks(axis: Axis, low: float, high: float) -> None:
    """Round numbers as they are read aloud, not powers of ten."""
    inside = [tick for tick in TICKS if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]
    if len(inside) < 2:
        inside = [float(f"{10**x:.2g}") for x in np.linspace(math.log10(low), math.log10(high), 3)]
    axis.set_major_locator(FixedLocator(inside))
    axis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in inside]))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
