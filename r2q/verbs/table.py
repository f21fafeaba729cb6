"""write the main table as CSV, Markdown and LaTeX

r2q table --scores results/embedded/scores.csv --out results/embedded/tables --show
"""

from pathlib import Path
from typing import Annotated


def table(
    scores: Annotated[Path, "CSV", "what `collect` wrote"],
    out: Annotated[Path, "DIR", "where main.csv, main.md, main.tex go"],
    show: Annotated[bool, "", "also print the table"] = False,
) -> None:
    from r2q.report.table import table

    table(scores, out, show)
