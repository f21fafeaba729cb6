"""What a config asks of the machine that its jobs run on; said before the first job."""

import subprocess
import sys
from collections.abc import Collection

from r2q.config.run import Config
from r2q.measure import processors


def machine_problems(config: Config, jobs: Collection[str]) -> list[str]:
    """One sentence for everything that this machine does not have: GPUs, processors. Asks torch only about GPUs.

    `jobs` are the rules with jobs to run that compute with a model; without any, a machine lacks nothing.
    """
    if not jobs:
        return []
    problems, limits = [], config.limits
    available = processors()
    spread = limits.training_processes if "train" in jobs else 1
    if limits.threads > available:
        problems.append(f"limits.threads: {limits.threads}, but this machine has {available} processors")
    gpus = count_gpus() if config.device.startswith("cuda") or (config.device == "auto" and spread > 1) else 0
    index = config.device.removeprefix("cuda").removeprefix(":")
    if config.device.startswith("cuda") and gpus == 0:
        problems.append(f"device: {config.device} is asked for, but torch finds no GPU here; use auto or cpu")
    elif config.device.startswith("cuda:") and int(index) >= gpus:
        problems.append(f"device: {config.device} is asked for, but this machine has cuda:0 to cuda:{gpus - 1}")
    if gpus and spread > gpus:
        problems.append(f"limits.training_processes: {spread}, but this machine has {gpus} GPUs")
    elif not gpus and spread > available and not config.device.startswith("cuda"):
        problems.append(
            f"limits.training_processes: {spread}, but this machine has no GPU to be used and {available} processors"
        )
    return problems


def count_gpus() -> int:
    """GPUs that torch can use, asked in a process of its own: importing torch takes seconds and memory."""
    code = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else 0
