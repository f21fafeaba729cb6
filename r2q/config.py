"""What may be asked for: closed models, checked at once, without importing torch or transformers.

`load(path)` and `parse(dict, source)` return a frozen `Config` or raise ConfigError with one sentence per problem. The
JSON schema that Snakemake validates against is generated from these models (`python -m r2q schema`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from r2q.options import ConfigError, MethodInfo, MethodOptions, built_in_methods, method_info, resolve_method
from r2q.problems import DEVICE, GRANULARITY, NAME, describe
from r2q.strict_yaml import read_yaml
from r2q.training.section import Training

__all__ = [
    "Config",
    "ConfigError",
    "MethodInfo",
    "MethodOptions",
    "built_in_methods",
    "method_info",
    "resolve_method",
    "load",
    "parse",
    "read_yaml",
]

Name = Annotated[str, Field(pattern=NAME)]
Positive = Annotated[int, Field(ge=1)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]
CALIBRATION_PRESETS = ("wikitext2", "c4", "pile")
LATTICE_METHODS = ("rtn", "r2q")  # shown side by side in the lattice figure
RESERVED_RUNS = ("prepared", "reference", "published")  # other folders of results/
RESERVED_MODELS = ("logs", "tables", "benchmarks")  # other folders of results/<run>/
HUB_TEXT = re.compile(r"^[\w.-]+/[\w.-]+:[\w.-]*:[\w.-]+$")  # owner/name:config:split
TEXT_FILE = re.compile(r"\.(txt|jsonl|parquet)(\.(xz|gz))?$")
SUFFIX = re.compile(r"-(g\d+|channel|tensor)$")


def _null_is_empty(kind: Any) -> BeforeValidator:
    """`key:` with nothing after it means `key: {}`."""
    return BeforeValidator(lambda value: {} if value is None else value, json_schema_input_type=kind)


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Model(_Closed):
    """A model to quantize.

    Attributes:
        path: a folder in Hugging Face layout, or a hub id `owner/name`.
        revision: commit, tag or branch of a hub model.
        add_bos: whether evaluation puts the begin-of-text token first; null leaves it to the tokenizer.
        dtype: number type of evaluation; auto = the checkpoint's own.
        recipes: names of the recipes it gets; null = all.
        seeds: in place of the run's seeds, for recipes that name none.
    """

    path: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    add_bos: bool | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    recipes: Annotated[list[Name], Field(min_length=1)] | None = None
    seeds: Seeds | None = None

    @property
    def is_folder(self) -> bool:
        """Whether `path` means a folder here, not a hub id."""
        return self.path.startswith((".", "/", "~")) or self.path.count("/") != 1 or Path(self.path).exists()


class Recipe(_Closed):
    """One row of the tables: a method with its options.

    Attributes:
        method: a file of baselines/, `r2q`, or a dotted `package.module.Class`.
        granularity: what shares a scale: `g<size>` consecutive input features, an output `channel`, or the `tensor`.
        bits: bits of a code.
        options: the method's own options.
        lm_head: also quantize the output head, where it is not tied to the embedding.
        seeds: in place of the model's and the run's seeds.
    """

    method: Annotated[str, Field(min_length=1)]
    granularity: Annotated[str, Field(pattern=GRANULARITY)] | None = None
    bits: Literal[2, 3, 4] = 2
    options: Annotated[dict[str, Any], _null_is_empty(dict[str, Any] | None)] = {}
    lm_head: bool = False
    seeds: Seeds | None = None


class Task(_Closed):
    """One lm-eval task.

    Attributes:
        num_fewshot: worked examples in the prompt; null = the task's own number.
        metric: the one shown in the main table; null = acc, else exact_match, else word_perplexity.
        items: only the first so many items; null = all (or `limits.items`).
    """

    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    metric: str | None = None
    items: Positive | None = None


class Perplexity(_Closed):
    """Token perplexity on joined windows (GPTQ's convention).

    Attributes:
        path: a .txt, .jsonl or .parquet file (also .xz, .gz), or a hub data set `owner/name:config:split`.
        field: column that holds the text.
        separator: what stands between joined documents; blank lines, as in the GPTQ repository, or a model's own token.
        window: tokens a window; part of the metric's name.
        windows: only the first so many windows; null = all.
    """

    path: Annotated[str, Field(min_length=1)]
    field: str = "text"
    separator: str = "\n\n"
    window: Annotated[int, Field(ge=2)] = 2048
    windows: Positive | None = None

    @property
    def is_file(self) -> bool:
        """Whether `path` means a file here, not a hub data set."""
        return TEXT_FILE.search(self.path) is not None


class Calibration(_Closed):
    """Text that methods look at while they quantize. Never the text that is evaluated.

    Attributes:
        source: a .txt, .jsonl or .parquet file (also .xz, .gz), a hub data set `owner/name:config:split`, or a preset:
            wikitext2 (its train split), c4 (first file of its train split), pile (the held-out backup split).
        field: column that holds the text.
        lines: every line of a text is a document; otherwise a .txt file is one document.
        separator: what stands between joined documents; blank lines, as in the GPTQ repository, or a model's own token.
        slicing: `joined` cuts windows out of all documents joined, `document` takes one window out of a random document
            that is long enough; auto = document for c4 and pile, joined for everything else.
        windows: how many; an eighth as many more (rounded up) are held out to measure output errors on.
        window: tokens a window.
        seed: of the random places.
        offload: keep the inputs of a block in main memory instead of the GPU's.
        minimum_tokens: an expert that the router gives fewer tokens than this is shown all of them.
    """

    source: Annotated[str, Field(min_length=1)]
    field: str = "text"
    lines: bool = False
    separator: str = "\n\n"
    slicing: Literal["auto", "joined", "document"] = "auto"
    windows: Positive = 128
    window: Annotated[int, Field(ge=2)] = 2048
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    offload: bool = False
    minimum_tokens: Annotated[int, Field(ge=0)] = 256

    @property
    def is_file(self) -> bool:
        """Whether `source` means a file here."""
        return TEXT_FILE.search(self.source) is not None


class Limits(_Closed):
    """What a run may use.

    Attributes:
        items: only the first so many items of every task; null = all.
        batch_size: prompts evaluated at once; fixed, because it can move the last digit.
        threads: CPU threads a job.
        training_processes: GPUs of one machine (processes, on a CPU) that a recipe which trains is spread over.
        samples: also write every prompt and answer.
    """

    items: Positive | None = None
    batch_size: Positive = 64
    threads: Positive = 1
    training_processes: Positive = 1
    samples: bool = False


class LatticeFigure(_Closed):
    """Which weights the lattice figure shows: a model, a layer (null = the first of each), an output row, a group."""

    model: Name | None = None
    layer: str | None = None
    row: Annotated[int, Field(ge=0)] = 0
    group: Annotated[int, Field(ge=0)] = 0


class Figures(_Closed):
    """Settings of single figures."""

    lattice: LatticeFigure = LatticeFigure()


class Config(_Closed):
    """One run: which models, which recipes, which tasks.

    Attributes:
        run: name of the folders results/<run> and figures/<run>.
        models, recipes, tasks, perplexity: by the names that the tables show.
        calibration: text for the methods that look at some; null where no recipe does.
        training: rows for the methods that train; null where no recipe does.
        task_include: folders with lm-eval task files of your own.
        task_data: a folder DIR whose DIR/<task>/<split>.jsonl[.xz|.gz] stand in for the hub's data.
        seeds: one unit per seed for methods with randomness, the first one for all others.
        device: auto, cpu, cuda or cuda:N.
    """

    run: Name
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)]
    tasks: dict[str, Annotated[Task, _null_is_empty(Task | None)]] = {}
    perplexity: dict[Name, Perplexity] = {}
    calibration: Calibration | None = None
    training: Training | None = None
    task_include: list[str] = []
    task_data: str | None = None
    seeds: Seeds = [0]
    device: Annotated[str, Field(pattern=DEVICE)] = "auto"
    limits: Limits = Limits()
    figures: Figures = Figures()

    def recipes_of(self, model: str) -> list[str]:
        """Names of the recipes that a model gets, in the order of the section `recipes`."""
        chosen = self.models[model].recipes
        return [name for name in self.recipes if chosen is None or name in chosen]

    def seeds_of(self, recipe: str, model: str) -> list[int]:
        """Seeds of a model's recipe: all for a method with randomness, only the first where the seed moves nothing."""
        entry = self.recipes[recipe]
        seeds = entry.seeds or self.models[model].seeds or self.seeds
        return seeds if method_info(entry.method).stochastic else seeds[:1]

    def units(self, model: str) -> list[tuple[str, int]]:
        """(recipe, seed) of every unit of a model."""
        return [(recipe, seed) for recipe in self.recipes_of(model) for seed in self.seeds_of(recipe, model)]

    def calibrates(self, model: str) -> bool:
        """Whether some recipe of a model looks at calibration text."""
        return any(method_info(self.recipes[name].method).needs == "calibration" for name in self.recipes_of(model))

    def trains(self, recipe: str) -> bool:
        """Whether a recipe trains the model."""
        return method_info(self.recipes[recipe].method).needs == "training"

    def lattice_units(self) -> tuple[str, list[str]] | None:
        """What the lattice figure shows: a model and its recipes rtn and r2q; None when there is no such pair.

        The first model that has both methods with default options, the same bits and the same groups or channels; the
        model that `figures.lattice` names, if it names one.
        """
        for model in [self.figures.lattice.model] if self.figures.lattice.model else self.models:
            plain: dict[tuple[str | None, int], dict[str, str]] = {}
            for name in self.recipes_of(model):
                entry = self.recipes[name]
                if entry.method not in LATTICE_METHODS or entry.granularity == "tensor":
                    continue
                options = method_info(entry.method).options
                if options.model_validate(entry.options) == options():
                    plain.setdefault((entry.granularity, entry.bits), {}).setdefault(entry.method, name)
            for found in plain.values():
                if len(found) == len(LATTICE_METHODS):
                    return model, [found[method] for method in LATTICE_METHODS]
        return None

    def quantizes(self) -> bool:
        """Whether any recipe changes a weight."""
        return any(self.recipes[recipe].granularity for model in self.models for recipe in self.recipes_of(model))

    def items_of(self, task: str) -> int | None:
        """How many items of a task are asked; None = all."""
        own = self.tasks[task].items
        return self.limits.items if own is None else own

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default filled in, also those of the methods' options."""
        data = self.model_dump(mode="json")
        for name, entry in self.recipes.items():
            options = method_info(entry.method).options.model_validate(entry.options)
            data["recipes"][name]["options"] = options.model_dump(mode="json")
        return data


def load(path: str | Path) -> Config:
    """Read and check a config file. Raises ConfigError naming file, key and nearest valid key for every problem."""
    return parse(read_yaml(path), source=str(path))


def parse(data: Mapping[str, Any], source: str) -> Config:
    """Check a config that is already plain data; `source` names it in messages. Raises ConfigError."""
    from r2q.consistency import find_problems  # which is about the classes above

    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {line}" for line in describe(error, Config))) from None
    problems = find_problems(config)
    if problems:
        raise ConfigError("\n".join(f"{source}: {line}" for line in problems))
    return config
