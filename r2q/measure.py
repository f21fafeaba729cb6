"""What a piece of work cost and with what it was done: seconds, of processors too, peak memory, library versions."""

import os
import platform
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

MIB = 1 << 20


class Measured:
    """Times a block and finds its peak memory.

    ``cpu_seconds`` is what the kernel counted (getrusage): of all threads of this process and of the child processes
    that it waited for in the block; nothing is sampled. ``peak_mib`` is the largest resident size of this process in
    the block (Linux; elsewhere since its start), with the libraries that it holds, in a run those of all verbs, which
    its server has imported (some 50 MiB more than one alone). ``gpu_mib``, the largest allocation on the GPU, is added
    where one is in use; else it is None. Peaks start anew with every block: of a block around another one they are of
    what came last.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    gpu_mib: float | None

    @property
    def spent(self) -> dict[str, Any]:
        """All of them by name, after the block."""
        return {name: getattr(self, name) for name in ("seconds", "cpu_seconds", "peak_mib", "gpu_mib")}

    def __enter__(self) -> Self:
        with suppress(OSError):  # not Linux, or not allowed: the figure then covers the whole process, as documented
            Path("/proc/self/clear_refs").write_text("5")  # start VmHWM anew
        cuda = _cuda()
        if cuda is not None:
            cuda.reset_peak_memory_stats()
        self._start, self._cpu = time.perf_counter(), cpu_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = round(time.perf_counter() - self._start, 3)
        self.cpu_seconds = round(cpu_seconds() - self._cpu, 3)
        cuda = _cuda()
        self.gpu_mib = None if cuda is None else round(cuda.max_memory_allocated() / MIB, 1)
        self.peak_mib = round(_peak_resident_mib() + (self.gpu_mib or 0), 1)


def cpu_seconds() -> float:
    """Seconds of processors that this process and the children that it waited for have taken so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _cuda():  # type: ignore[no-untyped-def]
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _peak_resident_mib() -> float:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def package_of(module: str) -> str | None:
    """The installed package that a module came with; None for ours, and for a file that no package brought."""
    from importlib import metadata  # 20 ms, which a verb that the server runs need not wait for

    top = module.partition(".")[0]
    return None if top in ("r2q", "baselines") else next(iter(metadata.packages_distributions().get(top, [])), None)


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the named installed packages."""
    from importlib import metadata

    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `6 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
