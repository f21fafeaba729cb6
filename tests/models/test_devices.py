"""Processes share GPUs evenly: by lock files, so that a killed one leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from r2q.models.devices import claim
print(claim(["0", "1", "2"], sys.argv[1]), flush=True)
sys.stdin.read()
"""


def process(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that holds one of three devices, and which."""
    command = [sys.executable, "-c", CODE, str(folder)]
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    return run, run.stdout.readline().strip()


def test_concurrent_processes_take_distinct_devices_and_then_share_evenly(tmp_path: Path) -> None:
    runs = [process(tmp_path) for _ in range(5)]
    taken = [name for _, name in runs]
    assert sorted(taken[:3]) == ["0", "1", "2"]
    assert len(set(taken[3:])) == 2
    runs[1][0].kill()
    runs[1][0].wait()
    run, name = process(tmp_path)
    assert name == taken[1]  # the only one that fewer processes hold
    for held, _ in [*runs, (run, "")]:
        held.kill()
        held.wait()
