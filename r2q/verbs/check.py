"""hold texts and tasks against a model, before its units are evaluated

r2q check --config results/embedded/config.yaml --model mini-llama --out results/embedded/mini-llama/checked.json
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Config, Model


def check(config: Config, model: Model, out: Annotated[Path, "JSON", "where the findings go"]) -> None:
    from r2q.evaluation.before import check

    check(config, model, out)
