"""The verb `prepare`: everything that can be found out before any work is, for all models, recipes and tasks at once.

Models are built without weights (on the meta device) from their config, so a group size that does not divide, a tied
head or a model that is already quantized stops the run in seconds, not after the first hour.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from r2q import config as configuration
from r2q.config import TEXT_FILE, Config, ConfigError, Model
from r2q.kept import write_json
from r2q.measure import versions
from r2q.options import nearest
from r2q.records import Damaged

FORMAT_VERSION = 1
FACTS = ("path", "revision", "commit", "family", "fingerprint", "head", "targets")  # of a model, read by later steps
LIBRARIES = ("torch", "transformers", "safetensors", "tokenizers", "lm_eval", "datasets", "numpy")
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]  # weights without pickle, config, tokenizer


def prepare(config_path: str | Path, out: str | Path, model: str | None = None) -> None:
    """Check models, recipes and tasks of a config; write what is known of each model to `out` (JSON).

    Args:
        config_path: the run's config.
        out: the JSON to write: results/<run>/prepared.json, or for one model results/<run>/<model>/prepared.json.
        model: only this model with its recipes, and no tasks; None = all models and all tasks.

    Raises ConfigError with one sentence per problem, and then writes nothing.
    """
    config, out = configuration.load(config_path), Path(out)
    if model is not None and model not in config.models:
        raise ConfigError(f"{config_path}: models: unknown model {model}{nearest(model, config.models)}")
    problems = [line for line in missing_paths(config) if model is None or line.startswith(f"models.{model}.")]
    if not problems:
        if model is None:
            problems = task_problems(config)
        names = [*config.models] if model is None else [model]
        run = out.parent if model is None else out.parent.parent
        models: dict[str, Any] = {}
        for name in names:
            cache = FileHashes(run / ".kept" / f"files-{name}.json")
            try:
                models[name] = _describe(config.models[name], cache)
            except (ValueError, OSError) as error:
                problems.append(f"models.{name}.path: {config.models[name].path}: {' '.join(str(error).split())}")
                continue
            problems += recipe_problems(config, name, models[name])
            print(f"prepare {name}: {_summary(models[name])}", flush=True)
    if problems:
        raise ConfigError("\n".join(f"{config_path}: {problem}" for problem in problems))
    write_json(out, {"format_version": FORMAT_VERSION, "models": models, "versions": versions(*LIBRARIES)})


def read_prepared(path: str | Path, model: str, fields: Iterable[str] = ("fingerprint",)) -> dict[str, Any]:
    """What `prepare` wrote of a model, `fields` and more; raises FileNotFoundError, or Damaged where one is missing."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; run `prepare` first")
    try:
        facts = json.loads(path.read_text())["models"][model]
        return facts | {name: facts[name] for name in fields}
    except (ValueError, LookupError, TypeError):
        raise Damaged(f"{path}: damaged, or without model {model}") from None


def recipe_problems(config: Config, name: str, facts: Mapping[str, Any]) -> list[str]:
    """What the recipes of model `name` cannot do with it, by the facts that `prepare` wrote of it."""
    problems = []
    for recipe in config.recipes_of(name):
        wants = config.recipes[recipe]
        if wants.lm_head and facts["head"] is None:
            problems.append(f"recipes.{recipe}.lm_head: the output head of model {name} is tied to its embedding")
        granularity = wants.granularity or ""
        size = int(granularity[1:]) if granularity.startswith("g") else 1
        layers = facts["targets"] + ([facts["head"]] if wants.lm_head and facts["head"] else [])
        bad = [layer for layer in layers if layer["shape"][-1] % size]
        if bad:
            more = f" and {len(bad) - 1} more layers" if len(bad) > 1 else ""
            problems.append(
                f"recipes.{recipe}.granularity: group size {size} does not divide the {bad[0]['shape'][-1]} "
                f"input features of {bad[0]['name']}{more} of model {name}"
            )
    return problems


def missing_paths(config: Config) -> list[str]:
    """One sentence for every local path of the config that is not there."""
    wanted = [(f"models.{name}.path", m.path, "folder") for name, m in config.models.items() if m.is_folder]
    wanted += [(f"perplexity.{name}.path", p.path, "file") for name, p in config.perplexity.items() if p.is_file]
    if config.calibration is not None and config.calibration.is_file:
        wanted.append(("calibration.source", config.calibration.source, "file"))
    for number, texts in enumerate(config.training.texts if config.training is not None else []):
        if TEXT_FILE.search(texts.path):
            wanted.append((f"training.texts[{number}].path", texts.path, "file"))
    wanted += [(f"task_include[{i}]", path, "folder") for i, path in enumerate(config.task_include)]
    for name, recipe in config.recipes.items():
        if configuration.method_info(recipe.method).needs == "checkpoint":
            checkpoint = configuration.Model(path=recipe.options["path"])
            wanted += [(f"recipes.{name}.options.path", checkpoint.path, "folder")] if checkpoint.is_folder else []
    if config.task_data is not None:
        wanted.append(("task_data", config.task_data, "folder"))
    found = {"folder": Path.is_dir, "file": Path.is_file}
    return [f"{key}: there is no {kind} {path}" for key, path, kind in wanted if not found[kind](Path(path))]


def engine_problems(config: Config, rows: Iterable[str | Path] | None = None) -> list[str]:
    """A sentence when vLLM is to write training rows and is not installed here; nothing is imported to find out.

    `rows` are the files that they go to; those that are there as the config asks, whoever wrote them, need no engine.
    """
    wanted = config.training
    if wanted is None or not wanted.uses_vllm or find_spec("vllm") is not None:
        return []
    if rows is not None and all(_as_asked(Path(path), wanted.model_dump(mode="json")) for path in rows):
        return []
    return ["training.engine: vllm is not installed in this environment; install it there, or use transformers"]


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


def _describe(entry: Model, cache: FileHashes) -> dict[str, Any]:
    """What later steps need to know of a model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from r2q.models.targets import has_tied_head, list_targets, refuse_quantized

    folder = Path(entry.path) if entry.is_folder else _download(entry.path, entry.revision)
    model_config = AutoConfig.from_pretrained(folder)
    refuse_quantized(model_config, entry.path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    tied = has_tied_head(model)
    layers = [{"name": t.name, "shape": list(t.weight.shape)} for t in list_targets(model, lm_head=not tied)]
    return {
        "path": entry.path,
        "revision": entry.revision,
        "commit": None if entry.is_folder else folder.name,
        "family": model_config.model_type,
        "architecture": type(model).__name__,
        "total_parameters": sum(p.numel() for p in model.parameters()),
        "fingerprint": _fingerprint(folder, cache),
        "head": None if tied else layers.pop(),  # comes last
        "targets": layers,
    }


def _download(path: str, revision: str | None) -> Path:
    """The snapshot of a hub model in the local cache; its folder's name is the commit."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=HUB_FILES))


def _fingerprint(folder: Path, cache: FileHashes) -> str:
    """sha256 over config.json and every safetensors file: names and contents."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError("has no *.safetensors file (other weight formats are not read)")
    lines = [f"{cache.sha256(file)}  {file.name}\n" for file in [folder / "config.json", *weights]]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class FileHashes:
    """sha256 of large files, remembered in a JSON file as long as path, size and time of change stay the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            known = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            known = {}
        self.known: dict[str, Any] = known if isinstance(known, dict) else {}

    def sha256(self, file: Path) -> str:
        """Hex digits of the file's content."""
        stat = file.stat()
        state = [stat.st_size, stat.st_mtime_ns]
        entry = self.known.get(str(file.resolve()))
        if isinstance(entry, dict) and entry.get("state") == state and isinstance(entry.get("sha256"), str):
            return entry["sha256"]
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self.known[str(file.resolve())] = {"state": state, "sha256": digest}
        write_json(self.path, self.known)
        return digest


def _summary(facts: dict[str, Any]) -> str:
    weights = f"{facts['total_parameters'] / 1e6:.2f} M parameters"
    return f"{facts['architecture']}, {weights}, {len(facts['targets'])} layers to quantize"
