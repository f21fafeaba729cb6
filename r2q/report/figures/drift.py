"""The drift figure: distance of the quantized weights to full precision, and how far training moved the latent ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from r2q.report.scores import write_csv
from r2q.report.figures.style import GREY, PALE, WIDTH, recipe_mark, save, style
from r2q.report.training import read_drift
from r2q.report.figures.training import plain_ticks

DEPTHS = ["0", "1", "-2", "-1", "head"]  # as in the paper: the first two blocks, the last two, the head
NAMES = {"0": "0", "1": "1", "-2": "−2", "-1": "−1", "head": "head"}
KINDS = {  # columns before and after training; the drawn ones have a title
    "quantized": ("quantized_before", "quantized_after"),
    "latent": ("latent_before", "latent_after"),
    "moved": (None, "latent_moved"),
}
TITLES = {"quantized": "quantized", "moved": "moved"}
COLUMNS = ["model", "frame", "granularity", "quantizer", "depth", "kind", "before", "after", "low", "high", "seeds"]
ROW = 1.5  # inches


def plot(drift: str | Path, out: str | Path) -> None:
    """Draw a run's drift.csv as `<out>.png` and `<out>.svg`; what is drawn is written to `<out>.csv`.

    Raises FileNotFoundError or ValueError when the CSV is missing, lacks a column, or has no layer.
    """
    frame = prepare(read_drift(drift))
    if frame.empty:
        raise ValueError(f"{drift} has no layers: no recipe of the run trained to its end")
    write_csv(f"{out}.csv", COLUMNS, [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")])
    with style():
        save(draw(frame), out)


def prepare(drift: pd.DataFrame) -> pd.DataFrame:
    """Squared distance over squared weights of each block: mean over seeds, and their range after training."""
    unit = ["model", "frame", "granularity", "quantizer", "depth", "seed"]
    parts = []
    for kind, columns in KINDS.items():
        part = drift[unit].copy()
        part["kind"] = kind
        for when, column in zip(("before", "after"), columns, strict=True):
            part[when] = 0.0 if column is None else drift[column] * drift["weights"]
        part["power"] = drift["power"] * drift["weights"]
        parts.append(part.dropna(subset=["after"]))
    sums = pd.concat(parts).groupby([*unit, "kind"], sort=False, as_index=False).sum()
    for when in ("before", "after"):
        sums[when] /= sums["power"]
    found = sums.groupby([*unit[:-1], "kind"], sort=False, as_index=False).agg(
        before=("before", "mean"),
        low=("after", "min"),
        high=("after", "max"),
        after=("after", "mean"),
        seeds=("seed", "nunique"),
    )
    return found[found["depth"].isin(DEPTHS)].reset_index(drop=True)[COLUMNS]


def draw(frame: pd.DataFrame) -> Figure:
    """A row for each model and frame; quantized weights and moved latent ones, fine and coarse."""
    rows = list(dict.fromkeys(zip(frame["model"], frame["frame"], strict=True)))
    granularities = list(dict.fromkeys(frame["granularity"]))
    quantizers = list(dict.fromkeys(frame["quantizer"]))
    figure = Figure(figsize=(WIDTH, ROW * len(rows) + 0.85), layout="constrained")
    axes = figure.subplots(len(rows), 2 * len(granularities), squeeze=False, sharex=True)
    several = len({name for _, name in rows}) > 1
    for i, (model, name) in enumerate(rows):
        for k, (kind, label) in enumerate(TITLES.items()):
            of_kind = frame[(frame["model"] == model) & (frame["frame"] == name) & (frame["kind"] == kind)]
            for j, granularity in enumerate(granularities):
                ax = axes[i, k * len(granularities) + j]
                part = of_kind[of_kind["granularity"] == granularity]
                _points(ax, part, quantizers)
                if i == 0:
                    ax.set_title(f"{label}, {granularity}")
            row = [ax for ax in axes[i, k * len(granularities) : (k + 1) * len(granularities)] if ax.lines]
            limits = [ax.get_ylim() for ax in row]
            for ax in row:
                ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        axes[i, 0].set_ylabel(f"{model}\n{name}" if several else model)
    for ax in axes[-1]:
        ax.set_xlabel("block")
    handles = [Line2D([], [], **_marker(name, True), label=name) for name in quantizers]
    title = (
        "quantized: squared distance of the stored weights to full precision; open before training, filled after\n"
        "moved: squared distance of the latent weights from where training started; both over squared weights"
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(quantizers), title=title, title_fontsize=7)
    return figure


def _marker(quantizer: str, filled: bool) -> dict[str, Any]:
    mark = recipe_mark(f"{quantizer}-g64")
    face = mark.colour if filled else "white"
    return {"color": mark.colour, "marker": mark.marker, "linestyle": "none", "markerfacecolor": face, "markersize": 4}


def _points(axes: Axes, part: pd.DataFrame, quantizers: list[str]) -> None:
    width = 0.62 / max(1, len(quantizers))
    for n, quantizer in enumerate(quantizers):
        rows = part[part["quantizer"] == quantizer].set_index("depth").reindex(DEPTHS)
        shift = (n - (len(quantizers) - 1) / 2) * width
        for place, row in enumerate(rows.to_dict("records")):
            x = place + shift
            before, after, low, high = (float(row[key]) for key in ("before", "after", "low", "high"))
            if before > 0:
                axes.plot([x, x], [before, after], color=GREY, linewidth=0.7, zorder=1)
                axes.plot([x], [before], **_marker(quantizer, False))
            if after > 0:
                axes.plot([x, x], [low, high], color=_marker(quantizer, True)["color"], linewidth=2.2)
                axes.plot([x], [after], **_marker(quantizer, True))
    axes.set_yscale("log")
    plain_ticks(axes)
    axes.grid(True, axis="y", color=PALE)
    axes.set_xticks(range(len(DEPTHS)), [NAMES[depth] for depth in DEPTHS])
    axes.set_xlim(-0.6, len(DEPTHS) - 0.4)
