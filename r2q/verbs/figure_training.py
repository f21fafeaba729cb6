"""draw gradient norm and loss by training step

r2q figure-training --steps results/embedded/training.csv --out figures/embedded/training
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Stem


def figure_training(steps: Annotated[Path, "CSV", "what `collect-training` wrote"], out: Stem) -> None:
    from r2q.report.figure import training

    training(steps, out)
