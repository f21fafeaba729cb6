"""keep what the full-precision model makes of held-out text, for the distance of every unit to it

r2q reference --config results/embedded/config.yaml --prepared results/embedded/mini-llama/prepared.json \\
    --model mini-llama --out results/embedded/mini-llama/reference.safetensors
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Config, Model, Prepared


def reference(
    config: Config,
    prepared: Prepared,
    model: Model,
    out: Annotated[Path, "FILE", "where the distributions go (.safetensors)"],
) -> None:
    from r2q.evaluation.fidelity import reference

    reference(config, prepared, model, out)
