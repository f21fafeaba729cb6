"""write one page that shows a run, or several: an HTML file that needs no network

r2q page results/embedded --out results/embedded/report.html
"""

from pathlib import Path
from typing import Annotated


def page(
    runs: Annotated[list[Path], "RUN", "folders results/<run>"],
    /,
    out: Annotated[Path, "HTML", "where the page goes"],
    figures: Annotated[Path | None, "DIR", "the drawn figures of a single run; figures/<run> without"] = None,
) -> None:
    from r2q.report.page import page

    page(runs, out, figures)
