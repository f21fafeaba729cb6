"""Processes share GPUs evenly: by lock files, so that a killed one leaves nothing behind."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from r2q.kept import ROOT
from r2q.models import devices

NAMES = ["GPU-a", "GPU-b", "GPU-c"]
CODE = """
import sys
from r2q.models.devices import claim
print(claim(sys.argv[2:], sys.argv[1]), flush=True)
sys.stdin.read()
"""
Process = subprocess.Popen[str]


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """All that a test has started; they end with it."""
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def claims(folder: Path, count: int, processes: list[Process]) -> list[tuple[Process, str]]:
    """So many processes started at once, each with the device that it took."""
    command = [sys.executable, "-c", CODE, str(folder), *NAMES]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    new = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(count)]
    processes += new
    return [(process, process.stdout.readline().strip()) for process in new if process.stdout is not None]


def test_concurrent_processes_take_distinct_devices_and_then_share_evenly(
    tmp_path: Path, processes: list[Process]
) -> None:
    first = claims(tmp_path, 3, processes)
    assert sorted(name for _, name in first) == NAMES
    second = claims(tmp_path, 2, processes)
    assert len({name for _, name in second}) == 2  # a second one on two of them
    for process, _ in first:
        process.kill()
        process.wait()
    (idle,) = set(NAMES) - {name for _, name in second}
    third = claims(tmp_path, 1, processes) + claims(tmp_path, 3, processes)
    assert third[0][1] == idle  # the only one that nobody holds any more
    assert set(Counter(name for _, name in second + third).values()) == {2}


SNAKEFILE = """
rule all:
    input: expand("{job}.json", job=range(6))

rule job:
    output: "{job}.json"
    resources: gpu=1
    shell: "{PYTHON} job.py {output} locks"
"""
JOB = """
import json, sys, time
from r2q.models.devices import claim
device, start = claim(["GPU-a", "GPU-b"], sys.argv[2]), time.time()
time.sleep(1)
json.dump([device, start, time.time()], open(sys.argv[1], "w"))
"""


def test_snakemake_s_jobs_at_the_same_time_have_distinct_devices(tmp_path: Path) -> None:
    """`--resources gpu=2` on two devices: never two jobs on one, and both are used."""
    (tmp_path / "Snakefile").write_text(f"PYTHON = {sys.executable!r}\n{SNAKEFILE}")
    (tmp_path / "job.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{JOB}")
    command = [sys.executable, "-m", "snakemake", "--cores", "6", "--resources", "gpu=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    pairs = [(one, other) for one in jobs for other in jobs if one is not other]
    together = [(one, other) for one, other in pairs if one[1] < other[2] and other[1] < one[2]]
    assert together
    assert [pair for pair in together if pair[0][0] == pair[1][0]] == []


def test_a_job_computes_on_the_device_that_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three GPUs, the first two of which others hold, torch's current one becomes the third."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(NAMES))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: type("Properties", (), {"uuid": NAMES[i]}))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(devices, "_HELD", [])
    assert [devices.claim(NAMES) for _ in range(2)] == NAMES[:2]
    others = devices._HELD
    monkeypatch.setattr(devices, "_HELD", [])  # as in a process of its own
    assert devices.pick_device("auto") == torch.device("cuda")
    assert chosen == [2]
    devices.pick_device("cuda")
    assert chosen == [2]  # it keeps the one that it has
    assert len(others) == 2
