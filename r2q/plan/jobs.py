"""What each job of a run costs, from the plan's units, the shapes of the models and the rates of `cost`. No torch."""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from r2q.config import Config, group_size, method_info
from r2q.config.base import spelt
from r2q.config.sections import CONTEXT
from r2q.config.texts import Fidelity, Perplexity
from r2q.evaluation.rows import rows_at_once
from r2q.plan import Plan, Unit, cost
from r2q.plan.cost import GIB
from r2q.plan.shapes import Shape, shape_of

TASKS = Path(__file__).with_name("tasks.csv")
MARGIN = 1.05  # of memory: what the allocator and the driver take beside the tensors
TEXT_TOKENS = 340_000  # of WikiText-2's test split: taken for a text of which neither windows nor the file are known
UNKNOWN = {"items": 1000, "rows": 4, "tokens": 60, "shot": 60, "shots": 0, "generated": 0}  # of a task
REPORT = ("collect", "collect_training", "lattice", "controls", "table", "figure", "claims", "page")
Changes = Callable[[float], list[str]]  # what to change, with what it then takes, for a job to fit into so many bytes


@dataclass(frozen=True)
class Job:
    """One job."""

    rule: str  # of the workflow
    what: str = ""  # model, recipe and seed in words; of the whole run ""
    seconds: float = 0.0  # that it takes
    gpus: int = 0  # that it holds; 0 for one that needs none, and for all of a run on the CPU (see `Jobs`)
    # gpu_bytes, host_bytes: peaks, of each GPU and of main memory
    gpu_bytes: float = 0.0
    host_bytes: float = 0.0
    disk_bytes: float = 0.0  # of what it leaves
    passing_bytes: float = 0.0  # of what it has on disk only while it runs
    changes: Changes = lambda capacity: []  # of the config, that would make it fit

    @property
    def name(self) -> str:
        return f"{self.rule} {self.what}".rstrip()


@dataclass(frozen=True)
class Machine:
    """What a run is given: GPUs (0: it runs on the CPU), bytes of each if known, and how many CPU jobs run at once."""

    gpus: int
    gpu_bytes: float | None
    cpu_jobs: int

    @property
    def at_once(self) -> int:
        return self.gpus or self.cpu_jobs


@cache
def tasks() -> dict[str, dict[str, int]]:
    """What is known of tasks: items, rows a pass takes for each, tokens of a row and of a worked example, and so on."""
    with TASKS.open(newline="", encoding="utf-8") as file:
        return {row.pop("task"): {key: int(value) for key, value in row.items()} for row in csv.DictReader(file)}


class Jobs:
    """All jobs of a run on a machine; `ask_hub`: whether the hub may be asked for the shape of a model.

    Raises:
        ConfigError: the size of a model cannot be known.
    """

    def __init__(self, config: Config, machine: Machine, ask_hub: bool = False) -> None:
        self.config, self.machine, self.plan, self.rates = config, machine, Plan(config), cost.rates()
        self.device = "gpu" if machine.gpus else "cpu"
        self.shapes = {name: shape_of(name, entry, ask_hub) for name, entry in config.models.items()}
        jobs = list(self._jobs())
        self.jobs = jobs if machine.gpus else [replace(job, gpus=0, gpu_bytes=0.0) for job in jobs]

    # Single jobs

    def _jobs(self) -> Iterator[Job]:
        plan, r = self.plan, self.rates
        for model in plan.sources.values():
            yield Job("source", model, self._started(self._size(model)), disk_bytes=self._size(model))
        for model, shape in self.shapes.items():
            yield Job("prepare", model, self._started(self._size(model)), host_bytes=r["host.libraries"])
            yield Job("check", model, self._started(0), host_bytes=r["host.libraries"])
            units = [unit for unit in plan.units if unit.model == model]
            if self.config.calibrates(model):
                yield Job("calibrate", model, self._started(0), host_bytes=r["host.libraries"])
            if any(plan.training(unit) for unit in units):
                yield self._teacher_data(model, shape)
            if self.config.fidelity is not None:
                yield self._reference(model, shape)
        for unit in plan.units:
            yield self._train(unit) if self.config.trains(unit.recipe) else self._quantize(unit)
            yield self._evaluate(unit)
        counts = {"figure": len(plan.drawn), "lattice": int("lattice" in plan.drawn)}
        counts |= dict.fromkeys(("collect_training", "claims"), int(bool(plan.trained)))
        if plan.timed:
            yield self._latency()
        for rule in REPORT:
            yield from [Job(rule, "", self._started(0))] * counts.get(rule, 1)

    def _size(self, model: str) -> float:
        """Bytes of a model's weights."""
        return self.shapes[model].total * self.shapes[model].bytes_each

    def _dtype(self, model: str) -> int:
        """Bytes of a parameter in evaluation."""
        dtype = self.config.models[model].dtype
        return self.shapes[model].bytes_each if dtype == "auto" else cost.bytes_of(dtype)

    def _started(self, read: float) -> float:
        return self.rates["job.start"] + read / self.rates["disk.rate"]

    def _teacher_data(self, model: str, shape: Shape) -> Job:
        data = self.config.training
        assert data is not None
        host = self.rates["host.libraries"]
        if data.kind != "generated":
            return Job("teacher_data", model, self._started(0), gpus=1, host_bytes=host)
        rows = sum(texts.rows for texts in data.texts)
        seconds = cost.generate_seconds(self.rates, self.device, shape, rows, data.batch_size, data.length)

        def needs(batch: int) -> float:
            logits = batch * shape.vocabulary * 12  # of one token: stored, in float32, their probabilities
            return self._size(model) + self.rates["gpu.pass"] + cost.cache_bytes(shape, batch, data.length) + logits

        def changes(capacity: float) -> list[str]:
            return _first(((f"training.batch_size: {n}", needs(n)) for n in _halves(data.batch_size)), capacity)

        seconds += self._started(self._size(model))
        memory = needs(min(data.batch_size, rows)), host + self._size(model)
        return Job("teacher_data", model, seconds, 1, *memory, changes=changes)

    def _reference(self, model: str, shape: Shape) -> Job:
        text, dtype = self.config.fidelity, self._dtype(model)
        assert text is not None
        windows, seconds = self._windows(shape, text)
        kept = windows * text.window * text.top_k * 8
        seconds += self._started(self._size(model))
        return Job("reference", model, seconds, 1, *self._evaluation_memory(model, dtype, kept), kept)

    def _quantize(self, unit: Unit) -> Job:
        config, shape, recipe = self.config, self.shapes[unit.model], self.config.recipes[unit.recipe]
        options, text = config.options_of(unit.recipe).model_dump(), config.calibration
        given = (text.windows, text.window) if text is not None and config.calibrates(unit.model) else None
        looks = given if method_info(recipe.method).needs == "calibration" else None
        inner = (options["quantizer"], options["quantizer_options"]) if "quantizer" in options else None
        method = method_info(recipe.method).label
        seconds = cost.quantize_seconds(self.rates, self.device, shape, method, options, given, inner)
        seconds += self._started(self._size(unit.model) + self._stored(unit))
        offload = text is not None and text.offload

        def needs(offload: bool) -> float:
            return cost.quantize_bytes(self.rates, shape, method, options, looks, offload)

        def changes(capacity: float) -> list[str]:
            return _first([("calibration.offload: true", needs(True))] if looks and not offload else [], capacity)

        inputs = cost.input_bytes(shape, method, looks) if offload else 0
        host = self.rates["host.libraries"] + self._size(unit.model) + shape.quantized + inputs  # a byte a code
        if self.device == "cpu":
            host += needs(False)
        disk = self._stored(unit) + (shape.quantized * cost.FLOAT if config.starts_training(unit.recipe) else 0)
        return Job("quantize", name_of(unit), seconds, 1, needs(offload), host, disk, changes=changes)

    def _train(self, unit: Unit) -> Job:
        config, shape = self.config, self.shapes[unit.model]
        options: Any = config.options_of(unit.recipe)
        data, processes = config.training, config.limits.training_processes
        assert data is not None
        seconds = cost.train_seconds(self.rates, self.device, shape, options, data.length, data.held_out, processes)
        seconds += self._started(self._size(unit.model) + self._stored(unit))

        def needs(changed: Mapping[str, Any], processes: int = processes) -> float:
            chosen = options.model_copy(update=dict(changed))
            return cost.train_bytes(self.rates, self.device, shape, chosen, data.length, processes)

        def possible(changed: Mapping[str, Any]) -> bool:
            return processes == 1 or options.model_copy(update=dict(changed)).spreads

        def changes(capacity: float) -> list[str]:
            smaller: dict[str, Any] = {"activation_checkpointing": True, "optimizer": "adamw_8bit"}
            smaller |= {} if options.compute == "float32" else {"latent": "bfloat16"}  # which computes in bfloat16, too
            ones = [{name: value} for name, value in smaller.items() if getattr(options, name) != value]
            ones = [one for one in ones if possible(one)]
            suggestions = [text for one in ones for text in _first([(_written(one), needs(one))], capacity)]
            if len(ones) > 1 and not suggestions:
                together = {name: smaller[name] for one in ones for name in one}
                if not possible(together):
                    del together["optimizer"]
                suggestions = _first([(_written(together), needs(together))], capacity)
            rows = _halves(options.micro_rows or options.batch_rows)
            suggestions += _first(((f"options.micro_rows: {n}", needs({"micro_rows": n})) for n in rows), capacity)
            more = [n for n in range(processes + 1, 65) if options.batch_rows % n == 0 and options.spreads]
            suggestions += _first(((f"limits.training_processes: {n}", needs({}, n)) for n in more), capacity)
            return suggestions

        host = self.rates["host.libraries"] * processes + self._size(unit.model) + shape.quantized
        host += (shape.total - shape.quantized) * shape.bytes_each  # trained, beside those that the model came with
        if self.device == "cpu":
            host += needs({}) * processes
        kept = self._stored(unit)
        passing = 2 * cost.resume_bytes(shape, options) if options.checkpoint_every else 0.0
        return Job("train", name_of(unit), seconds, processes, needs({}), host, kept, passing, changes)

    def _evaluate(self, unit: Unit) -> Job:
        config, shape, dtype = self.config, self.shapes[unit.model], self._dtype(unit.model)
        seconds, longest, generates = self._started(2 * self._stored(unit)), 0, False
        batch = config.limits.batch_size
        for name, entry in config.tasks.items():
            known = tasks().get(name, UNKNOWN)
            items = min(config.items_of(name) or math.inf, known["items"])
            shots = known["shots"] if entry.num_fewshot is None else entry.num_fewshot
            row = known["tokens"] + shots * known["shot"]
            rows = items * known["rows"]
            seconds += cost.forward_seconds(self.rates, self.device, shape, rows * row, row, math.ceil(rows / batch))
            if known["generated"]:
                seconds += cost.generate_seconds(self.rates, self.device, shape, items, batch, known["generated"])
                longest, generates = max(longest, row + known["generated"]), True
        seconds += sum(self._windows(shape, text)[1] for text in self._texts)
        memory = self._evaluation_memory(unit.model, dtype, self._stored(unit))

        def more(batch: int) -> float:
            return cost.cache_bytes(shape, batch, longest) if generates else 0.0

        def changes(capacity: float) -> list[str]:
            return _first(((f"limits.batch_size: {n}", memory[0] + more(n)) for n in _halves(batch)), capacity)

        return Job("evaluate", name_of(unit), seconds, 1, memory[0] + more(batch), memory[1], changes=changes)

    def _latency(self) -> Job:
        """Checkpoints read twice, packed and decoded; beside reading and compiling, steps and passes take little."""
        asked, shapes = self.config.latency, [self.shapes[unit.model] for unit in self.plan.timed]
        assert asked is not None
        seconds = self._started(sum(2 * self._size(unit.model) for unit in self.plan.timed))
        if asked.compiled:
            seconds += sum(2 * len(asked.batches) * cost.COMPILE_SECONDS * shape.layers for shape in shapes)
        rows, tokens = max(asked.batches), asked.context or CONTEXT
        needs = max(s.total * s.bytes_each + cost.cache_bytes(s, rows, tokens) for s in shapes)
        host = self.rates["host.libraries"] + max(s.total * s.bytes_each for s in shapes)
        host += needs if self.device == "cpu" else 0
        return Job("latency", "", seconds, 1, needs + self.rates["gpu.pass"], host)

    def _evaluation_memory(self, model: str, dtype: int, read: float) -> tuple[float, float]:
        """Bytes of the device, where there is one, and of main memory."""
        shape, r = self.shapes[model], self.rates
        window = max((text.window for text in self._texts), default=1)
        if self.device == "cpu":
            return 0.0, cost.host_bytes(r, shape, dtype, r["host.loaded"], window)
        batch = self.config.limits.batch_size
        return cost.evaluate_bytes(r, shape, dtype, batch, window), r["host.libraries"] + max(read, self._size(model))

    @property
    def _texts(self) -> list[Perplexity | Fidelity]:
        """What units are scored on besides tasks."""
        return [*self.config.perplexity.values(), *([] if self.config.fidelity is None else [self.config.fidelity])]

    def _windows(self, shape: Shape, text: Perplexity | Fidelity) -> tuple[int, float]:
        """Windows of a text, and seconds of a pass over them."""
        window, windows = text.window, text.windows
        if windows is None:
            file, known = Path(text.path), tasks().get(Path(text.path).stem)
            tokens = known["items"] * known["tokens"] if known else TEXT_TOKENS
            tokens = file.stat().st_size // 4 if file.is_file() and known is None else tokens
            windows = max(1, tokens // window)
        batch = rows_at_once(self.config.limits.batch_size, window * shape.vocabulary)
        passes = math.ceil(windows / batch)
        return windows, cost.forward_seconds(self.rates, self.device, shape, windows * window, window, passes)

    def _stored(self, unit: Unit) -> float:
        """Bytes of a unit's weights, with the most that methods here keep of a group: two numbers, or a scale a bit."""
        shape, recipe = self.shapes[unit.model], self.config.recipes[unit.recipe]
        if recipe.granularity is None:
            return self._size(unit.model)
        group = group_size(recipe.granularity) or shape.width
        packed = shape.quantized * (recipe.bits + 16 * max(2, recipe.bits) / group) / 8
        return packed + (shape.total - shape.quantized) * shape.bytes_each


def name_of(unit: Unit) -> str:
    return f"{unit.model}: {unit.recipe} seed {unit.seed}"


def _halves(number: int) -> Iterator[int]:
    """Half of it, and so on to 1."""
    while number > 1:
        number //= 2
        yield number


def _first(options: Iterable[tuple[str, float]], capacity: float) -> list[str]:
    """The first of them that fits."""
    return [f"{name} ({needs / GIB:.0f} GiB)" for name, needs in options if needs * MARGIN <= capacity][:1]


def _written(options: dict[str, Any]) -> str:
    return " with ".join(f"options.{name}: {spelt(value)}" for name, value in options.items())
