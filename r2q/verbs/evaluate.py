"""score a packed checkpoint, reading nothing but its folder

r2q evaluate --config results/embedded/config.yaml --model mini-llama \\
    --out results/embedded/mini-llama/r2q-g64/seed0 --reference results/embedded/mini-llama/reference.safetensors
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Config, Model


def evaluate(
    config: Config,
    model: Model,
    out: Annotated[Path, "DIR", "the unit's folder"],
    reference: Annotated[Path | None, "FILE", "what `reference` wrote, where the config asks for fidelity"] = None,
) -> None:
    from r2q.evaluation.evaluate import evaluate

    evaluate(config, model, out, reference)
