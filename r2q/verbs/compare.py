"""show what differs between two runs, or between two recipes of one run, and whether that is more than noise

r2q compare results/reference/smollm2 results/smollm2
  r2q compare results/embedded --recipes rtn-g64 r2q-g64 --format markdown
exit status: 0 nothing differs by more than noise, 1 something does, 2 an error, 3 some numbers cannot be compared
"""

from pathlib import Path
from typing import Annotated, Literal


def compare(
    a: Annotated[Path, "A", "a run's folder or its scores.csv"],
    b: Annotated[Path | None, "B", "another one"] = None,
    /,
    recipes: Annotated[list[str], "RECIPE", "two recipes of the run A"] = [],  # noqa: B006
    format: Annotated[
        Literal["text", "csv", "json", "markdown", "html"], "FORMAT", "text, csv, json, markdown, html"
    ] = "text",
    out: Annotated[Path | None, "FILE", "write it there"] = None,
    fail_on_regression: Annotated[bool, "", "exit with 1 only where B is worse"] = False,
) -> int:
    from r2q.report.compare import compare

    return compare(a, b, recipes, format, out, fail_on_regression)
