"""Rows of tokens to train on, the order in which they come, and the file that holds them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from r2q.intact import opened, tensor_places
from r2q.kept import seed_of, write_atomic

FORMAT_VERSION = 1
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rows:
    """Rows of equal length."""

    tokens: torch.Tensor  # int64 ``[rows, length]``; padded on the right
    start: torch.Tensor  # int64 ``[rows]``: where the response begins (0: all of it is text)
    end: torch.Tensor  # int64 ``[rows]``: tokens that are not padding
    # float32 ``[rows, length, features]``: the full-precision model's final hidden states, where they came with the
    # rows
    states: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, rows: torch.Tensor | slice) -> "Rows":
        states = None if self.states is None else self.states[rows]
        return Rows(self.tokens[rows], self.start[rows], self.end[rows], states)

    def share(self, rank: int, count: int) -> "Rows":
        """One process's rows; all have the same number, filled up with rows that are nothing but padding; of several
        processes, each computes the states itself."""
        if count == 1:
            return self
        short = -len(self) % count
        fields = (self.tokens, self.start, self.end)
        filled = [torch.cat([field, field.new_zeros(short, *field.shape[1:])]) for field in fields]
        size = (len(self) + short) // count
        return Rows(*filled)[slice(rank * size, (rank + 1) * size)]

    def counted(self, loss_on: str) -> torch.Tensor:
        """Bool ``[rows, length - 1]``: whether the prediction of token ``1 ...`` counts: ``all`` or ``response``."""
        place = torch.arange(1, self.tokens.shape[1])
        real = place < self.end[:, None]
        return real & (place >= self.start[:, None]) if loss_on == "response" else real


@dataclass(frozen=True)
class TrainingData:
    """What a training method is given."""

    # train, held_out: rows of the same kind
    train: Rows
    held_out: Rows
    kind: str  # generated, text or supervised
    digest: str  # SHA-256 of the rows and of how they were made
    folder: Path | None = None  # where checkpoints and records go; None: nowhere, and nothing can be resumed
    device: torch.device = CPU  # where to train
    processes: int = 1  # how many share the work, each on a device of that type; several need a folder
    # the packed folder whose levels bound the latent weights at the start; None: nothing does
    start: Path | None = None
    identity: str = ""  # hash of everything that can move the result; a checkpoint of another identity is not used
    reason: str = ""  # why nothing can be trained: full precision could not write rows, the recipe to start from failed

    def loss_on(self, wanted: str) -> str:
        """``all`` or ``response`` for an option that may be ``auto``."""
        return wanted if wanted != "auto" else "response" if self.kind == "supervised" else "all"


class Order:
    """Batches in an order that depends on the seed and the step alone: the same for every recipe of a model.

    Each epoch is a new permutation; a batch may reach into the next epoch.
    """

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self._epochs: dict[int, torch.Tensor] = {}

    def __call__(self, step: int) -> torch.Tensor:
        """Row numbers (int64 ``[batch]``) of a step, counted from 0."""
        places = range(step * self.batch, (step + 1) * self.batch)
        return torch.stack([self._epoch(place // self.rows)[place % self.rows] for place in places])

    def _epoch(self, number: int) -> torch.Tensor:
        if number not in self._epochs:
            generator = torch.Generator().manual_seed(seed_of(f"order/{self.seed}/{number}"))
            self._epochs = {k: v for k, v in self._epochs.items() if k == number - 1}
            self._epochs[number] = torch.randperm(self.rows, generator=generator)
        return self._epochs[number]


def write(
    path: Path, train: Rows, held_out: Rows, settings: Mapping[str, Any], notes: Mapping[str, str] | None = None
) -> str:
    """Write rows as one safetensors file, with the settings inside; returns the digest of both, not of the notes."""
    tensors = {}
    for name, rows in (("train", train), ("held_out", held_out)):
        for field in ("tokens", "start", "end"):
            tensors[f"{name}.{field}"] = getattr(rows, field).to(torch.int32).contiguous()
        if rows.states is not None:
            tensors[f"{name}.states"] = rows.states.contiguous()
    text = json.dumps({**settings, "format_version": FORMAT_VERSION}, sort_keys=True)
    facts = {"settings": text, "sha256": digest_of(tensors, text), **(notes or {})}
    write_atomic(path, save(tensors, metadata={"facts": json.dumps(facts)}))  # one key
    return facts["sha256"]


def keep(path: Path, notes: Mapping[str, str]) -> bool:
    """Whether there are rows with the same `key` in their notes; they stay, with these notes."""
    try:
        stored = json.loads(tensor_places(path)[2]["facts"])
        if stored["key"] != notes["key"]:
            return False
        train, held_out, settings, _ = read(path)
    except (FileNotFoundError, ValueError, LookupError):  # none, damaged ones, or from before there were notes
        return False
    if stored | notes != stored:
        write(path, train, held_out, settings, notes)
    return True


def read(path: Path) -> tuple[Rows, Rows, dict[str, Any], str]:
    """Training rows, held-out rows, settings and digest of a file that :func:`write` made.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or from another version.
    """
    with opened(path, "teacher-data") as file:
        metadata = json.loads((file.metadata() or {}).get("facts", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = metadata.get("settings", "")
        if digest_of(tensors, text) != metadata.get("sha256"):
            raise ValueError("content and hash differ")
        settings = json.loads(text)
        if settings.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"training data of format {settings.get('format_version')}, not {FORMAT_VERSION}")
    halves = []
    for name in ("train", "held_out"):
        tokens, start, end = (tensors[f"{name}.{field}"].long() for field in ("tokens", "start", "end"))
        halves.append(Rows(tokens, start, end, tensors.get(f"{name}.states")))
    return halves[0], halves[1], settings, metadata["sha256"]


def digest_of(tensors: dict[str, torch.Tensor], text: str) -> str:
    """SHA-256 over settings and tensors, names included."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        content = tensors[name].numpy().tobytes()
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
