"""How every figure looks: fonts, sizes, and one colour, marker and line for each recipe wherever it appears.

Colours are those of Okabe and Ito, told apart by the colour-blind; marker and line style tell recipes apart in grey
too. Granularity is the filling of the marker: groups are filled, other granularities hollow. Files have the same bytes
on every run with the same library versions: no dates, fixed ids, the fonts that come with matplotlib.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from r2q.kept import write_atomic

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY, PALE = "#767676", "#D9D9D9"
WIDTH = 7.2  # inches: a page's text width, so that font sizes below are those in print
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "grid.color": PALE,
    "grid.linewidth": 0.5,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.hashsalt": "r2q",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Mark:
    """How one recipe is drawn."""

    colour: str
    marker: str
    line: Any = "-"
    filled: bool = True

    def plot(self) -> dict[str, Any]:
        """Keyword arguments of `Axes.plot`."""
        face = self.colour if self.filled else "white"
        return {
            "color": self.colour, "marker": self.marker, "linestyle": self.line, "markerfacecolor": face,
            "markeredgecolor": self.colour, "markeredgewidth": 1.0,
        }  # fmt: skip


_QUANTIZERS = {  # colour, marker, line of what the levels are, wherever it stands
    "full_precision": (BLACK, "*", "-"),
    "random_codes": (GREY, "x", ":"),
    "rtn": (ORANGE, "s", "--"),
    "rtn-clip": (RED, "D", "-."),
    "r2q": (BLUE, "o", "-"),
    "r2q-refit": (SKY, "^", "--"),
    "r2q-alternating": (GREEN, "v", "-."),
    "r2q-optimal": (PURPLE, "P", ":"),
}
_SPARE_COLOURS = (PURPLE, GREEN, RED, SKY, ORANGE)  # blue is R2Q's alone, yellow is too pale on white
_SPARE_MARKERS = ("h", "<", ">", "p", "X", "d")
_SPARE_LINES = ("-", "--", "-.", ":")


def quantizer_mark(quantizer: str, filled: bool = True) -> Mark:
    """The mark of a quantizer, from what it is (`r2q-alternating`), so that it is the same in every figure and run.

    A start in brackets, `rtn (clipped start)`, changes only the line.
    """
    bare, _, start = quantizer.partition(" (")
    if bare in _QUANTIZERS:
        colour, marker, line = _QUANTIZERS[bare]
    else:
        number = int.from_bytes(hashlib.sha256(bare.encode()).digest()[:4], "big")
        colour = _SPARE_COLOURS[number % len(_SPARE_COLOURS)]
        marker = _SPARE_MARKERS[number // 64 % len(_SPARE_MARKERS)]
        line = _SPARE_LINES[number // 4096 % len(_SPARE_LINES)]
    return Mark(colour, marker, (0, (5, 1)) if start else line, filled)


def quantizer_line(quantizer: str) -> dict[str, Any]:
    """Keyword arguments of a line without markers."""
    mark = quantizer_mark(quantizer)
    return {"color": mark.colour, "linestyle": mark.line, "linewidth": 1.2}


def plain_ticks(axes: Axes) -> None:
    """Round numbers on a logarithmic axis, written out."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def share_y(row: Iterable[Axes]) -> None:
    """One scale for all axes of a row that have something on them."""
    drawn = [axes for axes in row if axes.lines]
    limits = [axes.get_ylim() for axes in drawn]
    for axes in drawn:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def training_panels(
    frame: pd.DataFrame, titles: Mapping[str, str], x: str, inches: tuple[float, float], lines: Callable[[Axes, pd.DataFrame], None]
) -> tuple[Figure, list[Axes]]:
    """A row for each model and frame; in it a panel for each measure of `titles` and granularity, on one scale a measure.

    Returns:
        the figure, `inches` high for each row and for the rest, and the leftmost panel of every row, labelled with its
        model, and with its frame where there are several.
    """
    rows = list(dict.fromkeys(zip(frame["model"], frame["frame"], strict=True)))
    granularities = list(dict.fromkeys(frame["granularity"]))
    figure = Figure(figsize=(WIDTH, inches[0] * len(rows) + inches[1]), layout="constrained")
    axes = figure.subplots(len(rows), len(titles) * len(granularities), squeeze=False, sharex="row")
    several = len({name for _, name in rows}) > 1
    for i, (model, name) in enumerate(rows):
        for k, (measure, title) in enumerate(titles.items()):
            row = axes[i, k * len(granularities) : (k + 1) * len(granularities)]
            for ax, granularity in zip(row, granularities, strict=True):
                here = (frame["model"] == model) & (frame["frame"] == name) & (frame["granularity"] == granularity)
                lines(ax, frame[here & (frame["measure"] == measure)])
                if i == 0:
                    ax.set_title(f"{title}\n{granularity}")
                if i == len(rows) - 1:
                    ax.set_xlabel(x)
            share_y(row)
            for ax in row[1:]:
                ax.tick_params(labelleft=False)
        axes[i, 0].set_ylabel(f"{model}\n{name}" if several else model)
    return figure, list(axes[:, 0])


def save(figure: Figure, out: str | Path) -> None:
    """Write `<out>.png` and `<out>.svg`, with the style that `with style():` set while drawing."""
    metadata: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    for kind, fields in metadata.items():
        content = io.BytesIO()
        figure.savefig(content, format=kind, metadata=fields)
        write_atomic(f"{out}.{kind}", content.getvalue())


def style() -> Any:
    """A context in which matplotlib's defaults are its own plus `RC`, whatever the user's matplotlibrc says."""
    settings: dict[Any, Any] = {**mpl.rcParamsDefault}
    return mpl.rc_context(settings | RC | {"backend": "agg"})
