"""show paired differences between two runs

r2q compare results/reference/scores.csv results/embedded/scores.csv --out compare.csv
"""

from pathlib import Path
from typing import Annotated


def compare(
    a: Annotated[Path, "A", "a scores.csv"],
    b: Annotated[Path, "B", "another scores.csv"],
    /,
    out: Annotated[Path | None, "CSV", "also write the differences there"] = None,
) -> None:
    from r2q.report.compare import compare

    compare(a, b, out)
