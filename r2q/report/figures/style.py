"""How every figure looks: fonts, sizes, and one colour, marker and line for each recipe wherever it appears.

Colours are those of Okabe and Ito, told apart by the colour-blind; marker and line style tell recipes apart in grey
too. Granularity is the filling of the marker: groups are filled, other granularities hollow. Files have the same bytes
on every run with the same library versions: no dates, fixed ids, the fonts that come with matplotlib.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

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
    line: str = "-"
    filled: bool = True

    def plot(self) -> dict[str, Any]:
        """Keyword arguments of `Axes.plot`."""
        face = self.colour if self.filled else "white"
        return {
            "color": self.colour, "marker": self.marker, "linestyle": self.line, "markerfacecolor": face,
            "markeredgecolor": self.colour, "markeredgewidth": 1.0,
        }  # fmt: skip


_FAMILIES = {  # a recipe without its granularity: colour, marker, line
    "full-precision": (BLACK, "*", "-"),
    "random-codes": (GREY, "x", ":"),
    "rtn": (ORANGE, "s", "--"),
    "rtn-clip": (RED, "D", "-."),
    "rtn-unclipped": (PURPLE, "p", ":"),
    "r2q": (BLUE, "o", "-"),
    "r2q-refit": (SKY, "^", "--"),
    "r2q-alternating": (GREEN, "v", "-."),
    "r2q-optimal": (PURPLE, "P", ":"),
}
_SPARE_COLOURS = (PURPLE, GREEN, RED, SKY, ORANGE)  # blue is R2Q's alone, yellow is too pale on white
_SPARE_MARKERS = ("h", "<", ">", "p", "X", "d")
_SPARE_LINES = ("-", "--", "-.", ":")
_GRANULARITY = re.compile(r"-(g\d+|channel|tensor)$")


def recipe_mark(recipe: str) -> Mark:
    """The mark of a recipe, from its name alone, so that it is the same in every figure and every run."""
    granularity = _GRANULARITY.search(recipe)
    family = _GRANULARITY.sub("", recipe).replace("_", "-")
    if family in _FAMILIES:
        colour, marker, line = _FAMILIES[family]
    else:
        number = int.from_bytes(hashlib.sha256(family.encode()).digest()[:4], "big")
        colour = _SPARE_COLOURS[number % len(_SPARE_COLOURS)]
        marker = _SPARE_MARKERS[number // 64 % len(_SPARE_MARKERS)]
        line = _SPARE_LINES[number // 4096 % len(_SPARE_LINES)]
    return Mark(colour, marker, line, granularity is None or granularity[1].startswith("g"))


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
