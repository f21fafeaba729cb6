"""cut the windows of text that some methods look at while they quantize

r2q calibrate --config results/embedded/config.yaml --model mini-llama \\
    --out results/embedded/mini-llama/calibration.safetensors
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Config, Model


def calibrate(config: Config, model: Model, out: Annotated[Path, "FILE", "where the tokens go (.safetensors)"]) -> None:
    from r2q.models.calibration import calibrate

    calibrate(config, model, out)
