"""States to resume from and records of one training run, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from r2q.kept import write_atomic, write_json
from r2q.training.processes import ALONE, Group

STEP_COLUMNS = (
    "step", "loss", "forward_kl", "reverse_kl", "gradient_norm", "learning_rate", "flipped", "tokens", "seconds",
    "held_out_loss", "held_out_forward_kl", "held_out_reverse_kl",
)  # fmt: skip
GRADIENT_COLUMNS = ("step", "layer", "gradient_norm")
DRIFT_COLUMNS = (
    "layer", "weights", "power", "latent_before", "quantized_before", "latent_after", "quantized_after", "latent_moved",
)  # fmt: skip


class Store:
    """The folder of a training run; without a folder nothing is written and nothing found.

    A state is a file of each process and, written last, a small one that names them: after a crash there is the old
    state or the new one.

    Args:
        folder: where states (``checkpoint``: the last good one, ``best``) and the CSV files go.
        identity: hash of everything that can move the result.
        group: the processes; each writes and reads its own part.
    """

    def __init__(self, folder: Path | None, identity: str, group: Group = ALONE) -> None:
        self.folder, self.identity, self.group = folder, identity, group

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write the state of ``state["step"]`` under a name, in place of the one before."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._part(name, state["step"])
        scratch = path.with_name(f".{path.name}.writing")
        with scratch.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        self.group.wait()
        if self.group.first:
            facts = {"identity": self.identity, "step": state["step"], "processes": self.group.count}
            write_json(self.folder / f"{name}.json", facts)
        self.group.wait()
        for other in self.folder.glob(f"{name}-*-{self.group.rank}.pt"):
            if other != path:
                other.unlink()

    def load(self, name: str, device: torch.device) -> dict[str, Any] | None:
        """The state that was saved; None when there is none, or it belongs to another identity."""
        path = None if self.folder is None else self.folder / f"{name}.json"
        if path is None or not path.is_file():
            return None
        facts = json.loads(path.read_text())
        if (facts["identity"], facts["processes"]) != (self.identity, self.group.count):
            return None
        return torch.load(self._part(name, facts["step"]), map_location=device, weights_only=True)

    def _part(self, name: str, step: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}-{step}-{self.group.rank}.pt"

    def write_csv(self, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write ``<name>.csv``, by the first process; a missing number is an empty cell."""
        if self.folder is None or not self.group.first:
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
