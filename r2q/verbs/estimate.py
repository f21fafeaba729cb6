"""say what a run costs before it starts: GPU hours, time, memory, disk, downloads; refuse what cannot fit

r2q estimate config/paper.yaml --gpus 4 --gpu-memory 80
exit status: 0 it fits, or nothing is known of the GPUs; 2 a model cannot fit, or its size cannot be known
"""

from pathlib import Path
from typing import Annotated


def estimate(
    config: Annotated[Path, "CONFIG", "the run's config"],
    /,
    gpus: Annotated[int | None, "N", "GPUs; those of this machine without"] = None,
    gpu_memory: Annotated[float | None, "GIB", "memory of each GPU; that of this machine's without"] = None,
) -> None:
    from r2q.config import load
    from r2q.plan.estimate import machine, report

    loaded = load(config)
    print(report(loaded, str(config), machine(loaded, gpus, gpu_memory)))
