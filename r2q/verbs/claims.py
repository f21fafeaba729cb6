"""hold the paper's claims about training against a run's numbers

r2q claims --steps results/embedded/training.csv --drift results/embedded/drift.csv \\
    --scores results/embedded/scores.csv --out results/embedded/tables/claims
"""

from pathlib import Path
from typing import Annotated


def claims(
    steps: Annotated[Path, "CSV", "training.csv of the run"],
    drift: Annotated[Path, "CSV", "drift.csv of the run"],
    scores: Annotated[Path, "CSV", "scores.csv of the run"],
    out: Annotated[Path, "STEM", "path without .csv, .md"],
) -> None:
    from r2q.report.claims import claims

    claims(steps, drift, scores, out)
