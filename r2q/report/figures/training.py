"""The training figure: gradient norm and loss by step, one line a quantizer, seeds shaded, on shared axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from r2q.report.scores import write_csv
from r2q.report.figures.style import PALE, WIDTH, recipe_mark, save, style
from r2q.report.training import read_steps

MEASURES = {"gradient_norm": "gradient norm", "loss": "loss"}
COLUMNS = ["model", "frame", "granularity", "quantizer", "step", "measure", "mean", "low", "high", "seeds"]
ROW = 1.45  # inches


def plot(steps: str | Path, out: str | Path) -> None:
    """Draw a run's training.csv as `<out>.png` and `<out>.svg`; what is drawn is written to `<out>.csv`.

    Raises FileNotFoundError or ValueError when the CSV is missing, lacks a column, or has no step.
    """
    frame = prepare(read_steps(steps))
    if frame.empty:
        raise ValueError(f"{steps} has no training steps: no recipe of the run trained, or all failed at once")
    write_csv(f"{out}.csv", COLUMNS, [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")])
    with style():
        save(draw(frame), out)


def prepare(steps: pd.DataFrame) -> pd.DataFrame:
    """Mean and range over seeds of both measures, step by step."""
    steps = steps[steps["step"] > 0]
    long = steps.melt(
        ["model", "frame", "granularity", "quantizer", "step", "seed"], list(MEASURES), "measure", "value"
    ).dropna(subset="value")
    keys = ["model", "frame", "granularity", "quantizer", "step", "measure"]
    return long.groupby(keys, sort=False, as_index=False).agg(
        mean=("value", "mean"), low=("value", "min"), high=("value", "max"), seeds=("seed", "nunique")
    )


def draw(frame: pd.DataFrame) -> Figure:
    """A row for each model and frame; for each granularity the gradient norm and the loss."""
    rows = list(dict.fromkeys(zip(frame["model"], frame["frame"], strict=True)))
    granularities = list(dict.fromkeys(frame["granularity"]))
    figure = Figure(figsize=(WIDTH, ROW * len(rows) + 0.75), layout="constrained")
    axes = figure.subplots(len(rows), 2 * len(granularities), squeeze=False, sharex=True)
    several = len({name for _, name in rows}) > 1
    for i, (model, name) in enumerate(rows):
        for j, granularity in enumerate(granularities):
            for k, (measure, label) in enumerate(MEASURES.items()):
                ax = axes[i, 2 * j + k]
                here = (frame["model"] == model) & (frame["frame"] == name) & (frame["granularity"] == granularity)
                _lines(ax, frame[here & (frame["measure"] == measure)])
                if i == 0:
                    ax.set_title(f"{granularity}: {label}")
                if i == len(rows) - 1:
                    ax.set_xlabel("step")
        axes[i, 0].set_ylabel(f"{model}\n{name}" if several else model)
        for k in range(2):  # fine and coarse on one scale
            _share(list(axes[i, k::2]))
    used = list(dict.fromkeys(frame["quantizer"]))
    handles = [Line2D([], [], **_line(name), label=name) for name in used]
    seeds = int(frame["seeds"].max())
    title = "loss per token; gradient norm before clipping"
    title += f"; shade: range over {seeds} seeds, where there are several" if seeds > 1 else ""
    figure.legend(handles=handles, loc="outside lower center", ncols=len(used), title=title, title_fontsize=7)
    return figure


def _line(quantizer: str) -> dict[str, Any]:
    mark = recipe_mark(f"{quantizer}-g64")
    return {"color": mark.colour, "linestyle": mark.line, "linewidth": 1.1}


def _lines(axes: Axes, part: pd.DataFrame) -> None:
    for quantizer, rows in part.groupby("quantizer", sort=False):
        rows = rows.sort_values("step")
        look = _line(str(quantizer))
        axes.plot(rows["step"], rows["mean"], **look)
        if (rows["seeds"] > 1).any():
            axes.fill_between(rows["step"], rows["low"], rows["high"], color=look["color"], alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    plain_ticks(axes)
    axes.grid(True, axis="y", color=PALE)
    if part.empty:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", fontsize=7)


def plain_ticks(axes: Axes) -> None:
    """Round numbers on a logarithmic axis, written out."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _share(row: list[Axes]) -> None:
    drawn = [axes for axes in row if axes.lines]
    limits = [axes.get_ylim() for axes in drawn]
    for axes in drawn:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
