"""What coarser groups cost: average accuracy by granularity, and the points lost from the finest to the coarsest."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from r2q.report.averages import average_scores
from r2q.report.figures.style import GREY, PALE, WIDTH, quantizer_mark
from r2q.report.run import Run

CAPTION = (
    "Average accuracy in percent by granularity, for recipes that differ in nothing else; 95 % intervals as in the "
    "table of sizes. The number at the right end is the change from the finest to the coarsest."
)
COLUMNS = ["model", "family", "quantizer", "kind", "granularity", "place", "value", "low", "high", "lost"]
LINES: dict[str, Any] = {"weights": ":", "calibration": "--", "training": "-"}
ROW = 2.3
LABEL_ROOM = 0.045  # of the height: a line of a label


def data(run: Run, variant: str) -> pd.DataFrame:
    """A row per model, recipe without its granularity, and granularity; only what has several."""
    scores = run.scores[(run.scores["granularity"] != "") & ~run.scores["control"].fillna(False).astype(bool)]
    facts = scores.drop_duplicates("recipe").set_index("recipe")
    rows = average_scores(scores)
    if rows.empty:
        return pd.DataFrame(columns=COLUMNS)
    for name in ("quantizer", "kind", "granularity"):
        rows[name] = [str(facts[name][recipe]) for recipe in rows["recipe"]]
    rows["family"] = [_family(facts.loc[recipe]) for recipe in rows["recipe"]]
    order = sorted(set(rows["granularity"]), key=_width)
    rows["place"] = rows["granularity"].map(order.index)
    rows = rows[rows.groupby(["model", "family"])["granularity"].transform("nunique") > 1]
    rows = rows.sort_values(["model", "family", "place"], kind="stable")
    ends = rows.groupby(["model", "family"])["value"]
    rows["lost"] = ends.transform("last") - ends.transform("first")
    return rows[COLUMNS]


def _family(facts: pd.Series) -> str:
    parts = [facts["frame"] or "", facts["method"] if facts["kind"] == "calibration" else "", facts["quantizer"]]
    return " ".join(dict.fromkeys(part for part in parts if part))


def _width(granularity: str) -> float:
    return {"channel": 1e9, "tensor": 1e10}.get(granularity) or float(granularity[1:])


def draw(frame: pd.DataFrame) -> Figure:
    """A panel per model."""
    models = list(dict.fromkeys(frame["model"]))
    figure = Figure(figsize=(WIDTH, ROW + 0.9), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    names = frame.drop_duplicates("granularity").sort_values("place")
    for axes, model in zip(panels, models, strict=True):
        part, labels = frame[frame["model"] == model], []
        for family, rows in part.groupby("family", sort=False):
            first = rows.iloc[0]
            colour, line = quantizer_mark(str(first["quantizer"])).colour, LINES.get(str(first["kind"]), "-")
            axes.plot(rows["place"], rows["value"], color=colour, linestyle=line, marker="o", ms=3)
            axes.fill_between(rows["place"], rows["low"], rows["high"], color=colour, alpha=0.08, lw=0)
            last = rows.iloc[-1]
            if not math.isnan(last["lost"]):
                labels.append((float(last["value"]), float(last["place"]), f"{family} {last['lost']:+.1f}", colour))
        room, lowest = LABEL_ROOM * (axes.get_ylim()[1] - axes.get_ylim()[0]), -math.inf
        for value, place, text, colour in sorted(labels):  # moved up where two would overlap
            lowest = max(value, lowest + room)
            axes.annotate(text, (place, lowest), (4, -2), fontsize=5.5, textcoords="offset points", color=colour)
        axes.set_title(model)
        axes.set_xticks(list(names["place"]), list(names["granularity"]))
        axes.set_xlim(-0.2, frame["place"].max() + 0.9)
        axes.grid(True, axis="y", color=PALE)
    panels[0].set_ylabel("average accuracy, %")
    handles = [Line2D([], [], color=GREY, linestyle=line, label=kind) for kind, line in LINES.items()
               if kind in set(frame["kind"])]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
