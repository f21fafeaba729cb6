"""hold full precision against published numbers, before any other row is trusted

r2q controls --results results/embedded --out results/embedded/tables/controls.csv
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Published, Results


def controls(
    results: Results, out: Annotated[Path, "CSV", "where both numbers go"], published: Published = None
) -> None:
    from r2q.report.controls import controls

    controls(results, out, published)
