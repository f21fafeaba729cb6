"""draw the relative weight error by layer and recipe

r2q figure-weight-error --layers results/embedded/layers.csv --out figures/embedded/weight_error
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Stem


def figure_weight_error(layers: Annotated[Path, "CSV", "what `collect` wrote"], out: Stem) -> None:
    from r2q.report.figure import weight_error

    weight_error(layers, out)
