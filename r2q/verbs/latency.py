"""time the packed checkpoints of a run that `latency` of its config names, beside their decoded twins

r2q latency --config results/embedded/config.yaml --results results/embedded --out results/embedded/latency.csv
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Config, Results


def latency(config: Config, results: Results, out: Annotated[Path, "CSV", "where the times go"]) -> None:
    from r2q.bench import latency

    latency(config, results, out)
