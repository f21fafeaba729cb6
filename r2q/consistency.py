"""What no single key of a config can say: names that must exist elsewhere, options of methods, texts to keep apart."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from pydantic import ValidationError

from r2q.config import (
    CALIBRATION_PRESETS,
    HUB_TEXT,
    PYPI,
    RESERVED_MODELS,
    RESERVED_RUNS,
    SUFFIX,
    TEXT_FILE,
    Config,
    ConfigError,
    Model,
    Recipe,
    method_info,
)
from r2q.options import nearest
from r2q.problems import describe


def find_problems(config: Config) -> list[str]:
    """One sentence for each, starting with the dotted key; none when all is well."""
    found: list[str] = []
    if config.run in RESERVED_RUNS:
        found.append(f"run: {config.run} is reserved for results/{config.run}; choose another name")
    if not config.tasks and not config.perplexity:
        found.append("tasks: nothing to evaluate; name at least one entry of tasks or perplexity")
    for name, model in config.models.items():
        if name in RESERVED_MODELS:
            found.append(f"models.{name}: the name is reserved for results/<run>/{name}; choose another")
        found += [f"models.{name}.{line}" for line in _source_problems(model)]
        for recipe in model.recipes or []:
            if recipe not in config.recipes:
                found.append(f"models.{name}.recipes: unknown recipe {recipe}{nearest(recipe, config.recipes)}")
        found += _twice(f"models.{name}.recipes", model.recipes or [])
    for name, entry in config.recipes.items():
        found += [f"recipes.{name}{line}" for line in _recipe_problems(name, entry)]
    for name, text in config.perplexity.items():
        if not text.is_file and not HUB_TEXT.match(text.path):
            allowed = "a .txt, .jsonl or .parquet file (also .xz, .gz) or owner/name:config:split"
            found.append(f"perplexity.{name}.path: {text.path} is neither {allowed}")
        if name in config.tasks:
            found.append(f"perplexity.{name}: a task has the same name; a column of the table can only be one of them")
    found += _calibration_problems(config)
    found += _training_problems(config)
    found += _twice("seeds", config.seeds)
    for name, model in config.models.items():
        found += _twice(f"models.{name}.seeds", model.seeds or [])
    shown = config.figures.lattice.model
    if shown is not None and shown not in config.models:
        found.append(f"figures.lattice.model: unknown model {shown}{nearest(shown, config.models)}")
    elif shown is not None and not found and config.lattice_units() is None:
        needs = "a recipe rtn and a recipe r2q with default options and the same bits and granularity, not tensor"
        found.append(f"figures.lattice.model: the figure needs {needs}; {shown} lacks them")
    return found


def _source_problems(model: Model) -> list[str]:
    """A source that is not spelled as one, or keys that it does not have; each starts with the rest of the key."""
    found = []
    if model.kind == "pypi" and not PYPI.fullmatch(model.path):
        found.append(f"path: {model.path} is not pypi:<package>==<version>:<file in its wheel>.gguf")
    if model.kind == "pypi" and model.sha256 is None:
        found.append("sha256: required for a file of a package; 64 hex digits of the .gguf file")
    if model.sha256 is not None and not model.is_gguf:
        found.append(
            f"sha256: only a .gguf file has one, {model.path} is a {'folder' if model.is_folder else 'hub model'}"
        )
    if model.revision is not None and model.kind not in ("hub", "hub_gguf"):
        what = {"folder": "a folder", "gguf": "a file here", "pypi": "in a package"}[model.kind]
        found.append(f"revision: only a hub model has one, {model.path} is {what}")
    return found


def _calibration_problems(config: Config) -> list[str]:
    """Text that is missing, cannot be read, or is also evaluated."""
    wanted = config.calibration
    if wanted is None:
        used = dict.fromkeys(name for model in config.models for name in config.recipes_of(model))
        needy = [name for name in used if _needs(config.recipes[name].method, "calibration")]
        names = ", ".join(needy[:3]) + (f" and {len(needy) - 3} more" if len(needy) > 3 else "")
        return [f"calibration: required by recipes {names}; name at least its source"] if needy else []
    found = []
    if wanted.source not in CALIBRATION_PRESETS and not wanted.is_file and not HUB_TEXT.match(wanted.source):
        allowed = f"{', '.join(CALIBRATION_PRESETS)}, a .txt, .jsonl or .parquet file (also .xz, .gz)"
        close = nearest(wanted.source, CALIBRATION_PRESETS) if "/" not in wanted.source else ""
        found.append(f"calibration.source: {wanted.source} is none of {allowed}, owner/name:config:split{close}")
    for name, text in config.perplexity.items():
        if text.path == wanted.source:
            found.append(f"calibration.source: {wanted.source} is evaluated as perplexity.{name}; choose other text")
    return found


def _training_problems(config: Config) -> list[str]:
    """Rows that are missing, cannot be read, or are also evaluated."""
    needy = [name for name, entry in config.recipes.items() if _needs(entry.method, "training")]
    if config.training is None:
        names = ", ".join(needy[:3]) + (f" and {len(needy) - 3} more" if len(needy) > 3 else "")
        return [f"training: required by recipes {names}; name at least its texts"] if needy else []
    found = [line for name in needy for line in _start_problems(config, name)]
    evaluated = {text.path: f"perplexity.{name}" for name, text in config.perplexity.items()}
    for number, texts in enumerate(config.training.texts):
        key = f"training.texts[{number}].path: {texts.path}"
        if not TEXT_FILE.search(texts.path) and not HUB_TEXT.match(texts.path):
            allowed = "a .txt, .jsonl or .parquet file (also .xz, .gz) nor owner/name:config:split"
            found.append(f"{key} is neither {allowed}")
        if texts.path in evaluated:
            found.append(f"{key} is evaluated as {evaluated[texts.path]}; choose other text")
    if config.limits.training_processes > 1 and ":" in config.device:
        found.append(f"device: training_processes take the first GPUs, not {config.device}; set CUDA_VISIBLE_DEVICES")
    return found + (_vllm_problems(config) if config.training.uses_vllm else [])


def _vllm_problems(config: Config) -> list[str]:
    """What vLLM would change in silence."""
    assert config.training is not None
    found, temperature = [], config.training.temperature
    if ":" in config.device:
        found.append(f"device: vllm takes the first GPU that it sees, not {config.device}; set CUDA_VISIBLE_DEVICES")
    if temperature != 0 and not 0.01 <= temperature <= 2:
        found.append(f"training.temperature: vllm takes 0 or 0.01 to 2, not {temperature}")
    return found


def _start_problems(config: Config, name: str) -> list[str]:
    """A recipe to start from that is not there, trains itself, or has other groups."""
    entry, start = config.recipes[name], config.recipes[name].options.get("start")
    key = f"recipes.{name}.options.start: {start}"
    if start is None:
        return []
    if start not in config.recipes:
        return [f"{key} is no recipe{nearest(start, config.recipes)}"]
    if _needs(config.recipes[start].method, "training") or config.recipes[start].granularity != entry.granularity:
        return [f"{key} must be a recipe with granularity {entry.granularity} that does not train"]
    without = [m for m in config.models if name in config.recipes_of(m) and start not in config.recipes_of(m)]
    return [f"{key} is not among the recipes of model {model}" for model in without]


def _needs(method: str, what: str) -> bool:
    try:
        return method_info(method).needs == what
    except ConfigError:  # reported with the recipe
        return False


def _recipe_problems(name: str, entry: Recipe) -> list[str]:
    """Problems of one recipe; each starts with the rest of its key."""
    found = [f".{line}" for line in _twice("seeds", entry.seeds or [])]
    suffix = SUFFIX.search(name)
    if suffix and suffix[1] != entry.granularity:
        found.append(f".granularity: the name ends in -{suffix[1]} but the value is {entry.granularity or 'null'}")
    try:
        info = method_info(entry.method)
    except ConfigError as error:
        return [*found, f".method: {error}"]
    if entry.granularity is None and (info.weight_method or entry.method == "r2q"):
        found.append(f".granularity: method {entry.method} needs one: g<size>, channel or tensor")
    if entry.granularity is not None and (entry.method == "full_precision" or info.needs == "checkpoint"):
        found.append(f".granularity: method {entry.method} has none, not {entry.granularity}")
    try:
        options = info.options.model_validate(entry.options)
    except ValidationError as error:
        return found + [f".options.{line}" for line in describe(error, info.options)]
    if getattr(options, "optimizer", None) == "adamw_8bit" and find_spec("torchao") is None:
        found.append(".options.optimizer: adamw_8bit needs torchao, which is not installed here: pip install torchao")
    return found


def _twice(key: str, values: list[Any]) -> list[str]:
    return [f"{key}: {value} stands twice" for value in dict.fromkeys(values) if values.count(value) > 1]
