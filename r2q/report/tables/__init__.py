"""The main table of a run, written three times and shown on the terminal."""

from __future__ import annotations

from pathlib import Path

from r2q.kept import write_atomic
from r2q.records import write_csv
from r2q.report.run import read_scores
from r2q.report.tables.latex import latex
from r2q.report.tables.render import csv_rows, markdown, terminal
from r2q.report.tables.summary import summarize


def table(scores: str | Path, out: str | Path, show: bool = False) -> None:
    """Write `main.csv`, `main.md` and `main.tex` into the folder `out`; `show` also prints a compact form.

    Raises FileNotFoundError or ValueError when `scores` is missing, lacks a column or holds nothing to show.
    """
    summary, out = summarize(read_scores(scores)), Path(out)
    columns, rows = csv_rows(summary)
    write_csv(out / "main.csv", columns, rows)
    write_atomic(out / "main.md", markdown(summary))
    write_atomic(out / "main.tex", latex(summary))
    if show:
        print(terminal(summary), end="")
