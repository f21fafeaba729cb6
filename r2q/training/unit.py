"""What the verb ``quantize`` has to know of recipes that train: their data, identity, records and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from r2q import config as configuration
from r2q.kept import source_hash
from r2q.models.plugin import file_sha256
from r2q.models.save import folder_digest
from r2q.quantization.method import Recipe
from r2q.training.data import TrainingData, read
from r2q.training.start import LATENT

RECORDS = ("training.csv", "gradients.csv", "drift.csv")
CHECKPOINTS = ("checkpoint.json", "checkpoint-before.json", "checkpoint-*.pt")


def read_training(path: Path, device: torch.device, processes: int = 1) -> TrainingData:
    """The rows in a file of the verb ``teacher-data``, for training on such devices; see :func:`read` for errors."""
    train, held_out, settings, digest = read(path)
    return TrainingData(train, held_out, settings["kind"], digest, device=device, processes=processes)


def start_folder(config: configuration.Config, recipe: Recipe, model: str, out: Path) -> Path | None:
    """The packed folder that a recipe starts from; None when it starts from the model's own weights."""
    name = recipe.options["start"]
    return None if name is None else out / name / f"seed{config.seeds_of(name, model)[0]}"


def starts_training(config: configuration.Config, name: str) -> bool:
    """Whether some recipe starts from the weights that a recipe rounded, which it then has to leave."""
    options = [entry.options for entry in config.recipes.values()]
    return any(one.get("start") == name and one.get("start_from") == "weights" for one in options)


def training_identity(recipe: Recipe, data: TrainingData) -> dict[str, Any]:
    """What else can move the result of a recipe that trains: rows, trainer, quantizer, the weights it starts from.

    Raises:
        FileNotFoundError: the folder to start from has no weights, or lacks those that were rounded.
    """
    start = data.start
    digest = None if start is None else folder_digest(start)
    if start is not None and digest is None:
        raise FileNotFoundError(
            f"recipe {recipe.name}: start: {start} has no packed weights; quantize that recipe first"
        )
    latent = None
    if start is not None and recipe.options["start_from"] == "weights":
        if not (start / LATENT).is_file():
            raise FileNotFoundError(f"recipe {recipe.name}: start: {start / LATENT} is not there; quantize that again")
        latent = file_sha256(start / LATENT)
    quantizer = configuration.method_info(recipe.options["quantizer"])
    return {
        "training": data.digest,
        "processes": data.processes,
        "start": digest,
        "latent": latent,
        "trainer": source_hash(["r2q/training", quantizer.path]),
        "quantizer_version": quantizer.version,
    }


def has_records(folder: Path) -> bool:
    """Whether the records of a finished run are there."""
    return all((folder / name).is_file() for name in RECORDS)


def drop_checkpoints(folder: Path) -> None:
    """Delete checkpoints once the packed model is written."""
    for pattern in CHECKPOINTS:
        for path in folder.glob(pattern):
            path.unlink()
