"""Checkpoints and records of one training run, written whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from r2q.kept import write_atomic

STEP_COLUMNS = (
    "step", "loss", "forward_kl", "reverse_kl", "gradient_norm", "learning_rate", "flipped", "tokens", "seconds",
    "held_out_loss", "held_out_forward_kl", "held_out_reverse_kl",
)  # fmt: skip
GRADIENT_COLUMNS = ("step", "layer", "gradient_norm")
DRIFT_COLUMNS = ("layer", "weights", "power", "latent_before", "quantized_before", "latent_after", "quantized_after")


class Store:
    """The folder of a training run; without a folder nothing is written and nothing found.

    Args:
        folder: where ``checkpoint.pt`` (last good state), ``best.pt`` and the CSV files go.
        identity: hash of everything that can move the result.
    """

    def __init__(self, folder: Path | None, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write ``<name>.pt``; after a crash there is the old one or the new one."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / f".{name}.writing"
        with scratch.open("wb") as file:
            torch.save({"identity": self.identity, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.folder / f"{name}.pt")

    def load(self, name: str, device: torch.device) -> dict[str, Any] | None:
        """The state that was saved; None when there is none, or it belongs to another identity."""
        path = None if self.folder is None else self.folder / f"{name}.pt"
        if path is None or not path.is_file():
            return None
        state = torch.load(path, map_location=device, weights_only=True)
        return state if state["identity"] == self.identity else None

    def write_csv(self, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write ``<name>.csv``; a missing number is an empty cell."""
        if self.folder is None:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(row.get(key)) for key in columns} for row in rows)
        write_atomic(self.folder / f"{name}.csv", text.getvalue())


def _cell(value: Any) -> Any:
    """Seven digits: float32 has no more; NaN, which is no number, is an empty cell."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.7g}"
    return "" if value is None else value
