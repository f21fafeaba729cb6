"""Names in figures, where there is room for them: none covers a mark or another name."""

import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont, get_font
from matplotlib.transforms import Bbox, BboxBase

LETTERS = 20  # of a line of a name; a longer name is broken at a hyphen
FEW = 4  # letters that are no reason to break
OF_A_ROW = 36  # of a name beside a row of a heat map
OF_A_TITLE = 54  # of a title as wide as a figure
OF_A_LEGEND = 26  # of one of two columns
OF_TWO_PANELS = 48  # of a title that begins at the left of two panels, or at the only one, and goes to the right end
SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
DISTANCES = (3, 6, 10, 15, 21, 28)  # points from a mark to its name
GAP = 1  # points between names
NEAR = 4  # points up to which a name needs no line to its mark


def name_points(
    axes: Axes, names: Sequence[tuple[float, float, str]], marks: Sequence[Bbox], lines: Sequence[Bbox]
) -> None:
    """Write names beside their points, the first ones first; one that finds no room is left out.

    Args:
        axes: of a figure whose layout is done.
        names: x and y in data, and what to write.
        marks: boxes in pixels that no name may cover.
        lines: boxes in pixels that names cover only where there is no other room.
    """
    pixels = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    inside, taken = axes.get_window_extent(), list(marks)
    for x, y, text in names:
        at = axes.transData.transform((x, y))
        written = axes.annotate(broken(text), (x, y), fontsize=6, linespacing=1.0, in_layout=False, zorder=4)
        size = np.add(written.get_window_extent().size, GAP * pixels)
        boxes = [(d, _box(at, size, side, d * pixels)) for d in DISTANCES for side in SIDES]
        boxes = [(d, box) for d, box in boxes if _within(box, inside) and not box.count_overlaps(taken)]
        free = [(d, box) for d, box in boxes if not box.count_overlaps(lines)] or boxes
        if not free:
            written.remove()
            continue
        distance, box = free[0]
        taken.append(box)
        written.xyann = tuple(axes.transData.inverted().transform((box.x0, box.y0)))
        written.set_verticalalignment("bottom")
        if distance > NEAR:
            end = axes.transData.inverted().transform(
                (min(max(at[0], box.x0), box.x1), min(max(at[1], box.y0), box.y1))
            )
            axes.plot([x, end[0]], [y, end[1]], color=written.get_color(), lw=0.4, zorder=2, scalex=False, scaley=False)


def _within(box: Bbox, outer: BboxBase) -> bool:
    return all(map(outer.containsx, (box.x0, box.x1))) and all(map(outer.containsy, (box.y0, box.y1)))


def _box(at: np.ndarray, size: np.ndarray, side: tuple[int, int], distance: float) -> Bbox:
    """Where a name of this size lies on a side of a point."""
    low = [a + s * distance - (0, n / 2, n)[(1, 0, -1).index(s)] for a, n, s in zip(at, size, side, strict=True)]
    return Bbox.from_bounds(low[0], low[1], size[0], size[1])


def broken(name: str, letters: int = LETTERS) -> str:
    """A name as text of a figure, in lines of so many letters, broken at spaces and hyphens, else anywhere; a few more
    stay in a line."""
    name = written(name)
    if len(name) <= letters + FEW:
        return name
    lines = textwrap.wrap(name, letters, break_long_words=False)
    return "\n".join(line if len(line) <= letters + FEW else textwrap.fill(line, letters) for line in lines)


def written(name: str) -> str:
    """A name as text of a figure: what its font lacks is an escape, \\u4efb."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in name)


def lines_of(texts: Iterable[str]) -> int:
    """Lines of the longest of several texts."""
    return max((text.count("\n") + 1 for text in texts), default=1)


def apart(places: Sequence[float], room: float, low: float, high: float) -> list[float]:
    """Places moved apart, in their order, for neighbours to be `room` apart and all within `low` and `high`."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for rank, place in enumerate(moved):
        moved[rank] = max(place, low if rank == 0 else moved[rank - 1] + room)
    for rank in reversed(range(len(moved))):
        moved[rank] = min(moved[rank], high if rank == len(moved) - 1 else moved[rank + 1] - room)
    return [place for _, place in sorted(zip(order, moved, strict=True))]
