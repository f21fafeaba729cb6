"""One run as it is asked for, and what follows from it."""

from typing import Annotated, Any

from pydantic import Field

from r2q.config.base import DEVICE, MethodOptions, Name, PathText, Section, Seeds, null_is_empty
from r2q.config.methods import MethodInfo, method_info, methods_named
from r2q.config.sections import Claims, Figures, Latency, Limits, Model, Recipe, Task
from r2q.config.texts import Calibration, Fidelity, Perplexity, Training

LATTICE_LABELS = ("rtn", "r2q")  # shown side by side in the lattice figure


class Config(Section):
    """One run: which models, which recipes, which tasks."""

    run: Name
    """name of the folders `results/<run>` and `figures/<run>`"""
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    """by the names that the tables show"""
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)]
    """by the names that the tables show"""
    tasks: dict[str, Annotated[Task, null_is_empty(Task | None)]] = Field(default={})
    """any lm-eval task or group; `{}` or nothing for its own settings"""
    perplexity: dict[Name, Perplexity] = Field(default={})
    """texts, by the names that the tables show"""
    fidelity: Fidelity | None = None
    """text on which every unit is held against the full-precision model; null: none"""
    calibration: Calibration | None = None
    """text for the methods that look at some; null where no recipe does"""
    training: Training | None = None
    """rows for the methods that train; null where no recipe does"""
    task_include: list[PathText] = Field(default=[])
    """folders with lm-eval task files of your own"""
    task_data: PathText | None = None
    """a folder DIR: lm-eval's own tasks read `DIR/<task>/<split>.jsonl` (also .xz, .gz) in place of the hub"""
    seeds: Seeds = Field(default=[0])
    """one unit per seed for methods with randomness, the first one for all others"""
    device: Annotated[str, Field(pattern=DEVICE)] = "auto"
    """auto, cpu, cuda, cuda:N"""
    limits: Limits = Limits()
    """what a run may use"""
    latency: Latency | None = None
    """packed checkpoints to be timed, alone on the machine; null: none"""
    figures: Figures = Figures()
    """settings of single figures"""
    claims: Claims = Claims()
    """whose claims about training the run judges"""

    def texts(self) -> dict[str, str]:
        """The path of every text, by its key."""
        named = {f"perplexity.{name}": text.path for name, text in self.perplexity.items()}
        for key, text in (("fidelity", self.fidelity), ("calibration", self.calibration)):
            named |= {} if text is None else {key: text.path}
        for number, source in enumerate(self.training.texts if self.training is not None else []):
            named[f"training.texts[{number}]"] = source.path
        return {f"{key}.path": path for key, path in named.items()}

    def texts_to_read(self) -> dict[str, str]:
        """The same without calibration or training text that no recipe of a model looks at."""
        calibrates, trains = any(map(self.calibrates, self.models)), any(map(self.reads_rows, self.used_recipes()))
        idle = tuple(name for name, used in (("calibration", calibrates), ("training", trains)) if not used)
        return {key: path for key, path in self.texts().items() if not key.startswith(idle)}

    def used_recipes(self) -> list[str]:
        """Names of the recipes that some model gets."""
        return list(dict.fromkeys(name for model in self.models for name in self.recipes_of(model)))

    def recipes_of(self, model: str) -> list[str]:
        """Names of the recipes that a model gets, in the order of the section `recipes`."""
        chosen = self.models[model].recipes
        return [name for name in self.recipes if chosen is None or name in chosen]

    def seeds_of(self, recipe: str, model: str) -> list[int]:
        """Seeds of a model's recipe: all for a method with randomness, only the first where the seed moves nothing."""
        entry = self.recipes[recipe]
        seeds = entry.seeds or self.models[model].seeds or self.seeds
        return seeds if any(info.stochastic for info in self.methods_of(recipe)) else seeds[:1]

    def options_of(self, recipe: str) -> MethodOptions:
        """A recipe's options with every default filled in."""
        entry = self.recipes[recipe]
        return method_info(entry.method).options.read(entry.options)

    def methods_of(self, recipe: str) -> list[MethodInfo]:
        """A recipe's method and, where its options name one, the quantizer inside of it."""
        return methods_named(self.recipes[recipe].method, dict(self.options_of(recipe)))

    def units(self, model: str) -> list[tuple[str, int]]:
        """(recipe, seed) of every unit of a model."""
        return [(recipe, seed) for recipe in self.recipes_of(model) for seed in self.seeds_of(recipe, model)]

    def calibrates(self, model: str) -> bool:
        """Whether some recipe of a model looks at calibration text."""
        return any(method_info(self.recipes[name].method).needs == "calibration" for name in self.recipes_of(model))

    def trains(self, recipe: str) -> bool:
        """Whether a recipe is a training frame's, which leaves records of its steps."""
        return method_info(self.recipes[recipe].method).trains

    def reads_rows(self, recipe: str) -> bool:
        """Whether a recipe reads training rows, as all do that train, and methods that train in a way of their own."""
        return method_info(self.recipes[recipe].method).needs == "training"

    def starts_training(self, recipe: str) -> bool:
        """Whether some recipe starts from the weights that a recipe rounded, which it then has to leave."""
        options = [entry.options for entry in self.recipes.values()]
        return any(one.get("start") == recipe and one.get("start_from") == "weights" for one in options)

    def lattice_units(self) -> tuple[str, list[str]] | None:
        """What the lattice figure shows: a model and recipes of it; None when there is no model with such recipes.

        The recipes that `figures.lattice` names, else rtn and r2q with default options, the same bits and the same
        groups or channels; of the first model that has them, or of the one that `figures.lattice` names.
        """
        figure = self.figures.lattice
        for model in [figure.model] if figure.model else self.models:
            if figure.recipes:
                if set(figure.recipes) <= set(self.recipes_of(model)):
                    return model, list(figure.recipes)
                continue
            plain: dict[tuple[str | None, int], dict[str, str]] = {}
            for name in self.recipes_of(model):
                entry, (info, *inner) = self.recipes[name], self.methods_of(name)
                if inner or info.label not in LATTICE_LABELS or entry.granularity == "tensor":
                    continue
                if self.options_of(name) == info.options():
                    plain.setdefault((entry.granularity, entry.bits), {}).setdefault(info.label, name)
            for by_label in plain.values():
                if len(by_label) == len(LATTICE_LABELS):
                    return model, [by_label[method] for method in LATTICE_LABELS]
        return None

    def items_of(self, task: str) -> int | None:
        """How many items of a task are asked; None = all."""
        items = self.tasks[task].items
        return self.limits.items if items is None else items

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default filled in, also those of the methods' options."""
        data = self.model_dump(mode="json")
        for name in self.recipes:
            data["recipes"][name]["options"] = self.options_of(name).model_dump(mode="json")
        return data
