"""Which device a process computes on. Several jobs on one machine share its GPUs evenly, without being told.

A process that takes GPUs holds a lock file for each until it ends, however it ends, and takes those that the fewest
others hold. It then sees no other GPU (CUDA_VISIBLE_DEVICES), so that the rest of the code need not know. What limits
the number of jobs is Snakemake's `--resources gpu=N`; more than there are GPUs means several jobs on each.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from itertools import count as counting
from pathlib import Path
from typing import IO

import torch

_HELD: list[IO[str]] = []  # locks of this process; closed when it ends


def pick_device(wanted: str, gpus: int = 1) -> torch.device:
    """``auto`` is the GPU when there is one; of several, the one that fewest processes hold.

    Args:
        wanted: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        gpus: how many the process and its children need.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"device: {wanted} is asked for, but torch finds no GPU; use auto or cpu")
    if wanted in ("auto", "cuda"):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        names = visible.split(",")
        if len(names) > gpus and not _HELD:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claim(names, gpus))
        return torch.device("cuda")
    return torch.device(wanted)


def claim(names: list[str], gpus: int, folder: str | Path | None = None) -> list[str]:
    """The `gpus` devices of `names` that fewest processes hold; held by this process from now on.

    Args:
        folder: of the lock files; one of this user's by default.
    """
    place = Path(folder or Path(tempfile.gettempdir()) / f"r2q-gpus-{os.getuid()}")
    place.mkdir(parents=True, exist_ok=True)
    taken: list[str] = []
    for level in counting():  # first devices that nobody holds, then those that one process holds, ...
        for name in names:
            if name not in taken and _hold(place / f"{name}-{level}.lock"):
                taken.append(name)
                if len(taken) == gpus:
                    return taken
    raise AssertionError


def _hold(path: Path) -> bool:
    """Take a lock if no process has it; the kernel lets go of it whatever happens."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _HELD.append(file)
    return True
