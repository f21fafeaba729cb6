"""The table that sets ours beside what others published."""

from __future__ import annotations

import pandas as pd

from r2q.report.published import beside
from r2q.report.run import Run
from r2q.report.tables.render import show_spread
from r2q.report.tables.sheet import Entry, Sheet
from r2q.report.tables.summary import Cell, Column, show

NOTES = [
    "The same model, method, bits, group, task, metric, window and number of examples; the harness is the source's.",
    "±: standard error over the items, where it is known.",
    "Disputed: sources give different values for the same definition; all are shown.",
]


def published(run: Run) -> Sheet | None:
    """Ours beside what others published."""
    body: list[list[Entry | str]] = []
    for pair in beside(run):
        ours, theirs = pair.ours, pair.published
        column = Column(ours["task"], ours["metric"], True, bool(ours["higher_is_better"]))
        body.append([
            ours["model"], ours["recipe"], column.name, _entry(ours["value"], ours["stderr"], column),
            _entry(theirs["value"], theirs["stderr"], column), "yes" if theirs["conflict"] else "",
            theirs["source"], theirs["harness"], theirs["note"],
        ])  # fmt: skip
    head = ["model", "recipe", "number", "ours", "published", "disputed", "source", "harness", "note"]
    return Sheet("published", "Ours beside published numbers", head, body, NOTES, left=(0, 1, 2, 6, 7, 8))


def _entry(value: float, stderr: float, column: Column) -> Entry:
    if pd.isna(value):
        return Entry("–")
    cell = Cell(value, None if pd.isna(stderr) else stderr)
    return Entry(show(value, column), show_spread(cell, column), value)
