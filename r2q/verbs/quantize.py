"""write one packed checkpoint with its report

r2q quantize --config results/embedded/config.yaml --prepared results/embedded/mini-llama/prepared.json \\
    --model mini-llama --recipe r2q-g64 --out results/embedded/mini-llama/r2q-g64/seed0
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Config, Model, Prepared


def quantize(
    config: Config,
    prepared: Prepared,
    model: Model,
    recipe: Annotated[str, "NAME", "a recipe of the config"],
    out: Annotated[Path, "DIR", "the unit's folder: results/<run>/<model>/<recipe>/seed<k>"],
    seed: Annotated[int, "K", "of what is random"] = 0,
    calibration: Annotated[Path | None, "FILE", "what `calibrate` wrote"] = None,
    training: Annotated[Path | None, "FILE", "what `teacher-data` wrote"] = None,
    start: Annotated[Path | None, "DIR", "the packed folder that the recipe starts training from"] = None,
) -> None:
    from r2q.quantize import quantize

    quantize(config, prepared, model, recipe, seed, out, calibration, training, start)
