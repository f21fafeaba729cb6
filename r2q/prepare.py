"""The verb `prepare`: everything that can be found out before any work is, for all models, recipes and tasks at once.

Models are loaded onto the meta device, which reads headers and no weights, so a group size that does not divide, a
damaged file, a tokenizer of another model or a model that is already quantized stops the run in seconds, not after the
first hour. Weights are hashed, and loaded only to try out whether a model that may look ahead does.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2q import config as configuration
from r2q.config import TEXT_FILE, Config, Model, refuse, some
from r2q.failures import one_line
from r2q.inputs.hub import Hub, answer
from r2q.intact import Damaged, digest_sums
from r2q.kept import write_json
from r2q.measure import versions
from r2q.records import digest
from r2q.tokens import beyond_positions

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
FACTS = ("path", "revision", "commit", "family", "fingerprint", "head", "targets")  # of a model, read by later steps
LIBRARIES = ("torch", "transformers", "safetensors", "tokenizers", "lm_eval", "datasets", "numpy")
SKEW = 60  # seconds by which the clock of another machine, such as a file server, may be ahead


def prepare(config_path: str | Path, out: str | Path, model: str | None = None) -> None:
    """Check models, recipes and tasks of a config; write what is known of each model to `out` (JSON).

    With `model`, only that one with its recipes, and no tasks.

    Raises ConfigError with one sentence per problem, and then writes nothing.
    """
    config, out = configuration.load(config_path, model), Path(out)
    problems = missing_paths(config) or future_paths(config)
    problems = [line for line in problems if model is None or line.startswith(f"models.{model}.")]
    hub = Hub.of(config)
    if not problems:
        if model is None:
            problems = task_problems(config)
        names = [*config.models] if model is None else [model]
        models: dict[str, Any] = {}
        problems += refusals(config, [recipe for name in names for recipe in config.recipes_of(name)])
        _warn_of_python(config)
        for name in names:
            try:
                models[name] = _describe(config.models[name])
            except (ValueError, OSError) as error:
                entry = config.models[name]
                said = answer(error, entry.path, entry.revision) or f"{entry.path}: {one_line(error)}"
                problems.append(f"models.{name}.path: {said}")
                continue
            changed = hub.changed(config.models[name], models[name]["files"])
            problems += [f"models.{name}.path: {line}" for line in changed]
            problems += recipe_problems(config, name, models[name])
            print(f"prepare {name}: {_summary(models[name])}", flush=True)
    refuse(config_path, problems)
    written = {"format_version": FORMAT_VERSION, "models": models, "versions": versions(*LIBRARIES)}
    write_json(out, written | {"digest": digest(written)})


def _warn_of_python(config: Config) -> None:
    """Say before it happens that task files of the user's run Python."""
    from r2q.evaluation.task_files import files_with_python

    if files := files_with_python(config.task_include):
        what = "in task_include has !function: its Python code runs in evaluation"
        print(f"prepare: {some(files, 1)} {what}", flush=True)


def read_prepared(path: str | Path, model: str, fields: Iterable[str] = ("fingerprint",)) -> dict[str, Any]:
    """What `prepare` wrote of a model, `fields` and more; raises FileNotFoundError, or Damaged where one is missing."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; run `prepare` first")
    try:
        written = json.loads(path.read_text())
        if written.get("digest", digest(written)) != digest(written):
            raise ValueError
        facts = written["models"][model]
        return facts | {name: facts[name] for name in fields}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Damaged(f"{path}: damaged, or without model {model}") from None


def open_model(
    config: Config, prepared: str | Path, model: str, fields: Iterable[str] = ("fingerprint",)
) -> "tuple[dict[str, Any], Path, torch.device]":
    """What `prepare` found of a model, its folder, and the device of the config; torch gets the config's threads.

    Raises as `read_prepared`; ValueError: the model is another one since, or there is no such device.
    """
    import torch

    from r2q.models.devices import pick_device
    from r2q.models.fingerprint import check_unchanged
    from r2q.models.load import quiet
    from r2q.models.source import model_folder

    facts = read_prepared(prepared, model, fields)
    folder = model_folder(config.models[model], facts.get("commit"))
    check_unchanged(folder, facts)
    torch.set_num_threads(config.limits.threads)
    quiet()
    return facts, folder, pick_device(config.device)


def recipe_problems(config: Config, name: str, facts: Mapping[str, Any]) -> list[str]:
    """What recipes of model `name`, and rows for them, cannot do with it, by the facts that `prepare` wrote of it."""
    positions, problems = facts.get("positions"), list[str]()
    if config.calibration is not None and config.calibrates(name):
        problems += beyond_positions("calibration.window", config.calibration.window, positions, name)
    if config.training is not None and any(map(config.reads_rows, config.recipes_of(name))):
        problems += beyond_positions("training.length", config.training.length, positions, name)
    for recipe in config.recipes_of(name):
        wants = config.recipes[recipe]
        if config.trains(recipe) and not facts.get("plain_logits", True):
            problems.append(
                f"recipes.{recipe}.method: the logits of model {name} are not what its output layer gives (they are "
                f"scaled or capped), which training needs; name the recipes of models.{name} without it"
            )
        if wants.lm_head and facts["head"] is None:
            problems.append(
                f"recipes.{recipe}.lm_head: the output head of model {name} is tied to its embedding, or no linear map"
            )
        size = configuration.group_size(wants.granularity) or 1
        layers = facts["targets"] + ([facts["head"]] if wants.lm_head and facts["head"] else [])
        bad = [layer for layer in layers if layer["shape"][-1] % size]
        if bad:
            more = f" and {len(bad) - 1} more layers" if len(bad) > 1 else ""
            fits = math.gcd(*(layer["shape"][-1] for layer in layers))
            problems.append(
                f"recipes.{recipe}.granularity: group size {size} does not divide the {bad[0]['shape'][-1]} "
                f"input features of {bad[0]['name']}{more} of model {name}; what divides {fits} does, and `channel`"
            )
    return problems + configuration.lattice_problems(config, name, facts)


def refusals(config: Config, recipes: Iterable[str]) -> Iterator[str]:
    """What methods refuse as soon as they are made, such as a quantizer that GPTQ cannot go by. Imports torch."""
    from r2q.quantization.method import make_method, recipe_of

    for name in dict.fromkeys(recipes):
        try:
            make_method(recipe_of(config, name, 0))
        except ValueError as error:
            yield f"recipes.{name}.method: {one_line(error)}"
        except Exception as error:  # a fault in its code makes a failed row, with the traceback in its job's log
            print(f"prepare: recipe {name} will fail: {one_line(f'{type(error).__name__}: {error}')}", flush=True)


def local_paths(config: Config) -> list[tuple[str, str, str]]:
    """(key, path, `file` or `folder`) of everything on this machine that the config's jobs read."""
    paths = [(f"models.{name}.path", m.path, "folder") for name, m in config.models.items() if m.is_folder]
    paths += [(f"models.{name}.path", m.path, "file") for name, m in config.models.items() if m.kind == "gguf"]
    paths += [(key, path, "file") for key, path in config.texts_to_read().items() if TEXT_FILE.search(path)]
    paths += [(f"task_include[{i}]", path, "folder") for i, path in enumerate(config.task_include)]
    for name in config.used_recipes():
        recipe = config.recipes[name]
        if configuration.method_info(recipe.method).needs == "checkpoint":
            checkpoint = configuration.Model(path=recipe.options["path"])
            paths += [(f"recipes.{name}.options.path", checkpoint.path, "folder")] if checkpoint.is_folder else []
    if config.task_data is not None:
        paths.append(("task_data", config.task_data, "folder"))
    return paths


def missing_paths(config: Config) -> list[str]:
    """One sentence for every local path of the config that is not there; else for every text that leaks by content."""
    is_there = {"folder": Path.is_dir, "file": Path.is_file}
    missing = [
        f"{key}: there is no {what} {path}" for key, path, what in local_paths(config) if not is_there[what](Path(path))
    ]
    return missing or configuration.leaks(config)


def future_paths(config: Config) -> list[str]:
    """One sentence for every local path with a file dated in the future: whatever is made of it would always be older,
    and be made again in every run."""
    problems, now = [], time.time() + SKEW
    for key, path, _ in local_paths(config):
        files = Path(path).rglob("*") if Path(path).is_dir() else [Path(path)]
        for file in sorted(files):
            if file.is_file() and file.stat().st_mtime > now:
                date = datetime.fromtimestamp(file.stat().st_mtime).isoformat(" ", "seconds")
                problems.append(f"{key}: {file} is dated in the future ({date}); touch it")
                break
    return problems


def engine_problems(config: Config, rows: Iterable[str | Path] | None = None) -> list[str]:
    """A sentence when vLLM is to write training rows and is not installed here; nothing is imported to find out.

    `rows` are the files that they go to; those that are there as the config asks, whoever wrote them, need no engine.
    """
    training = config.training
    if training is None or training.engine != "vllm" or find_spec("vllm") is not None:
        return []
    if rows is not None and all(_as_asked(Path(path), training.model_dump(mode="json")) for path in rows):
        return []
    return ["training.engine: vllm is not installed in this environment; install it there, or use transformers"]


def optimizer_problems(config: Config, recipes: Iterable[str]) -> list[str]:
    """A sentence for every one of these recipes whose optimizer is of a package that is not installed here."""
    if find_spec("torchao") is not None:
        return []
    return [
        f"recipes.{name}.options.optimizer: adamw_8bit needs torchao, which is not installed here: pip install torchao"
        for name in dict.fromkeys(recipes)
        if getattr(config.options_of(name), "optimizer", None) == "adamw_8bit"
    ]


def _as_asked(rows: Path, section: dict[str, Any]) -> bool:
    """Whether training rows are there whose description has all of the section `training`."""
    described = rows.with_suffix(".json")
    if not rows.is_file() or not described.is_file():
        return False
    try:
        made = json.loads(described.read_text())
    except ValueError:
        return False
    return isinstance(made, dict) and all(made.get(name) == value for name, value in section.items())


def task_problems(config: Config) -> list[str]:
    """One sentence for every task that lm-eval does not know, or whose data are not there."""
    from r2q.evaluation.tasks import check_tasks

    try:
        check_tasks(config)
    except (ValueError, FileNotFoundError) as error:
        return str(error).splitlines()
    return []


def _describe(entry: Model) -> dict[str, Any]:
    """What later steps need to know of a model."""
    from r2q.models import checks
    from r2q.models.fingerprint import describe_files
    from r2q.models.load import load_full, quiet
    from r2q.models.rehearsal import has_plain_logits
    from r2q.models.source import made_folder, make_folder, model_folder, source_facts
    from r2q.models.targets import NoHead, decoder_blocks, list_targets, refuse_quantized
    from r2q.tokens import Encoder

    quiet()
    if entry.is_gguf:
        make_folder(entry, made_folder(entry))
    folder = model_folder(entry)
    config = checks.read_config(folder)
    refuse_quantized(config, entry.path)
    checks.check_files(folder, config)
    model = checks.meta_model(folder, config)
    try:
        *targets, head = list_targets(model, lm_head=True)
    except NoHead:
        targets, head = list_targets(model), None
    tokenizer = checks.read_tokenizer(folder)
    checks.check_tokenizer(tokenizer, model)
    Encoder(tokenizer, entry.add_bos)
    if checks.may_look_ahead(model):
        checks.check_causal(load_full(str(folder), dtype="float32"))
    files = describe_files(folder)
    return {
        "path": entry.path,
        "revision": entry.revision,
        "commit": folder.name if entry.kind == "hub" else None,
        "source_format": source_facts(folder).get("source_format") if entry.is_gguf else None,
        "family": config.model_type,
        "architecture": type(model).__name__,
        "attention": model.config._attn_implementation,
        "dtype": str(model.dtype).removeprefix("torch."),
        "rounded": checks.rounded(folder, model),
        "plain_logits": has_plain_logits(model),
        "positions": checks.max_positions(config),
        "total_parameters": sum(p.numel() for p in model.parameters()),
        "block_parameters": sum(p.numel() for p in decoder_blocks(model)[1].parameters()),
        "fingerprint": digest_sums({name: file["sha256"] for name, file in files.items()}),
        "files": files,
        "head": None if head is None else _named_shape(head),
        "targets": [_named_shape(target) for target in targets],
    }


def _named_shape(target: Any) -> dict[str, Any]:
    return {"name": target.name, "shape": list(target.weight.shape)}


def _summary(facts: dict[str, Any]) -> str:
    weights = f"{facts['total_parameters'] / 1e6:.2f} M parameters"
    made = f" dequantized from {facts['source_format']}" if facts["source_format"] else ""
    share = sum(math.prod(target["shape"]) for target in facts["targets"]) / facts["block_parameters"]
    layers = f"{len(facts['targets'])} layers to quantize ({share:.1%} of its decoder blocks)"
    read = f", {' and '.join(facts['rounded'])} read as {facts['dtype']}" if facts["rounded"] else ""
    return f"{facts['architecture']}{made}, {weights}{read}, {layers}, {facts['attention']} attention"
