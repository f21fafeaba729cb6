"""write every table of a run as CSV, Markdown and LaTeX

r2q table --results results/embedded --out results/embedded/tables --show
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Published, Results


def table(
    results: Results,
    out: Annotated[Path, "DIR", "where main.csv, main.md, main.tex and the others go"],
    show: Annotated[bool, "", "also print the main table"] = False,
    published: Published = None,
) -> None:
    from r2q.report.tables import table

    table(results, out, show, published)
