"""What the verb ``quantize`` has to know of recipes that train: their data, identity, records and checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from r2q import config as configuration
from r2q.kept import file_sha256
from r2q.models.save import folder_digest
from r2q.quantization.method import Recipe
from r2q.records import OK, Report, read_json
from r2q.training.data import TrainingData, read
from r2q.training.start import LATENT

CHECKPOINTS = ("checkpoint.json", "checkpoint-before.json", "checkpoint-*.pt")


def read_training(path: Path, device: torch.device, processes: int = 1) -> TrainingData:
    """The rows in a file of the verb ``teacher-data``, for training on such devices; see :func:`read` for errors."""
    train, held_out, settings, digest = read(path)
    reason = f"there are no rows to train on: {settings['reason']}" if "reason" in settings else ""
    return TrainingData(train, held_out, settings["kind"], digest, device=device, processes=processes, reason=reason)


def with_folders(data: TrainingData, folder: Path, start: Path | None) -> TrainingData:
    """The rows with the folder of the records, and the one to start from, unless its recipe has failed."""
    if start is not None and (start / "report.json").is_file():
        report = read_json(start / "report.json", Report)
        if report.status != OK:
            lost = f"start: {report.recipe} {report.status}: {report.reason}"
            return replace(data, folder=folder, reason=data.reason or lost)
    return replace(data, folder=folder, start=start)


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
    if start is not None and recipe.options.get("start_from") == "weights":
        if not (start / LATENT).is_file():
            raise FileNotFoundError(f"recipe {recipe.name}: start: {start / LATENT} is not there; quantize that again")
        latent = file_sha256(start / LATENT)
    quantizer = recipe.options.get("quantizer")
    return {
        "training": data.digest,
        "processes": data.processes,
        "start": digest,
        "latent": latent,
        "quantizer_version": None if quantizer is None else configuration.method_info(quantizer).version,
    }


def drop_checkpoints(folder: Path) -> None:
    """Delete checkpoints once the packed model is written."""
    for pattern in CHECKPOINTS:
        for path in folder.glob(pattern):
            path.unlink()
