"""The headline: how good a model is in how many bytes. Average score and distance to full precision, every recipe.

A recipe on the front has no rival that is both no larger and no worse. Full precision and random codes are drawn and do
not compete.
"""

import math
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from r2q.measure import MIB
from r2q.report.averages import FIDELITY, MANY, SCORE, average_scores, fidelity_of, flags, recipes_of, unbeaten
from r2q.report.figures.labels import OF_A_ROW, OF_TWO_PANELS, broken, lines_of, name_points, written
from r2q.report.figures.style import GREY, PALE, SMALLEST, WIDTH, plain_ticks, quantizer_mark
from r2q.report.run import FULL_PRECISION, Run

CAPTION = (
    "Every recipe by its size: average accuracy over the tasks (chance dashed; a recipe that lacks one has none), and "
    "distance to full precision, with 95 % intervals (over items, over seeds where there are several). n: items of all "
    "tasks, windows of text; models in a mean of them. Recipes of one size stand side by side, by what they work from. "
    "Line: recipes that no other recipe of at most their size beats, and that are not at chance or the majority rate "
    "(° in the tables); they are named as far as there is room."
)
VARIANTS = ("bytes", "bits")
COLUMNS = ["model", "recipe", "quantizer", "granularity", "kind", "control", "measure", "higher_is_better", "axis", "x",
           "value", "low", "high", "chance", "seeds", "n", "front"]  # fmt: skip
AXES = {"bytes": "size of the file, MiB", "bits": "bits a weight, scales included"}
# what a recipe works from: filling of its mark, words; recipes of one size stand in this order
KINDS: dict[str, tuple[Any, str]] = {
    "weights": ("none", "from the weights alone"),
    "calibration": ("bottom", "with calibration text"),
    "training": ("full", "trained"),
    "checkpoint": ("top", "quantized elsewhere"),
}
PARTS = {SCORE: "items", FIDELITY[1]: "windows"}  # what n counts
MEAN = "mean of models"
ROW = 2.3, 1.7  # inches of a panel: of one model, of several
FAR = 2  # a control so many times larger than every rival stands as a level, not as a mark
SIDE = 6  # points between recipes of one size that work from different things


def data(run: Run, variant: str) -> pd.DataFrame:
    """A row per model, recipe and measure, and per recipe one over all models that have it."""
    scores = run.scores
    column = "bits_per_weight" if variant == "bits" else "file_bytes"
    rows = pd.concat([average_scores(scores), fidelity_of(scores)], ignore_index=True)
    first = recipes_of(scores).set_index(["model", "recipe"])
    rows = rows.join(first[[column, "quantizer", "granularity", "kind", "control"]], on=["model", "recipe"])
    rows["x"] = rows[column].astype(float) / (1 if variant == "bits" else MIB)
    rows["axis"], rows["control"] = variant, flags(rows["control"])
    rows = _competing(rows.dropna(subset=["x", "value"]))
    if rows["model"].nunique() > 1 and variant == "bits":
        rows = pd.concat([rows, _competing(_over_models(rows))], ignore_index=True)
    rows["front"] = False
    for _, part in rows.groupby(["model", "measure"], sort=False):
        rows.loc[unbeaten(part, "x"), "front"] = True
    return rows[COLUMNS]


def _competing(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the panels in which there are controls alone."""
    return rows[~rows.groupby(["model", "measure"])["control"].transform("all").astype(bool)]


def _over_models(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the models, for recipes that all models of the measure have; distances as geometric means."""
    means = []
    for (measure, recipe), part in rows.groupby(["measure", "recipe"], sort=False):
        models = rows.loc[(rows["measure"] == measure) & ~rows["control"], "model"].nunique()
        if len(part) < models:
            continue
        higher = bool(part["higher_is_better"].iloc[0])
        values = part["value"] if higher else np.log(part["value"].clip(lower=1e-12))
        row = part.iloc[0].to_dict() | {"model": MEAN, "recipe": recipe, "x": part["x"].mean(), "n": len(part)}
        mean = float(values.mean())
        row |= {"value": mean if higher else math.exp(mean), "low": math.nan, "high": math.nan}
        row |= {"chance": part["chance"].mean(), "at_chance": bool(part["at_chance"].all())}
        means.append(row)
    return pd.DataFrame(means, columns=rows.columns).astype(rows.dtypes)


def draw(frame: pd.DataFrame) -> Figure:
    """One model: a panel per measure, one above the other. Several: a row per model, a column per measure."""
    models, measures = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["measure"]))
    rows, columns = (len(models), len(measures)) if len(models) > 1 else (len(measures), 1)
    marks = frame["quantizer"].nunique() + frame["kind"].nunique()
    figure = Figure(figsize=(WIDTH, ROW[len(models) > 1] * rows + 0.25 + 0.045 * marks), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    drawn = []
    for axes, (model, measure) in zip(panels, product(models, measures), strict=True):
        part = frame[(frame["model"] == model) & (frame["measure"] == measure)]
        if part.empty:
            axes.set_axis_off()
            continue
        least, most, of = int(part["n"].min()), int(part["n"].max()), PARTS.get(measure, "texts")
        name = model if model != MEAN else f"mean of {most} models"
        title = broken(name, OF_TWO_PANELS if columns == 1 else OF_A_ROW // columns)
        below = columns > 1 or len(name) > OF_A_ROW  # where it says what n is over, or beside
        axes.set_title(f"{title}\n" if below else name)
        if model != MEAN:
            count = f"n = {least if least == most else f'{least} to {most}'} {of}"
            axes.set_title(count, loc="right", fontsize=SMALLEST, fontweight="normal")
        axes.set_ylabel(written(measure))
        along = AXES[str(part["axis"].iloc[0])]
        axes.set_xlabel(along if columns == 1 else along.removesuffix(", scales included"))
        drawn.append((axes, part))
        _scale(axes, part, ticks=5 if columns == 1 else 3)
    _legend(figure, frame)
    FigureCanvasAgg(figure)  # names are measured on it: without one, each measurement makes and keeps another
    figure.draw_without_rendering()  # from here on points have their places
    for axes, part in drawn:
        _panel(axes, part)
    return figure


def _scale(axes: Axes, part: pd.DataFrame, ticks: int) -> None:
    """Limits that show the competing recipes and full precision; a control that is far off does not stretch them."""
    rivals = part[~part["control"]]
    near = part.loc[part["x"] <= FAR * rivals["x"].max(), "x"]
    left, right = float(near.min()), float(near.max())
    margin = 0.12 * (right - left) or 0.1 * right
    axes.set_xlim(left - margin, right + margin)
    axes.xaxis.set_major_locator(MaxNLocator(ticks))
    points = pd.concat([rivals["value"], part["value"][part["quantizer"] == FULL_PRECISION]])
    shown = pd.concat([points, rivals["low"], rivals["high"]])
    low, high = float(shown.min()), float(shown.max())
    if part["higher_is_better"].iloc[0]:
        floor = part["chance"].dropna().min()
        low = min(low, floor) if not math.isnan(floor) else low
        room = 0.08 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)
        axes.yaxis.set_major_locator(MaxNLocator(6))
    else:
        low, high = max(low, points.min() / 10), min(high, points.max() * 10)  # intervals of few windows are wider
        room = (high / low) ** 0.1 if high > low else 1.2
        axes.set_yscale("log")
        lines = int((part["value"] > high * room).sum())  # above the marks, for controls off the scale
        axes.set_ylim(low / room**2, high * room ** (1 + lines))  # the best has its name below it
        plain_ticks(axes)
    axes.grid(True, color=PALE)


def _panel(axes: Axes, part: pd.DataFrame) -> None:
    """Marks with intervals, the front, chance and full precision, and as many names as find room."""
    higher, size = bool(part["higher_is_better"].iloc[0]), " MiB" if part["axis"].iloc[0] == "bytes" else ""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    point = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    marks, front, names = [], [], []
    beyond = {True: 0, False: 0}  # lines of the controls that are off the scale, above it and below
    letters = int(axes.get_window_extent().width / (0.66 * SMALLEST * point))  # of a line as wide as the panel
    kinds = part[~part["control"]].groupby("x")["kind"].agg(lambda of_size: [k for k in KINDS if k in set(of_size)])
    for row in part.sort_values(["front", "value"], ascending=[False, not higher]).to_dict("records"):
        x, y = row["x"], row["value"]
        text: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALLEST, "in_layout": False}
        if not low <= y <= high:  # a control beyond the scale
            up = y > high
            shift = 2 + 1.2 * SMALLEST * beyond[up]
            where, side = ((0, -shift), "top") if up else ((0, shift), "bottom")
            label = broken(f"{row['recipe']} {y:.2g} {'↑' if up else '↓'}", letters)
            beyond[up] += lines_of([label])
            written = axes.annotate(
                label, (1, up), where, ha="right", va=side, color=GREY, xycoords="axes fraction", **text
            )
            marks.append(written.get_window_extent())
        elif x > right:  # far larger: its level is what counts
            axes.axhline(y, color="black", lw=0.8)
            label = broken(f"{row['recipe']} ({x:.3g}{size})", letters)
            written = axes.annotate(label, (1, y), (0, -2), ha="right", va="top",
                                    xycoords=("axes fraction", "data"), **text)  # fmt: skip
            marks += [written.get_window_extent(), _around(axes.transData.transform([(left, y), (right, y)]))]
        else:
            mark, beside = quantizer_mark(str(row["quantizer"])), [] if row["control"] else kinds[x]
            pixel = axes.transData.transform((x, y))
            if beside:
                pixel[0] += SIDE * point * (beside.index(row["kind"]) - (len(beside) - 1) / 2)
            x = float(axes.transData.inverted().transform(pixel)[0])
            axes.plot([x, x], [row["low"], row["high"]], color=mark.colour, lw=0.6, alpha=0.5, zorder=2)
            axes.plot([x], [y], ls="none", marker=mark.marker, color=mark.colour, fillstyle=KINDS[str(row["kind"])][0],
                      mew=0.7, ms=4.2, zorder=3, markerfacecoloralt="white")  # fmt: skip
            marks.append(Bbox.from_extents(*(pixel - 2.6 * point), *(pixel + 2.6 * point)))
            if row["front"]:
                front.append((x, y))
            if row["front"] or row["control"] or len(part) <= MANY:
                names.append((x, y, str(row["recipe"])))
    path = []
    if front:
        corners = [(x, y) for (_, y), (x, _) in pairwise(sorted(front))]
        path = [
            corner for pair in zip(sorted(front), [*corners, (right, max(front)[1])], strict=True) for corner in pair
        ]
        axes.plot(*zip(*path, strict=True), color=GREY, lw=0.8, zorder=1)
    lines = [_around(axes.transData.transform(ends)) for ends in pairwise(path)]
    if higher and part["chance"].notna().any():
        axes.axhline(part["chance"].mean(), color=GREY, ls="--", lw=0.7)
        lines.append(_around(axes.transData.transform([(end, part["chance"].mean()) for end in (left, right)])))
    name_points(axes, names, marks, lines)


def _around(pixels: np.ndarray) -> Bbox:
    return Bbox.from_extents(*(pixels.min(0) - 2), *(pixels.max(0) + 2))


def _legend(figure: Figure, frame: pd.DataFrame) -> None:
    """What the marks are; controls have their names beside them."""
    rivals = frame[~frame["control"]]
    look: dict[str, Any] = {"ls": "none", "ms": 4.2, "mew": 0.7, "markerfacecoloralt": "white"}
    handles = []
    for name in dict.fromkeys(name.partition(" (")[0] for name in rivals["quantizer"]):
        mark = quantizer_mark(name)
        handles.append(Line2D([], [], color=mark.colour, marker=mark.marker, label=broken(name), **look))
    for kind, (fill, words) in KINDS.items():
        if kind in set(rivals["kind"]):
            handles.append(Line2D([], [], color=GREY, marker="o", fillstyle=fill, label=words, **look))
    wide = any("\n" in str(handle.get_label()) for handle in handles)
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if wide else 3)
