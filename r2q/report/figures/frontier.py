"""The headline: how good a model is in how many bytes. Average score and distance to full precision, every recipe.

A recipe on the front has no rival that is both no larger and no worse. Full precision and random codes are drawn and do
not compete.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from r2q.report.averages import average_scores, fidelity_of
from r2q.report.figures.style import GREY, PALE, WIDTH, plain_ticks, quantizer_mark
from r2q.report.run import Run

CAPTION = (
    "Every recipe by its size: average accuracy over the tasks that all recipes have (chance dashed), and distance to "
    "full precision, with 95 % intervals (over items, over seeds where there are several). Filled: groups; hollow: whole "
    "channels. Line: recipes that no other recipe of at most their size beats."
)
VARIANTS = ("bytes", "bits")
COLUMNS = ["model", "recipe", "quantizer", "granularity", "kind", "control", "measure", "higher_is_better", "x",
           "value", "low", "high", "chance", "seeds", "n", "front"]  # fmt: skip
AXES = {"bytes": "size of the file, MiB", "bits": "bits a weight, scales included"}
SHAPES = {"control": "*", "weights": "o", "calibration": "^", "training": "s", "checkpoint": "D"}
KINDS = {"weights": "from the weights alone", "calibration": "with calibration text", "training": "trained"}
MEAN = "mean of models"
ROW, COLUMN = 2.5, 2.4  # inches
LABEL_ROOM = 0.45  # of the width of a panel


def data(run: Run, variant: str) -> pd.DataFrame:
    """A row per model, recipe and measure, and per recipe one over all models that have it."""
    scores = run.scores
    column = "bits_per_weight" if variant == "bits" else "file_bytes"
    rows = pd.concat([average_scores(scores), fidelity_of(scores)], ignore_index=True)
    first = scores.drop_duplicates(["model", "recipe"]).set_index(["model", "recipe"])
    rows = rows.join(first[[column, "quantizer", "granularity", "kind", "control"]], on=["model", "recipe"])
    rows["x"] = rows[column].astype(float) / (1 if variant == "bits" else 2**20)
    rows = rows.dropna(subset=["x", "value"])
    if rows["model"].nunique() > 1 and variant == "bits":
        rows = pd.concat([rows, _over_models(rows)], ignore_index=True)
    rows["front"] = False
    for _, part in rows.groupby(["model", "measure"], sort=False):
        rows.loc[_front(part), "front"] = True
    return rows[COLUMNS]


def _over_models(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the models, for recipes that all models of the measure have; distances as geometric means."""
    found = []
    for (measure, recipe), part in rows.groupby(["measure", "recipe"], sort=False):
        models = rows.loc[(rows["measure"] == measure) & ~rows["control"].fillna(False), "model"].nunique()
        if len(part) < models:
            continue
        higher = bool(part["higher_is_better"].iloc[0])
        values = part["value"] if higher else np.log(part["value"].clip(lower=1e-12))
        row = part.iloc[0].to_dict() | {"model": MEAN, "recipe": recipe, "x": part["x"].mean(), "n": len(part)}
        mean = float(values.mean())
        row |= {"value": mean if higher else math.exp(mean), "low": math.nan, "high": math.nan}
        row["chance"] = part["chance"].mean()
        found.append(row)
    return pd.DataFrame(found, columns=rows.columns)


def _front(part: pd.DataFrame) -> list[int]:
    """Index of the rows that no other row of at most their size beats; controls do not compete."""
    rivals = part[~part["control"].fillna(False).astype(bool)].sort_values(["x", "value"], kind="stable")
    sign = 1 if bool(part["higher_is_better"].iloc[0]) else -1
    best, found = -math.inf, []
    for x, rows in rivals.groupby("x"):
        top = (sign * rows["value"]).max()
        if top > best:
            best = top
            found.append(int(rows.index[int((sign * rows["value"]).to_numpy().argmax())]))
    return found


def draw(frame: pd.DataFrame) -> Figure:
    """A row per measure, a column per model."""
    models, measures = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["measure"]))
    wide = max(WIDTH, COLUMN * len(models)) if len(models) > 1 else WIDTH
    rows, columns = (len(measures), len(models)) if len(models) > 1 else (1, len(measures))
    figure = Figure(figsize=(wide, ROW * rows + 1.1), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    bits = bool(frame["x"].max() < 64 and (frame["x"] == 16).any())
    for i, measure in enumerate(measures):
        for j, model in enumerate(models):
            axes = grid[i, j] if len(models) > 1 else grid[0, i]
            _panel(axes, frame[(frame["model"] == model) & (frame["measure"] == measure)], bits)
            axes.set_title(model if len(models) > 1 else f"{model}: {measure}")
            if j == 0:
                axes.set_ylabel(measure if len(models) > 1 else "")
            if i == len(measures) - 1 or len(models) == 1:
                axes.set_xlabel(AXES["bits" if bits else "bytes"])
    _legend(figure, frame)
    return figure


def _panel(axes: Axes, part: pd.DataFrame, bits: bool) -> None:
    if part.empty:
        axes.set_axis_off()
        return
    higher = bool(part["higher_is_better"].iloc[0])
    control = part["control"].fillna(False).astype(bool)
    rivals = part[~control]
    left, right = float(rivals["x"].min()), float(rivals["x"].max())
    margin = 0.06 * (right - left) or 0.1 * right
    axes.set_xlim(left - margin, right + 3 * margin)
    low, high = _scale(axes, part, rivals, higher)
    for row in part.to_dict("records"):
        if not left - margin <= row["x"] <= right + 3 * margin:  # far larger: its level is what counts
            axes.axhline(row["value"], color="black", lw=0.8)
            axes.annotate(f"{row['recipe']} ({row['x']:.3g}{'' if bits else ' MiB'})", (1, row["value"]), (0, -3),
                          xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", va="top",
                          fontsize=5.5)  # fmt: skip
            continue
        if not low <= row["value"] <= high:  # a control beyond the scale
            up = row["value"] > high
            side = "left" if row["x"] < (left + right) / 2 else "right"
            axes.annotate(f"{row['recipe']} {row['value']:.2g} {'↑' if up else '↓'}", (row["x"], high if up else low),
                          (0, -2 if up else 2), textcoords="offset points", ha=side, va="top" if up else "bottom",
                          fontsize=5.5, color=GREY)  # fmt: skip
            continue
        mark = quantizer_mark(str(row["quantizer"]), row["granularity"] not in ("channel", "tensor"))
        shape = mark.marker if row["control"] else SHAPES[str(row["kind"])]
        if not math.isnan(row["low"]):
            axes.plot([row["x"]] * 2, [row["low"], row["high"]], color=mark.colour, lw=0.8, alpha=0.5, zorder=2)
        face = mark.colour if mark.filled else "white"
        axes.plot([row["x"]], [row["value"]], shape, color=mark.colour, mfc=face, ms=5, zorder=3)
    front = part[part["front"].fillna(False).astype(bool)].sort_values("x")
    axes.step([*front["x"], right + 3 * margin], [*front["value"], front["value"].iloc[-1]], where="post", color=GREY, lw=0.9, zorder=1)
    _name(axes, front, higher)
    if higher and part["chance"].notna().any():
        axes.axhline(part["chance"].mean(), color=GREY, ls="--", lw=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(True, color=PALE)


def _name(axes: Axes, front: pd.DataFrame, higher: bool) -> None:
    """Names at the points of the front, best first, as far as there is room for them."""
    left, right = axes.get_xlim()
    taken: list[float] = []
    for row in front.sort_values("value", ascending=not higher).to_dict("records"):
        place = (row["x"] - left) / (right - left)
        if all(abs(place - other) > LABEL_ROOM for other in taken):
            taken.append(place)
            side = "right" if place > 0.5 else "left"
            axes.annotate(row["recipe"], (row["x"], row["value"]), (4 if side == "left" else -4, 4 if higher else -8),
                          textcoords="offset points", ha=side, fontsize=6)  # fmt: skip


def _scale(axes: Axes, part: pd.DataFrame, rivals: pd.DataFrame, higher: bool) -> tuple[float, float]:
    """Limits that show the competing recipes and full precision; a control that is far off does not stretch them."""
    shown = pd.concat([rivals["value"], part["value"][part["quantizer"] == "full_precision"]])
    low, high = float(shown.min()), float(shown.max())
    if higher:
        floor = part["chance"].dropna().min()
        low = min(low, floor) if not math.isnan(floor) else low
        room = 0.08 * (high - low) or 1.0
        limits = low - room, high + room
        axes.yaxis.set_major_locator(MaxNLocator(6))
    else:
        room = (high / low) ** 0.1 if high > low else 1.2
        limits = low / room, high * room
        axes.set_yscale("log")
        plain_ticks(axes)
    axes.set_ylim(*limits)
    return limits


def _legend(figure: Figure, frame: pd.DataFrame) -> None:
    quantizers = list(dict.fromkeys(frame["quantizer"]))
    controls = set(frame.loc[frame["control"].fillna(False).astype(bool), "quantizer"])
    handles = []
    for name in quantizers:
        mark = quantizer_mark(str(name))
        shape = mark.marker if name in controls else "o"
        handles.append(Line2D([], [], color=mark.colour, marker=shape, ls="none", ms=5, label=name))
    for kind, words in KINDS.items():
        if kind in set(frame["kind"]):
            handles.append(Line2D([], [], color=GREY, marker=SHAPES[kind], ls="none", ms=5, mfc="white", label=words))
    figure.legend(handles=handles, loc="outside lower center", ncols=5 if len(handles) > 8 else 4)
