"""What a run consists of and what each part depends on; rules and verbs ask here. No torch.

Everything about one model or unit takes `at`: a `Unit`, or a rule's wildcards, which have the same names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2q.config import TEXT_FILE, Config, Model, method_info
from r2q.plan.sources import code, method_code

READ = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")  # of a model's folder; no one reads other files


@dataclass(frozen=True)
class Unit:
    """One recipe on one model with one seed: what is quantized, evaluated and reported on its own."""

    model: str
    recipe: str
    seed: int

    @property
    def path(self) -> str:
        """Its folder in that of the run."""
        return f"{self.model}/{self.recipe}/seed{self.seed}"


def units_of(config: Config) -> list[Unit]:
    """All units, in the order of the config: models, recipes, seeds."""
    return [Unit(model, *unit) for model in config.models for unit in config.units(model)]


class Plan:
    """The units of a config with their folders, inputs and all that a result depends on.

    Args:
        config: what is asked.
        made: folders whose files a rule writes, with those files: they may not be there yet.
    """

    def __init__(self, config: Config, made: Mapping[str, Sequence[str]] | None = None) -> None:
        self.config, self.made = config, made or {}
        self.results, self.figures = f"results/{config.run}", f"figures/{config.run}"
        self.units = units_of(config)
        self.recipes = config.resolved()["recipes"]
        self._shared: dict[str, Any] = {}  # what all units ask for alike, and what takes a look at the disk
        self.trained = [unit for unit in self.units if config.trains(unit.recipe)]

    # Folders and files

    def files(self, *names: str, units: Sequence[Unit] | None = None) -> list[str]:
        """The files so named of all units, or of some."""
        return [f"{self.results}/{u.path}/{name}" for u in (self.units if units is None else units) for name in names]

    def of_model(self, file: str) -> Callable[[Any], str]:
        """A function to the file of a model."""
        return lambda at: f"{self.results}/{at.model}/{file}"

    # Inputs: local files whose change makes a result another one

    def model_files(self, at: Any) -> list[str]:
        """Files of a local model folder that are read."""
        return _named(model_files(self.config.models[at.model]))

    def tokenizer_files(self, at: Any) -> list[str]:
        """Those of them that a tokenizer is made of."""
        return [path for path in self.model_files(at) if not path.endswith(".safetensors")]

    def checkpoint_files(self, at: Any) -> list[str]:
        """Files of a checkpoint that was quantized elsewhere."""
        if method_info(self.recipes[at.recipe]["method"]).needs != "checkpoint":
            return []
        return _named(model_files(Model(path=self.recipes[at.recipe]["options"]["path"])))

    def calibration(self, at: Any) -> list[str]:
        """Tokens that methods of a model look at, if any does."""
        calibrates = self.config.calibrates(at.model)
        return [f"{self.results}/{at.model}/calibration.safetensors"] if calibrates else []

    def calibration_text(self, at: Any = None) -> list[str]:
        """The file that calibration tokens are cut from, if it is one."""
        section = self.config.calibration
        return _named(self._inputs([section.source] if section is not None and section.is_file else []))

    def training(self, at: Any) -> list[str]:
        """Rows that a recipe trains on, if it does."""
        trains = self.config.trains(at.recipe)
        return [f"{self.results}/{at.model}/training_data.safetensors"] if trains else []

    def training_text(self, at: Any = None) -> list[str]:
        """The files that training rows come from."""
        texts = self.config.training.texts if self.config.training is not None else []
        return _named(self._inputs([text.path for text in texts if TEXT_FILE.search(text.path)]))

    def start(self, at: Any) -> list[str]:
        """The report of the unit whose packed weights a training starts from, if it names one."""
        start = self.recipes[at.recipe]["options"].get("start") if self.config.trains(at.recipe) else None
        if start is None:
            return []
        return self.files("report.json", units=[Unit(at.model, start, self.config.seeds_of(start, at.model)[0])])

    def task_files(self, at: Any = None) -> list[str]:
        """Tasks with their data, and texts for perplexities."""
        return _named(self._task_files())

    def _task_files(self) -> list[str]:
        if "tasks" not in self._shared:
            texts = [text.path for text in self.config.perplexity.values() if text.is_file]
            self._shared["tasks"] = self._inputs(texts, [*self.config.task_include, *self._task_data()])
        return self._shared["tasks"]

    def _task_data(self) -> list[str]:
        """The folders of `task_data` that the tasks read; all of it where one is not named like its task."""
        data = self.config.task_data
        if data is None:
            return []
        names = [folder.name for folder in Path(data).iterdir() if folder.is_dir()]
        read = {task: [n for n in names if task == n or task.startswith(f"{n}_")] for task in self.config.tasks}
        if not all(read.values()):
            return [data]
        return sorted({str(Path(data) / name) for found in read.values() for name in found})

    def _inputs(self, files: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
        """These files and those below the folders; for what a rule makes, all that it makes."""
        made = [paths for made, paths in self.made.items() if any(below(path, made) for path in [*files, *folders])]
        there = [path for path in files if not self.is_made(path)]
        for folder in folders:
            if not self.is_made(folder):
                there += [str(path) for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        return sorted(set(there)) + [path for paths in made for path in paths]

    def is_made(self, path: str) -> bool:
        """Whether a rule writes this file or folder."""
        return any(below(path, made) for made in self.made)

    # What else a result depends on, as one stable line each: when it changes, the job runs again

    def asked_prepare(self, at: Any) -> str:
        return _line(self._model(at), code=code("prepare"))

    def asked_calibrate(self, at: Any) -> str:
        assert self.config.calibration is not None
        section = self.config.calibration.model_dump(exclude={"offload", "minimum_tokens"})
        return _line(self._model(at, "add_bos"), calibration=section, code=code("calibrate"))

    def asked_teacher_data(self, at: Any) -> str:
        assert self.config.training is not None
        section, device = self.config.training.model_dump(), self.config.device
        return _line(self._model(at, "add_bos"), device=device, training=section, code=code("teacher_data"))

    def asked_quantize(self, at: Any) -> str:
        """Also of recipes that train; the seed is in the folder's name."""
        recipe = self.recipes[at.recipe]
        section = self.config.calibration.model_dump() if self.calibration(at) and self.config.calibration else None
        source = method_code(recipe["method"], recipe["options"])
        parts = {"recipe": {**recipe, "seeds": None}, "device": self.config.device, "calibration": section}
        return _line(self._model(at), **parts, code=source)

    def asked_evaluate(self, at: Any) -> str:
        config, limits = self.config, self.config.limits
        return _line(
            self._model(at, "dtype", "add_bos", without=("path", "revision")),
            tasks={name: entry.model_dump() for name, entry in config.tasks.items()},
            perplexity={name: entry.model_dump() for name, entry in config.perplexity.items()},
            task_include=config.task_include,
            task_data=config.task_data,
            limits={"items": limits.items, "batch_size": limits.batch_size, "samples": limits.samples},
            device=config.device,
            code=code("evaluate"),
            **_unnamed(self._task_files()),
        )

    def asked_collect(self, at: Any = None) -> str:
        return _line({key: v for key, v in self.config.resolved().items() if key != "figures"}, code=code("report"))

    def asked_collect_training(self, at: Any = None) -> str:
        return _line(
            {name: self.recipes[name] for name in sorted({u.recipe for u in self.trained})}, code=code("report")
        )

    def asked_figure_lattice(self, at: Any = None) -> str:
        section = self.config.figures.lattice.model_dump()
        return _line({"figure": section, "recipes": self.recipes}, code=code("figure_lattice"))

    def asked_report(self, at: Any = None) -> str:
        """Of tables and figures: nothing but their code."""
        return code("report")

    def _model(self, at: Any, *more: str, without: Sequence[str] = ()) -> dict[str, Any]:
        entry = self.config.models[at.model]
        fields = {name: getattr(entry, name) for name in ("path", "revision", *more) if name not in without}
        return fields | _unnamed([] if "path" in without else model_files(entry))

    # What a job takes

    def processes(self, at: Any) -> int:
        """Processes, each with a GPU where there are any, that a job is spread over."""
        return self.config.limits.training_processes if self.config.trains(at.recipe) else 1


def _line(parts: Mapping[str, Any], **more: Any) -> str:
    return json.dumps({**parts, **more}, sort_keys=True)


def _named(paths: Sequence[str]) -> list[str]:
    """Those that can be inputs of a rule: Snakemake has no way to write a brace in one."""
    return [path for path in paths if "{" not in path and "}" not in path]


def _unnamed(paths: Sequence[str]) -> dict[str, list[list[Any]]]:
    """The state of the others, for what is asked."""
    others = sorted(set(paths) - set(_named(paths)))
    states = [
        [path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns] for path in others if Path(path).exists()
    ]
    return {"files": states} if states else {}


def model_files(entry: Model) -> list[str]:
    """Files of a local folder that a model is read from: not what is there besides, and no link that leads nowhere."""
    folder = Path(entry.path)
    if not entry.is_folder or not folder.is_dir():
        return []
    return sorted({str(path) for pattern in READ for path in folder.glob(pattern) if path.is_file()})


def below(path: str | Path, folder: str | Path) -> bool:
    """Whether a path is a folder or stands in it."""
    return Path(path).absolute().is_relative_to(Path(folder).absolute())
