"""What coarser groups cost: average accuracy by granularity, and the points lost from the finest to the coarsest."""

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from r2q.report.averages import by_granularity, flags
from r2q.report.figures.labels import OF_A_ROW, apart, broken, lines_of
from r2q.report.figures.style import GREY, PALE, SMALLEST, WIDTH, quantizer_mark
from r2q.report.run import Run

CAPTION = (
    "Average accuracy in percent by granularity, for recipes that differ in nothing else; 95 % intervals as in the "
    "table of sizes. The number at the right end is the change from the finest to the coarsest."
)
COLUMNS = ["model", "family", "quantizer", "kind", "granularity", "place", "value", "low", "high", "lost", "n"]
LINES: dict[str, Any] = {"weights": ":", "calibration": "--", "training": "-"}
OF_A_NAME = 44  # letters of a line
LEAST, NAME, FRAME = 1.7, 0.1, 0.4  # inches: a panel's least height, a line of a name, what a panel needs besides


def data(run: Run, variant: str) -> pd.DataFrame:
    """A row per model, recipe without its granularity, and granularity; only what has several."""
    rows = by_granularity(run.framed)
    rows = rows[~flags(rows["control"])]
    rows = rows[rows.groupby(["model", "family"])["granularity"].transform("nunique") > 1]
    rows = rows.sort_values(["model", "family", "place"], kind="stable")
    ends = rows.groupby(["model", "family"])["value"]
    rows["lost"] = ends.transform("last") - ends.transform("first")
    return rows[COLUMNS]


def _named(family: str, lost: float) -> str:
    return broken(f"{family} {round(lost, 1) + 0:+.1f}", OF_A_NAME)


def draw(frame: pd.DataFrame) -> Figure:
    """A panel per model, as high as its names need; each at the right end of its line, moved apart."""
    models = list(dict.fromkeys(frame["model"]))
    families = [frame.loc[frame["model"] == model, "family"].unique() for model in models]
    names = [NAME * lines_of(_named(family, 0.0) for family in part) for part in families]  # inches of one
    heights = [max(LEAST, name * len(part) + FRAME) for name, part in zip(names, families, strict=True)]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), layout="constrained")
    panels = figure.subplots(len(models), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    ticks = frame.drop_duplicates("granularity").sort_values("place")
    for axes, model, height, name in zip(panels, models, heights, names, strict=True):
        part, labels = frame[frame["model"] == model], []
        for family, rows in part.groupby("family", sort=False):
            first = rows.iloc[0]
            mark, line = quantizer_mark(str(first["quantizer"])), LINES.get(str(first["kind"]), "-")
            axes.plot(rows["place"], rows["value"], color=mark.colour, linestyle=line, marker=mark.marker, ms=3)
            axes.fill_between(rows["place"], rows["low"], rows["high"], color=mark.colour, alpha=0.08, lw=0)
            last = rows.iloc[-1]
            if not math.isnan(last["lost"]):
                text = _named(str(family), float(last["lost"]))
                labels.append((float(last["value"]), float(last["place"]), text, mark.colour))
        low, high = axes.get_ylim()
        axes.set_ylim(low, high)
        room, end = (high - low) * name / (height - FRAME), frame["place"].max()
        places = apart([label[0] for label in labels], room, low + room / 2, high - room / 2)  # none beside the title
        for (value, place, text, colour), y in zip(labels, places, strict=True):
            axes.plot([place, end + 0.15], [value, y], color=colour, lw=0.4, clip_on=False)
            axes.annotate(text, (end + 0.15, y), (1, 0), va="center", fontsize=SMALLEST, textcoords="offset points",
                          annotation_clip=False)  # fmt: skip
        items = int(part["n"].max())
        axes.set_title(broken(f"{model}, n = {items} items", OF_A_ROW))
        axes.set_xticks(list(ticks["place"]), list(ticks["granularity"]))
        axes.set_xlim(-0.15, end + 0.15)
        axes.grid(True, axis="y", color=PALE)
        axes.set_ylabel("average accuracy, %")
    panels[-1].set_xlabel("granularity")
    handles = [Line2D([], [], color=GREY, linestyle=line, label=kind) for kind, line in LINES.items()
               if kind in set(frame["kind"])]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
