"""What a run consists of and what each part depends on; rules and verbs ask here. No torch.

Everything about one model or unit takes `at`: a `Unit`, or a rule's wildcards, which have the same names.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from r2q.config import TEXT_FILE, Config, Model, describe_recipe, method_info
from r2q.evaluation.task_files import named_files
from r2q.inputs.hub import Hub
from r2q.intact import signed_files
from r2q.kept import key, state_of
from r2q.models.source import MADE, SMALL, SOURCES, made_folder, made_of
from r2q.plan.sources import code, method_code


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


class Plan:
    """The units of a config with their folders, inputs and all that a result depends on.

    Args:
        config: what is asked; its order is that of the units: models, recipes, seeds.
        made: folders whose files a rule writes, with those files: they may not be there yet.
    """

    def __init__(self, config: Config, made: Mapping[str, Sequence[str]] | None = None) -> None:
        self.config, self.made = config, made or {}
        self.results, self.figures = f"results/{config.run}", f"figures/{config.run}"
        self.hub = Hub.of(config)
        self.units = [Unit(model, *unit) for model in config.models for unit in config.units(model)]
        self.recipes = config.resolved()["recipes"]
        self._described: dict[str, dict[str, Any]] = {}  # recipes in words
        self._read: dict[str, list[str]] = {}  # files of models: all units ask alike, and it takes a look at the disk
        self.trained = [unit for unit in self.units if config.trains(unit.recipe)]
        timed = config.latency.recipes if config.latency is not None else []
        first = [unit for unit in self.units if unit.seed == config.seeds_of(unit.recipe, unit.model)[0]]
        self.timed = [unit for unit in first if unit.recipe in timed]

    # Folders and files

    def files(self, *names: str, units: Sequence[Unit] | None = None) -> list[str]:
        """The files so named of all units, or of some."""
        return [f"{self.results}/{u.path}/{name}" for u in (self.units if units is None else units) for name in names]

    def of_model(self, file: str) -> Callable[[Any], str]:
        """A function to the file of a model."""
        return lambda at: f"{self.results}/{at.model}/{file}"

    # Inputs: local files whose change makes a result another one

    def states(self, *inputs: Callable[[Any], Sequence[str]]) -> Callable[[Any], str]:
        """A function to a hash of size and time of these inputs, but for what rules make.

        Snakemake looks for newer files alone; one that took another's place (`mv`, `cp -p`, `rsync -t`) may be older.
        Results do not keep it: in a copied folder it may be another.
        """

        def of(at: Any) -> str:
            paths = [path for files in inputs for path in files(at) if not self.is_made(path)]
            found = {path: Path(path).stat() for path in paths if Path(path).is_file()}
            return key({path: [stat.st_size, stat.st_mtime_ns] for path, stat in found.items()})

        return of

    def model_files(self, at: Any) -> list[str]:
        """Files of a local model folder that are read, or of the one that is made of a GGUF file."""
        return _named(self._model_files(at.model))

    def _model_files(self, model: str) -> list[str]:
        if model not in self._read:
            self._read[model] = model_files(self.config.models[model])
        return self._read[model]

    @property
    def sources(self) -> dict[str, str]:
        """Folders to be made of GGUF files, by name, with a model that comes as that file: models may share one."""
        made = ((name, entry) for name, entry in self.config.models.items() if entry.is_gguf)
        return {made_folder(entry).name: name for name, entry in made}

    def source_of(self, at: Any) -> str:
        """The model that a folder to be made is of."""
        return self.sources[at.source]

    def source_files(self, at: Any) -> list[str]:
        """The GGUF file that a folder is made of, if it is one here."""
        entry = self.config.models[self.source_of(at)]
        return _named([entry.path] if entry.kind == "gguf" else [])

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

    def training(self, at: Any) -> list[str]:
        """Rows that a recipe trains on, if it does."""
        reads = self.config.reads_rows(at.recipe)
        return [f"{self.results}/{at.model}/training_data.safetensors"] if reads else []

    def start(self, at: Any) -> list[str]:
        """The report of the unit whose packed weights a training starts from, if it names one."""
        start = self.recipes[at.recipe]["options"].get("start") if self.config.trains(at.recipe) else None
        if start is None:
            return []
        return self.files("report.json", units=[Unit(at.model, start, self.config.seeds_of(start, at.model)[0])])

    def reference(self, at: Any) -> list[str]:
        """What the full-precision model makes of held-out text, if the config asks for fidelity."""
        return [f"{self.results}/{at.model}/reference.safetensors"] if self.config.fidelity is not None else []

    def texts(self, section: str) -> Callable[[Any], list[str]]:
        """A function to the files that tokens of `calibration`, `training` or `fidelity` are cut from."""
        return lambda at: _named(self._inputs(self._files(section)))

    def _files(self, section: str) -> list[str]:
        """Texts of a section that are files."""
        texts = self.config.texts().items()
        return [path for key, path in texts if key.startswith(f"{section}.") and TEXT_FILE.search(path)]

    def task_files(self, at: Any = None) -> list[str]:
        """Tasks with their data, and texts for perplexities."""
        return _named(self._task_files)

    @cached_property
    def _task_files(self) -> list[str]:
        include, files = self.config.task_include, self._files("perplexity")
        named = [file for folder in include if not self.is_made(folder) for file, _ in named_files(folder)]
        files += [file for file in named if Path(file).is_file() or self.is_made(file)]
        return self._inputs(files, [*include, *self._task_data()])

    def _task_data(self) -> list[str]:
        """The folders of `task_data` that the tasks read; all of it where one is not named like its task."""
        data = self.config.task_data
        if data is None or not Path(data).is_dir():  # `missing_paths` says so
            return []
        names = [folder.name for folder in Path(data).iterdir() if folder.is_dir()]
        read = {task: [n for n in names if task == n or task.startswith(f"{n}_")] for task in self.config.tasks}
        if not all(read.values()):
            return [data]
        return sorted({str(Path(data) / name) for folders in read.values() for name in folders})

    def _inputs(self, files: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
        """These files and those below the folders; for what a rule makes, all that it makes."""
        made = [paths for made, paths in self.made.items() if any(below(path, made) for path in [*files, *folders])]
        present = [path for path in files if not self.is_made(path)]
        for folder in folders:
            if not self.is_made(folder):
                present += [str(path) for path in Path(folder).rglob("*") if path.is_file() and _is_read(path, folder)]
        return sorted(set(present)) + [path for paths in made for path in paths]

    def is_made(self, path: str) -> bool:
        """Whether a rule writes this file or folder."""
        return any(below(path, made) for made in self.made)

    @property
    def intermediates(self) -> list[str]:
        """What rules make between the config's files and the units: asked for, so that it comes back when deleted."""
        texts = [self.texts(section)(None) for section in ("calibration", "training", "fidelity")]
        read = set(self.task_files()).union(*texts)
        outputs = [path for files in self.made.values() for path in files if path in read]
        outputs += [str(Path(SOURCES, source) / name) for source in self.sources for name in MADE]
        outputs += [f"{self.results}/{model}/prepared.json" for model in self.config.models]
        return [*dict.fromkeys(outputs), *self.token_files]

    @property
    def token_files(self) -> dict[str, tuple[str, Unit]]:
        """Files of tokens that are made once a model: for calibration, training, and the distance to full precision.

        By path, with the rule that makes it and a unit that reads it.
        """
        kinds = {"calibrate": self.calibration, "teacher_data": self.training, "reference": self.reference}
        return {path: (rule, unit) for unit in self.units for rule, of in kinds.items() for path in of(unit)}

    # What else a result depends on, as one stable line each: when it changes, the job runs again

    def asked(self, rule: str, at: Any) -> str:
        """Hash of that line, which the results keep: Snakemake's own records do not follow a folder that is moved."""
        return key({rule: getattr(self, f"asked_{rule}")(at)})

    def asks_otherwise(self, rule: str, at: Any, asked: str) -> bool:
        """Whether a result was asked something else; older ones ("") do not say."""
        return asked not in ("", self.asked(rule, at))

    def asked_source(self, at: Any) -> str:
        made = made_of(self.config.models[self.source_of(at)])
        return _line(made, state=_states(self.source_files(at)), code=code("source"))

    def asked_prepare(self, at: Any) -> str:
        entry = self.config.models[at.model]
        state = [] if entry.is_gguf else _states(self.model_files(at))
        return _line(self._model(at, "add_bos", "sha256"), state=state, code=code("prepare"))

    def asked_check(self, at: Any) -> str:
        asked = self.config.model_dump(include={"tasks", "perplexity", "fidelity", "task_include", "task_data"})
        asked |= {"items": self.config.limits.items, "code": code("evaluate")} | self._pinned()
        return _line(self._model(at, "add_bos", without=("revision",)), **asked)

    def asked_calibrate(self, at: Any) -> str:
        assert self.config.calibration is not None
        section = self.config.calibration.model_dump(exclude={"offload", "minimum_tokens"})
        return _line(self._model(at, "add_bos"), calibration=section, code=code("calibrate"), **self._pinned())

    def asked_teacher_data(self, at: Any) -> str:
        assert self.config.training is not None
        parts = {"device": self.config.device, "training": self.config.training.model_dump()}
        return _line(self._model(at, "add_bos"), **parts, code=code("teacher_data"), **self._pinned())

    def asked_reference(self, at: Any) -> str:
        assert self.config.fidelity is not None
        size = self.config.limits.batch_size
        parts = {"device": self.config.device, "fidelity": self.config.fidelity.model_dump(), "batch_size": size}
        return _line(self._model(at, "add_bos", "dtype"), **parts, code=code("reference"), **self._pinned())

    def asked_quantize(self, at: Any) -> str:
        """Also of recipes that train; the seed is in the folder's name."""
        recipe = self.recipes[at.recipe]
        section = self.config.calibration.model_dump() if self.calibration(at) and self.config.calibration else None
        source = method_code(recipe["method"], recipe["options"])
        parts: dict[str, Any] = {"recipe": {**recipe, "seeds": None}, "device": self.config.device}
        parts |= {"calibration": section, "leaves": self.config.starts_training(at.recipe)}
        if at.recipe not in self._described:
            self._described[at.recipe] = asdict(describe_recipe(self.config, at.recipe))
        parts["facts"] = self._described[at.recipe]
        return _line(self._model(at), **parts, code=source)

    def asked_evaluate(self, at: Any) -> str:
        config, limits = self.config, self.config.limits
        return _line(
            self._model(at, "dtype", "add_bos", without=("path", "revision")),
            tasks={name: entry.model_dump() for name, entry in config.tasks.items()},
            perplexity={name: entry.model_dump() for name, entry in config.perplexity.items()},
            fidelity=None if config.fidelity is None else config.fidelity.model_dump(),
            task_include=config.task_include,
            task_data=config.task_data,
            limits={"items": limits.items, "batch_size": limits.batch_size, "samples": limits.samples},
            device=config.device,
            code=code("evaluate"),
            **self._pinned(),
            **_unnamed(self._task_files),
        )

    def asked_collect(self, at: Any = None) -> str:
        others = ("figures", "claims", "latency", "device", "limits")  # what moves a unit comes with its records
        asked = {key: v for key, v in self.config.resolved().items() if key not in others}
        order = [*(unit.path for unit in self.units), *self.config.perplexity, *self.config.tasks]
        return _line(asked, items=self.config.limits.items, order=order, code=code("report"))

    def asked_collect_training(self, at: Any = None) -> str:
        recipes = {unit.recipe: self.recipes[unit.recipe] for unit in self.trained}
        return _line(recipes, order=[unit.path for unit in self.trained], code=code("report"))

    def asked_lattice(self, at: Any = None) -> str:
        model, recipes = self.config.lattice_units() or ("", [])
        first = [self.config.seeds_of(name, model)[0] for name in recipes]
        section = self.config.figures.lattice.model_dump()
        return _line({"figure": section, "shown": [model, recipes, first]}, code=code("lattice"))

    def asked_latency(self, at: Any = None) -> str:
        """Not of the machine, nor of its threads: what was measured stays what it is."""
        return _line(self.config.model_dump(include={"latency", "device"}), code=code("latency"))

    def asked_claims(self, at: Any = None) -> str:
        return _line(self.config.claims.model_dump(), code=code("report"))

    def asked_report(self, at: Any = None) -> str:
        """Of tables and figures: nothing but their code."""
        return code("report")

    def _model(self, at: Any, *more: str, without: Sequence[str] = ()) -> dict[str, Any]:
        entry = self.config.models[at.model]
        fields = {name: getattr(entry, name) for name in ("path", "revision", *more) if name not in without}
        return fields | _unnamed([] if "path" in without else self._model_files(at.model))

    def _pinned(self) -> dict[str, dict[str, str]]:
        """The commits of data sets that `fetch` pinned."""
        commits = {e.id: e.commit for e in self.hub.pinned if e.kind == "dataset"}
        return {"pinned": commits} if commits else {}

    # Tables and figures: what a run shows, and the CSV files that each is made from

    tables = ("main", "fine", "coarse", "families", "residual", "frames", "generative", "groups", "cost", "latency",
              "memory", "published")  # fmt: skip

    @property
    def drawn(self) -> dict[str, tuple[str, ...]]:
        """The figures of the run by name: a module of `r2q.report.figures` and its variant."""
        changed = [unit.model for unit in self.units if self.recipes[unit.recipe]["granularity"] is not None]
        models = list(dict.fromkeys(changed))
        figures: dict[str, tuple[str, ...]] = {"frontier-bytes": ("scores",), "frontier-bits": ("scores",)}
        figures |= {"granularity": ("scores", "training")}
        figures |= {f"tasks-{model}": ("scores",) for model in models if self.config.tasks}
        figures |= {f"layer_errors-{model}": ("layers",) for model in models}
        lattice = self.config.lattice_units()
        if lattice is not None:
            figures |= {"lattice": ("lattice",)}
            plain = {"method": "r2q", "bits": 2, "options": method_info("r2q").options().model_dump(mode="json")}
            if any(plain.items() <= self.recipes[name].items() for name in lattice[1]):
                figures |= {"mechanism": ("lattice",)}
        if self.trained:
            figures |= {"training-paper": ("training",), "training-all": ("training",), "drift": ("drift",)}
        return figures

    @property
    def manifests(self) -> list[str]:
        """Files with the sha256 of what was made of records."""
        names = ["collected", "lattice", "report", "tables/tables", "tables/controls"]
        names += ["trained", "tables/claims"] if self.trained else []
        names += ["latency"] if self.timed else []
        return [f"{self.results}/{n}.sha256" for n in names] + [f"{self.figures}/{n}.sha256" for n in self.drawn]

    def left_over(self) -> list[str]:
        """Figures, claims and CSV files, with their manifests, that a run of this name had by another config."""
        made = [Path(self.results, f"{name}.sha256") for name in ("latency", "lattice", "trained", "tables/claims")]
        gone = {*made, *Path(self.figures).glob("*.sha256")} - {Path(manifest) for manifest in self.manifests}
        return [
            str(path) for manifest in sorted(gone) for path in (*signed_files(manifest), manifest) if path.is_file()
        ]

    def csv_of(self, *names: str) -> list[str]:
        """The CSV files of the run so named, as far as it has them: those of training only where a recipe trains."""
        there = dict.fromkeys(("training", "gradients", "drift"), bool(self.trained)) | {"latency": bool(self.timed)}
        return [f"{self.results}/{name}.csv" for name in names if there.get(name, True)]

    def csv_of_figure(self, at: Any) -> list[str]:
        return self.csv_of(*self.drawn[at.figure])


def _states(files: Iterable[str]) -> list[list[Any]]:
    return [[file, *state_of(Path(file))] for file in files]


def _line(parts: Mapping[str, Any], **more: Any) -> str:
    return json.dumps({**parts, **more}, sort_keys=True)


def _named(paths: Sequence[str]) -> list[str]:
    """Those that can be inputs of a rule: Snakemake has no way to write a brace in one."""
    return [path for path in paths if "{" not in path and "}" not in path]


def _unnamed(paths: Sequence[str]) -> dict[str, list[list[Any]]]:
    """The state of the others, for what is asked."""
    others = sorted(set(paths) - set(_named(paths)))
    states = _states(path for path in others if Path(path).exists())
    return {"files": states} if states else {}


def _is_read(path: Path, folder: str) -> bool:
    """Not what Python, git, editors and desktops leave in a folder, which comes and goes."""
    return path.suffix != ".pyc" and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def model_files(entry: Model) -> list[str]:
    """Files of a local folder that a model is read from: not what is there besides, and no link that leads nowhere."""
    if entry.is_gguf:
        return [str(made_folder(entry) / name) for name in MADE]
    folder = Path(entry.path)
    if not entry.is_folder or not folder.is_dir():
        return []
    return sorted({str(path) for part in (*SMALL, "*.safetensors") for path in folder.glob(part) if path.is_file()})


def below(path: str | Path, folder: str | Path) -> bool:
    """Whether a path is a folder or stands in it."""
    return Path(path).absolute().is_relative_to(Path(folder).absolute())
