"""Which device a process computes on. Several jobs on one machine share its GPUs evenly, without being told.

A process that takes a GPU holds a lock file for it until it ends, however it ends, and takes the one that the fewest
others hold; it is then torch's current device, so that the rest of the code need not know. What limits the number of
jobs is Snakemake's `--resources gpu=N`; more than there are GPUs means several jobs on each, if their memory allows.
"""

import fcntl
import os
import tempfile
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import IO

import torch

from r2q.kept import lock

_HELD: list[IO[str]] = []  # locks of this process; closed when it ends


def pick_device(device: str) -> torch.device:
    """The device of ``device`` in a config; ``auto`` is the GPU that fewest processes hold, or else the CPU.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"device: {device} is asked for, but torch finds no GPU; use auto or cpu")
    if device in ("auto", "cuda"):
        names = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
        if len(names) > 1 and not _HELD:
            torch.cuda.set_device(names.index(claim(names)))
        return torch.device("cuda")
    return torch.device(device)


def device_name(device: torch.device) -> str:
    """What a GPU calls itself; `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def claim(names: list[str], folder: str | Path | None = None) -> str:
    """The device of `names` that fewest processes hold; held by this process from now on, by a lock in `folder`."""
    place = Path(folder or Path(tempfile.gettempdir()) / f"r2q-gpus-{os.getuid()}")
    place.mkdir(parents=True, exist_ok=True)
    with (place / "choice.lock").open("w") as choice:
        fcntl.flock(choice, fcntl.LOCK_EX)  # one process at a time counts and takes
        name = min(names, key=lambda name: sum(map(_is_held, place.glob(f"{name}-*.lock"))))
        _HELD.append(next(filter(None, (lock(place / f"{name}-{slot}.lock") for slot in count()))))
    return name


def _is_held(path: Path) -> bool:
    with lock(path) or nullcontext() as file:
        return file is None
