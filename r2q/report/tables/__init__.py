"""The tables of a run: every one as CSV, Markdown and LaTeX, and the main one on the terminal."""

from dataclasses import replace
from pathlib import Path

from r2q.intact import sign
from r2q.report.run import Run
from r2q.report.tables.paper import TABLES
from r2q.report.tables.render import terminal
from r2q.report.tables.sheet import Sheet, write
from r2q.report.tables.summary import summarize

ENDINGS = ("csv", "md", "tex")


def table(results: str | Path, out: str | Path, show: bool = False, published: str | Path | None = None) -> None:
    """Write every table of `TABLES` into the folder `out`; `show` also prints the main one in a compact form.

    `published` is the folder of published numbers; without, that of this repository. A table for which the run has no
    rows is a file that says so.

    Raises FileNotFoundError or ValueError when a CSV of the run is missing, lacks a column or holds nothing to show.
    """
    run = Run(results, published)
    for name, make in TABLES.items():
        title, sheet = (make.__doc__ or name).strip(), make(run)
        if sheet is None or not sheet.body:
            sheet = Sheet(name, title.rstrip("."), ["model"], [], ["This run has no rows for this table."])
        write(replace(sheet, notes=[*run.sources, *sheet.notes]), out)
    sign(Path(out, "tables.sha256"), [Path(out, f"{name}.{ending}") for name in TABLES for ending in ENDINGS])
    if show:
        print(terminal(summarize(run.scores)), end="")
