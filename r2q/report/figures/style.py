"""How every figure looks: fonts, sizes, and one colour, marker and line for each recipe wherever it appears.

Figures are as wide as a column of a paper, and no letter is smaller than 6 points at that width. Colours are those of
Okabe and Ito, told apart by the colour-blind, then of Tol; the marker tells quantizers apart in grey too. Files have
the same bytes on every run with the same library versions: no dates, fixed ids, the fonts that come with matplotlib.
"""

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
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from r2q.kept import write_atomic
from r2q.report.figures.labels import OF_A_LEGEND, OF_TWO_PANELS, broken, lines_of

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
INDIGO, WINE, OLIVE, PLUM, BROWN, TEAL = "#332288", "#882255", "#999933", "#AA4499", "#7A4A1E", "#2F8F9D"
GREY, PALE = "#767676", "#D9D9D9"
WIDTH = 3.5  # inches: a column of a paper, so that font sizes below are those in print
SMALLEST = 6  # points, of a letter
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "text.parse_math": False,  # $ in a name begins no formula
    "axes.titlesize": 7,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 3,
    "axes.labelpad": 2,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": SMALLEST,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
    "legend.labelspacing": 0.3,
    "lines.linewidth": 1.0,
    "lines.markersize": 4,
    "grid.color": PALE,
    "grid.linewidth": 0.5,
    "figure.dpi": 300,  # as saved: letters have other widths at another resolution
    "savefig.dpi": 300,
    "svg.hashsalt": "r2q",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Mark:
    """How one quantizer is drawn."""

    colour: str
    marker: str
    line: Any = "-"


_QUANTIZERS = {  # colour, marker, line of what the levels are, wherever it stands
    "full_precision": (BLACK, "*", "-"),
    "random_codes": (GREY, "x", ":"),
    "rtn": (ORANGE, "s", "--"),
    "rtn-clip": (RED, "D", "-."),
    "r2q": (BLUE, "o", "-"),
    "r2q-refit": (SKY, "^", "--"),
    "r2q-alternating": (GREEN, "v", "-."),
    "r2q-optimal": (PURPLE, "P", ":"),
    "hqq": (WINE, "h", "--"),
    "llm_qat": (OLIVE, "<", "-."),
    "awq": (PLUM, ">", "--"),
    "bitdistiller_clip": (BROWN, "d", "-."),
    "omniquant_lwc": (INDIGO, "X", ":"),
    "efficientqat_block": (TEAL, "p", "--"),
}
_SPARE_COLOURS = (PURPLE, WINE, OLIVE, INDIGO, BROWN, TEAL)  # of any other method
_SPARE_MARKERS = ("H", "8", "$+$", "$o$", "$z$", "$u$")
_SPARE_LINES = ("-", "--", "-.", ":")


def quantizer_mark(quantizer: str) -> Mark:
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
    dashes = {"": line, "clipped start)": (0, (6, 1))}
    return Mark(colour, marker, dashes.get(start, (0, (1, 0.7))))


def quantizer_line(quantizer: str) -> dict[str, Any]:
    """Keyword arguments of a line with a few of its quantizer's markers."""
    mark = quantizer_mark(quantizer)
    return {"color": mark.colour, "linestyle": mark.line, "marker": mark.marker, "markersize": 3, "markevery": 0.2}


def quantizer_legend(figure: Figure, quantizers: Iterable[str], *more: Line2D) -> None:
    """Below the figure what each line is, in two columns; a start stands on a line of its own."""
    lines = [Line2D([], [], **quantizer_line(name) | {"markevery": None}, label=_in_legend(name))
             for name in dict.fromkeys(quantizers)]  # fmt: skip
    figure.legend(handles=[*lines, *more], loc="outside lower center", ncols=2)


def _in_legend(quantizer: str) -> str:
    return "\n".join(broken(part, OF_A_LEGEND) for part in quantizer.replace(" (", "\n(").split("\n"))


def plain_ticks(axes: Axes) -> None:
    """Round numbers on a logarithmic axis whose limits are set, written out."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def share_y(row: Iterable[Axes]) -> None:
    """One scale for all axes of a row that have something on them."""
    drawn = [axes for axes in row if axes.lines]
    limits = [axes.get_ylim() for axes in drawn]
    for axes in drawn:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def training_panels(
    frame: pd.DataFrame,
    titles: Mapping[str, str],
    x: str,
    label: str,
    lines: Callable[[Axes, pd.DataFrame, dict[str, Any]], None],
) -> Figure:
    """A row for each model, frame and granularity that was run; in it a panel for each measure of `titles`.

    Panels of a measure share their scale within a model and frame. `lines` draws the rows of a quantizer, in the order
    of the column `x`, with its look; where there are several seeds, the range from `low` to `high` is shaded.
    """
    keys = ["model", "frame", "granularity"]
    rows = list(frame.groupby(keys, sort=False))
    quantizers = frame["quantizer"].unique()
    legend = 0.085 * len(quantizers) * max(2, lines_of(map(_in_legend, quantizers)))  # inches
    figure = Figure(figsize=(WIDTH, 1.25 * len(rows) + 0.2 + legend), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False, sharex="row")
    for i, (names, part) in enumerate(rows):
        seeds = int(part["seeds"].max())
        title = broken(", ".join(map(str, names)) + f", {seeds} seed{'s' * (seeds > 1)}", OF_TWO_PANELS)
        axes[i, 0].set_title(title, pad=11).set_in_layout(False)  # it reaches over the other panel
        axes[i, -1].set_title("\n".join(" " for _ in title.split("\n")), pad=11)
        for ax, (measure, title) in zip(axes[i], titles.items(), strict=True):
            for quantizer, of_quantizer in part[part["measure"] == measure].groupby("quantizer", sort=False):
                points, look = of_quantizer.sort_values(x), quantizer_line(str(quantizer))
                lines(ax, points, look)
                if (points["seeds"] > 1).any():
                    ax.fill_between(points[x], points["low"], points["high"], color=look["color"], alpha=0.2, lw=0)
            ax.set_yscale("log")
            ax.grid(True, axis="y", color=PALE)
            ax.text(0, 1.03, title, transform=ax.transAxes, va="bottom", fontsize=SMALLEST, in_layout=False)
            if i == len(rows) - 1:
                ax.set_xlabel(label)
    together: dict[Any, list[int]] = {}
    for i, (names, _) in enumerate(rows):
        together.setdefault(names[:2], []).append(i)
    for places in together.values():
        for column in range(len(titles)):
            share_y(axes[places, column])
    for ax in axes.flat:
        plain_ticks(ax)
    return figure


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
