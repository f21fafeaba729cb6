"""draw the distance to full precision before and after training

r2q figure-drift --layers results/embedded/drift.csv --out figures/embedded/drift
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Stem


def figure_drift(layers: Annotated[Path, "CSV", "what `collect-training` wrote"], out: Stem) -> None:
    from r2q.report.figure import drift

    drift(layers, out)
