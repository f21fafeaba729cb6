"""What a run costs, rule by rule, before it starts: GPU hours, time, memory, disk, downloads; and what cannot fit."""

import math
import shutil
import subprocess
from collections.abc import Iterable, Sequence

from r2q.config import Config, ConfigError, method_info, refuse
from r2q.measure import MIB, duration, processors
from r2q.plan.cost import GIB, PASSES, SWEEPS
from r2q.plan.jobs import MARGIN, REPORT, UNKNOWN, Job, Jobs, Machine, name_of, tasks

ORDER = (
    "source", "prepare", "check", "calibrate", "teacher_data", "reference", "quantize", "train", "evaluate", "latency",
)  # fmt: skip


class Estimate(Jobs):
    """The jobs of a run, taken together."""

    def rules(self) -> dict[str, list[Job]]:
        """Jobs by rule, in the order of the workflow."""
        by_rule: dict[str, list[Job]] = {}
        for job in self.jobs:
            by_rule.setdefault(job.rule, []).append(job)
        return {rule: by_rule[rule] for rule in (*ORDER, *REPORT) if rule in by_rule}

    def wall(self, jobs: Sequence[Job] | None = None) -> float:
        """Seconds from the first job to the last: of all, or of those of a rule alone."""
        chosen = self.jobs if jobs is None else jobs
        busy = sum(job.seconds * max(job.gpus, 1) for job in chosen if job.gpus or not self.machine.gpus)
        alone = sum(job.seconds for job in chosen if self.machine.gpus and not job.gpus)
        spread = max(busy / self.machine.at_once, alone / self.machine.cpu_jobs)
        return max(spread, max((job.seconds for job in chosen), default=0.0) if jobs is not None else self._chain())

    def _chain(self) -> float:
        """The longest time that jobs wait for each other: those of a model, one recipe, its evaluation."""
        by_name: dict[str, float] = {}
        for job in self.jobs:
            by_name[job.what] = by_name.get(job.what, 0.0) + job.seconds
        return max(by_name[unit.model] + by_name[name_of(unit)] for unit in self.plan.units) + by_name[""]

    def gpu_hours(self, jobs: Iterable[Job] | None = None) -> float:
        return sum(job.seconds * job.gpus for job in (self.jobs if jobs is None else jobs)) / 3600

    @property
    def download_bytes(self) -> float:
        """Of the weights of models of the hub."""
        hub = {entry.path: name for name, entry in self.config.models.items() if entry.kind == "hub"}
        return sum(self._size(name) for name in hub.values())

    def problems(self) -> list[str]:
        """A sentence for each rule that has jobs that do not fit into the memory of a GPU, with what to change."""
        capacity, problems = self.machine.gpu_bytes, []
        if capacity is None:
            return []
        for jobs in self.rules().values():
            wrong = [job for job in jobs if job.gpu_bytes * MARGIN > capacity]
            if not wrong:
                continue
            worst = max(wrong, key=lambda job: job.gpu_bytes)
            changes = worst.changes(capacity)
            others = f", and {len(wrong) - 1} more such jobs" if len(wrong) > 1 else ""
            what = f"change one: {'; '.join(changes)}" if changes else "no setting here changes that: take a larger GPU"
            problems.append(
                f"{worst.name} takes about {worst.gpu_bytes / GIB:.0f} GiB of a GPU, "
                f"{capacity / GIB:.0f} GiB are given{others}; {what}"
            )
        return problems

    def summary(self) -> str:
        """One paragraph."""
        units, largest = len(self.plan.units), max(self.jobs, key=lambda job: job.gpu_bytes)
        where = f"{self.machine.gpus} GPU{'s' * (self.machine.gpus > 1)}"
        where = where if self.machine.gpus else f"{self.machine.cpu_jobs} CPU jobs at once"
        text = f"{units} units, "
        text += f"{_number(self.gpu_hours())} GPU hours, " if self.machine.gpus else ""
        text += f"about {duration(self.wall())} on {where}"
        if self.machine.gpus:
            text += f"; at most {largest.gpu_bytes / GIB:.0f} GiB of a GPU ({largest.name})"
        text += f"; {max(job.host_bytes for job in self.jobs) / GIB:.1f} GiB of main memory a job"
        text += f"; {_number(sum(job.disk_bytes for job in self.jobs) / 1e9)} GB of disk"
        passing = max(job.passing_bytes for job in self.jobs)
        text += f" and {_number(passing / 1e9)} GB more while a recipe trains" if passing > 1e8 else ""
        text += f"; {_number(self.download_bytes / 1e9)} GB of models to download" if self.download_bytes else ""
        return text + "."

    def table(self) -> str:
        """A line a rule."""
        lines = [f"{'rule':17}{'jobs':>5}{'GPU hours':>11}{'hours':>9}{'GPU GiB':>9}{'main GiB':>10}{'disk GB':>9}"]
        for rule, jobs in self.rules().items():
            gpu = max(job.gpu_bytes for job in jobs) / GIB
            host, disk = max(job.host_bytes for job in jobs) / GIB, sum(job.disk_bytes for job in jobs) / 1e9
            lines.append(
                f"{rule:17}{len(jobs):5d}{_cell(self.gpu_hours(jobs)):>11}{_cell(self.wall(jobs) / 3600):>9}"
                f"{_cell(gpu):>9}{_cell(host):>10}{_cell(disk):>9}"
            )
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """What the numbers do not rest on measurements for."""
        used = {method_info(self.config.recipes[unit.recipe].method) for unit in self.plan.units}
        labels = sorted(info.label for info in used if info.needs == "calibration" and info.label != "gptq")
        known = {*SWEEPS, *PASSES, "gptq"}
        strange = sorted(info.label for info in used if not info.trains and info.label not in known)
        unknown = sorted(set(self.config.tasks) - set(tasks()))
        notes = []
        if labels and self.machine.gpus:
            notes.append(f"times counted from the methods' loops, not measured alone on a GPU: {', '.join(labels)}")
        if any(shape.active < shape.quantized for shape in self.shapes.values()):
            notes.append("no mixture of experts was measured: what it costs to send tokens to experts is not in it")
        if strange:
            notes.append(f"not known, taken for a method that rounds every weight twice: {', '.join(strange)}")
        if unknown:
            size = f"{UNKNOWN['items']} items of {UNKNOWN['rows']} rows of {UNKNOWN['tokens']} tokens"
            notes.append(f"not known, taken for {size}: {', '.join(unknown)}")
        if self.config.limits.training_processes > 2 and self.plan.trained:
            notes.append("what spreading a training over GPUs adds was measured over two, and is taken to be the same")
        return notes


def machine(config: Config, gpus: int | None = None, gpu_gib: float | None = None) -> Machine:
    """What a run is given: as said, else what this machine has; as many GPUs as one job needs where it has none.

    Raises:
        ConfigError: less than no GPU, or GPUs without memory.
    """
    if gpus is not None and gpus < 0:
        raise ConfigError(f"--gpus: {gpus}; it must be at least 0")
    if gpu_gib is not None and not 0 < gpu_gib < math.inf:
        raise ConfigError(f"--gpu-memory: {gpu_gib:g}; it must be a number above 0")
    here = [] if config.device == "cpu" or gpus == 0 or (gpus and gpu_gib) else memory_of_gpus()
    count = 0 if config.device == "cpu" else len(here) if gpus is None else gpus
    if not count and (config.device.startswith("cuda") or gpu_gib):
        count = config.limits.training_processes
    given = gpu_gib * GIB if gpu_gib else min(here, default=None)
    return Machine(count, given if count else None, max(1, processors() // config.limits.threads))


def memory_of_gpus() -> list[float]:
    """Bytes of each GPU here, by nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True)
    return [float(line) * MIB for line in done.stdout.split()] if done.returncode == 0 else []


def report(config: Config, source: str, given: Machine) -> str:
    """What `r2q estimate` prints.

    Raises:
        ConfigError: a job cannot fit, a recipe is spread over more GPUs than are given, or a size cannot be known.
    """
    processes = config.limits.training_processes
    try:
        made = Estimate(config, given, ask_hub=True)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    if 0 < given.gpus < processes and made.plan.trained:
        raise ConfigError(f"{source}: limits.training_processes: {processes}, but {given.gpus} GPUs are given")
    refuse(source, made.problems())
    return "\n".join([made.table(), "", f"{source}: {made.summary()}", *(f"note: {note}" for note in made.notes())])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _cell(value: float) -> str:
    if value == 0:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 0.1 else f"{value:.2f}"
