"""What no single key of a config can say: names that must exist elsewhere, options of methods, texts to keep apart."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from r2q.config.base import ConfigError, nearest, some, spelt
from r2q.config.facts import describe_recipe
from r2q.config.lattice import lattice_lacks
from r2q.config.leaks import leaks, same_text
from r2q.config.methods import method_info
from r2q.config.problems import describe
from r2q.config.run import Config
from r2q.config.sections import PYPI, Model, Recipe
from r2q.config.texts import CALIBRATION_PRESETS, HUB_TEXT, TEXT_FILE, TEXT_KINDS

RESERVED_RUNS = ("prepared", "reference", "published")  # other folders of results/
RESERVED_MODELS = ("logs", "tables", "benchmarks")  # other folders of results/<run>/
FILES = (".csv", ".html", ".json", ".safetensors", ".sha256", ".yaml")  # files beside the folders of models and recipes
SUFFIX = re.compile(r"-(g\d+|channel|tensor)$")


def find_problems(config: Config) -> list[str]:
    """One sentence for each, starting with the dotted key; none when all is well."""
    lines: list[str] = []
    if config.run.lower() in RESERVED_RUNS:
        lines.append(f"run: {config.run} is reserved for results/{config.run}; choose another name")
    if not config.tasks and not config.perplexity and config.fidelity is None:
        lines.append("tasks: nothing to evaluate; name at least one entry of tasks or perplexity, or fidelity")
    for name, model in config.models.items():
        if name.lower() in RESERVED_MODELS:
            lines.append(f"models.{name}: the name is reserved for results/<run>/{name}; choose another")
        lines += [f"models.{name}.{line}" for line in _source_problems(model)]
        for recipe in model.recipes or []:
            if recipe not in config.recipes:
                lines.append(f"models.{name}.recipes: unknown recipe {recipe}{nearest(recipe, config.recipes)}")
        lines += _twice(f"models.{name}.recipes", model.recipes or [])
    for section in ("models", "recipes"):
        lines += [
            f"{section}.{name}: the name ends as files of a run do ({', '.join(FILES)}); choose another"
            for name in getattr(config, section)
            if name.endswith(FILES)
        ]
        lines += _same_folder(section, getattr(config, section))
    wrong = [
        f"recipes.{name}{line}" for name, entry in config.recipes.items() for line in _recipe_problems(name, entry)
    ]
    lines += wrong or [line for name in config.recipes for line in _in_this_run(config, name)]
    lines += [line for key, path in config.texts().items() for line in _no_text(key, path)]
    for name in config.perplexity:
        if name in config.tasks:
            lines.append(f"perplexity.{name}: a task has the same name; a column of the table can only be one of them")
    if config.fidelity is not None:
        for section in ("perplexity", "tasks"):
            if "fidelity" in getattr(config, section):
                lines.append(f"{section}.fidelity: the name is reserved for the section fidelity; choose another")
    lines += [] if config.calibration is not None else _missing(config, "calibration", "path")
    lines += _training_problems(config) + leaks(config, content=False)
    lines += _twice("seeds", config.seeds)
    for name, model in config.models.items():
        lines += _twice(f"models.{name}.seeds", model.seeds or [])
    return lines or _latency_problems(config) + _lattice_problems(config) + _claims_problems(config)


def _latency_problems(config: Config) -> list[str]:
    """Recipes that are not there, or have nothing packed; batches that stand twice."""
    if config.latency is None:
        return []
    lines, used = _twice("latency.recipes", config.latency.recipes), config.used_recipes()
    for name in config.latency.recipes:
        if name not in used:
            lines.append(f"latency.recipes: unknown recipe {name}{nearest(name, used)}")
        elif config.recipes[name].granularity is None:
            lines.append(f"latency.recipes: {name} packs nothing; its time is that of each recipe's decoded twin")
    return lines + _twice("latency.batches", config.latency.batches)


def _same_folder(section: str, names: Iterable[str]) -> Iterator[str]:
    """Names that are one where a file system takes no notice of case, as those of macOS and Windows."""
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(name.lower(), name)) != name:
            yield f"{section}.{name}: only the case of its letters tells it from {other}; choose another name"


def _lattice_problems(config: Config) -> list[str]:
    """A model or recipes that the lattice figure cannot show. All recipes are right by themselves."""
    shown, recipes = config.figures.lattice.model, config.figures.lattice.recipes
    if shown is not None and shown not in config.models:
        return [f"figures.lattice.model: unknown model {shown}{nearest(shown, config.models)}"]
    lines, key = _twice("figures.lattice.recipes", recipes), "figures.lattice.recipes"
    for name in recipes:
        granularity = config.recipes[name].granularity if name in config.recipes else None
        if name not in config.recipes:
            lines.append(f"{key}: unknown recipe {name}{nearest(name, config.recipes)}")
        elif granularity in (None, "tensor"):
            lines.append(f"{key}: {name} has granularity {spelt(granularity)}; the figure needs groups or channels")
        elif granularity != (first := config.recipes.get(recipes[0], config.recipes[name]).granularity):
            lines.append(f"{key}: {name} has granularity {granularity}, {recipes[0]} {first}; they must have the same")
    if not lines and config.lattice_units() is None and (shown or recipes):
        lines.append(lattice_lacks(config))
    return lines


def _claims_problems(config: Config) -> list[str]:
    """Quantizers that no recipe trains with; the default subject may be one. All recipes are right by themselves."""
    subject, against = config.claims.subject, config.claims.against
    named = {"subject": [subject] if subject != type(config.claims)().subject or against else [], "against": against}
    known = sorted({describe_recipe(config, name).label for name in config.used_recipes() if config.trains(name)})
    hint = f"there are {', '.join(known)}" if known else "no recipe trains"
    lines = [
        f"claims.{key}: no recipe trains with quantizer {label}{nearest(label, known)}; {hint}"
        for key, labels in named.items()
        for label in labels
        if label not in known
    ]
    if subject in against:
        lines.append(f"claims.against: {subject} is the subject itself")
    return lines + _twice("claims.against", against)


def _training_problems(config: Config) -> list[str]:
    """Rows that are missing, stand twice, or are too few."""
    training = config.training
    if training is None:
        return _missing(config, "training", "texts")
    lines = []
    for number, text in enumerate(training.texts):  # rows of one text drawn twice: held-out rows would be trained on
        for other, earlier in enumerate(training.texts[:number]):
            if same_text(text.path, earlier.path, content=False) and text.field == earlier.field:
                lines.append(
                    f"training.texts[{number}].path: {text.path} is also training.texts[{other}]; take more rows there"
                )
        pairs = training.kind == "supervised"
        if not pairs and text.response != type(text).model_fields["response"].default:
            lines.append(f"training.texts[{number}].response: counts with kind: supervised alone")
        if pairs and re.search(r"\.txt(\.[xg]z)?$", text.path):
            lines.append(f"training.texts[{number}].path: supervised rows have two columns, and {text.path} has none")
        elif text.lines and (pairs or "+" in text.field):
            lines.append(f"training.texts[{number}].lines: several columns are read, whose lines are not each other's")
    if training.rows is not None and training.rows < 1:
        rows = training.rows + training.held_out
        lines.append(f"training.held_out: {training.held_out} of only {rows} rows; none would be left to train on")
    if training.kind == "generated" and (training.prompt_tokens or 0) >= training.length:
        lines.append(
            f"training.prompt_tokens: {training.prompt_tokens} leave nothing to generate in rows of "
            f"training.length, {training.length} tokens"
        )
    if config.limits.training_processes > 1 and ":" in config.device:
        lines.append(f"device: training_processes take the first GPUs, not {config.device}; set CUDA_VISIBLE_DEVICES")
    return lines + (_vllm_problems(config) if training.engine == "vllm" else [])


def _missing(config: Config, section: str, key: str) -> list[str]:
    """A sentence where a section is not there and recipes of some model need it."""
    needy = [name for name in config.used_recipes() if _needs(config.recipes[name].method, section)]
    return [f"{section}: required by recipes {some(needy)}; name at least its {key}"] if needy else []


def _no_text(key: str, path: str) -> list[str]:
    """A sentence where a text is neither a file nor a hub data set, nor a preset of calibration."""
    presets = list(CALIBRATION_PRESETS) if key == "calibration.path" else []
    if TEXT_FILE.search(path) or HUB_TEXT.match(path) or path in presets:
        return []
    if not presets:
        return [f"{key}: {path} is neither {TEXT_KINDS}"]
    close = nearest(path, presets) if "/" not in path else ""
    return [f"{key}: {path} is none of {', '.join([*presets, TEXT_KINDS])}{close}"]


def _vllm_problems(config: Config) -> list[str]:
    """What vLLM would change in silence."""
    assert config.training is not None
    lines, temperature = [], config.training.temperature
    if ":" in config.device:
        lines.append(f"device: vllm takes the first GPU that it sees, not {config.device}; set CUDA_VISIBLE_DEVICES")
    if temperature != 0 and not 0.01 <= temperature <= 2:
        lines.append(f"training.temperature: vllm takes 0 or 0.01 to 2, not {temperature}")
    return lines


def _in_this_run(config: Config, name: str) -> list[str]:
    """What one recipe cannot do beside the others, the texts and the models; all recipes are right by themselves."""
    recipe, options = config.recipes[name], config.options_of(name)
    lines = []
    for line in options.problems(recipe, config):
        of_recipe = line.startswith(("granularity", "bits"))
        lines.append(f"recipes.{name}.{line}" if of_recipe else f"recipes.{name}.options.{line}")
    start = getattr(options, "start", None)
    return lines if start is None or not config.trains(name) else lines + _start_problems(config, name, start)


def _source_problems(model: Model) -> list[str]:
    """A source that is not spelled as one, or keys that it does not have; each starts with the rest of the key."""
    lines = []
    if model.kind == "pypi" and not PYPI.fullmatch(model.path):
        lines.append(f"path: {model.path} is not pypi:<package>==<version>:<file in its wheel>.gguf")
    if model.kind == "pypi" and model.sha256 is None:
        lines.append("sha256: required for a file of a package; 64 hex digits of the .gguf file")
    if model.sha256 is not None and not model.is_gguf:
        what = "folder" if model.is_folder else "hub model"
        lines.append(f"sha256: only a .gguf file has one, {model.path} is a {what}")
    if model.revision is not None and model.kind not in ("hub", "hub_gguf"):
        what = {"folder": "a folder", "gguf": "a file here", "pypi": "in a package"}[model.kind]
        lines.append(f"revision: only a hub model has one, {model.path} is {what}")
    return lines


def _start_problems(config: Config, name: str, start: str) -> list[str]:
    """A recipe to start from that is not there, trains itself, or has other levels or layers."""
    key = f"recipes.{name}.options.start: {start}"
    if start not in config.recipes:
        return [f"{key} is no recipe{nearest(start, config.recipes)}"]
    entry, other = config.recipes[name], config.recipes[start]
    if config.trains(start) or not method_info(other.method).quantizes:
        return [f"{key} must be a recipe that quantizes and does not train"]
    lines = []
    for field in ("granularity", "bits", "lm_head"):
        mine, theirs = getattr(entry, field), getattr(other, field)
        if mine != theirs:
            lines.append(f"{key} must be a recipe with {field} {spelt(mine)}, as this one has; it has {spelt(theirs)}")
    if entry.options.get("start_from") == "weights" and not method_info(other.method).leaves_latent:
        lines.append(f"{key} leaves no weights to start from (start_from: weights); gptq and efficientqat_block do")
    if method_info(other.method).scales_inputs:
        lines.append(f"{key} scales or turns inputs, which training does not: its levels are those of other weights")
    without = [m for m in config.models if name in config.recipes_of(m) and start not in config.recipes_of(m)]
    return lines + [f"{key} is not among the recipes of model {model}" for model in without]


def _needs(method: str, what: str) -> bool:
    try:
        return method_info(method).needs == what
    except ConfigError:  # reported with the recipe
        return False


def _recipe_problems(name: str, entry: Recipe) -> list[str]:
    """Problems of one recipe; each starts with the rest of its key."""
    lines = [f".{line}" for line in _twice("seeds", entry.seeds or [])]
    suffix = SUFFIX.search(name)
    if suffix and suffix[1] != entry.granularity:
        lines.append(f".granularity: the name ends in -{suffix[1]} but the value is {spelt(entry.granularity)}")
    try:
        info = method_info(entry.method)
    except ConfigError as error:
        return [*lines, f".method: {error}"]
    if info.quantizes and entry.granularity is None:
        lines.append(f".granularity: method {entry.method} needs one: g<size>, channel or tensor")
    if not info.quantizes:
        for field, default in (("granularity", None), ("bits", 2), ("lm_head", False)):
            if (value := getattr(entry, field)) != default:
                lines.append(f".{field}: method {entry.method} has none, not {spelt(value)}")
    try:
        info.options.read(entry.options)
    except ValidationError as error:
        return lines + [f".options.{line}" for line in describe(error, info.options)]
    return lines


def _twice(key: str, values: list[Any]) -> list[str]:
    return [f"{key}: {value} stands twice" for value in dict.fromkeys(values) if values.count(value) > 1]
