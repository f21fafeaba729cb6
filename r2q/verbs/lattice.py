"""write where recipes put every weight of one group, for the figures lattice and mechanism

r2q lattice --config results/embedded/config.yaml --results results/embedded --out results/embedded/lattice.csv
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Config, Results


def lattice(config: Config, results: Results, out: Annotated[Path, "CSV", "where the points go"]) -> None:
    from r2q.models.inspect import lattice

    lattice(config, results, out)
