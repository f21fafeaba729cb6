"""The tasks of a config: checked before any work, then loaded once per process.

`check_tasks` imports neither torch nor lm-eval. `load_tasks` hands lm-eval one small YAML per named task that includes
the task's own file, so that lm-eval's definition is used as it is and only the source of the data may differ.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from r2q.config import Config, ConfigError, nearest
from r2q.evaluation.chance import Items, items_of
from r2q.evaluation.local_data import LocalData, instead_of_hub, local_data
from r2q.evaluation.sharing import freeze
from r2q.evaluation.task_files import TaskFile, TaskFiles, default_folder
from r2q.files import COMPRESSION, Newest, sha256
from r2q.inputs.hub import Hub

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # lm_eval.simple_evaluate's defaults
DEFAULT_METRICS = {  # lm-eval 0.4.13, api/registry.py: DEFAULT_METRIC_REGISTRY
    "loglikelihood": ["perplexity", "acc"],
    "loglikelihood_rolling": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
    "multiple_choice": ["acc", "acc_norm"],
    "generate_until": ["exact_match"],
}


@dataclass
class TaskSet:
    """The loaded tasks of a config."""

    dictionary: dict[str, Any]  # what `lm_eval.evaluate` takes: tasks, groups, group_map
    asked: dict[str, list[str]]  # task, group or tag of the config -> the names that stand for it in the results
    # per single task, choices and gold of the evaluated documents (None: not multiple choice)
    items: dict[str, Items | None] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)  # per single task, how many documents are evaluated
    hash: str = ""  # of everything on the tasks' side that can move a number: settings, documents, prompts
    # per single task, hash of its evaluated documents and prompts
    documents: dict[str, str] = field(default_factory=dict)
    # per single task, what its last evaluation gave for each document (see `sharing.freeze`)
    seen: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def check_tasks(config: Config) -> dict[str, Any]:
    """Find out what would stop the evaluation, in well under a second for most tasks.

    Returns:
        Per task of the config, the files of each single task that it stands for ("hub" without).

    Raises:
        ConfigError: one sentence per problem: unknown task (with the nearest name), one that is named twice, metric
            that the task does not have, data file or folder that is not there.
    """
    problems: list[str] = []
    by_task: dict[str, Any] = {}
    entry_of: dict[str, str] = {}  # of a single task, the first in the config that stands for it
    files = TaskFiles(config.task_include)
    for name, settings in config.tasks.items():
        try:
            entries = files.closure(name)
            problem = _metric_problem(name, settings.metric, entries)
            if problem:
                problems.append(problem)
            by_task[name] = {}
            for entry in _leaves(entries):
                if (other := entry_of.setdefault(entry.name, name)) != name:
                    raise ConfigError(f"tasks.{name}: {entry.name} is also part of {other}; name it once")
                _check_fewshot(entry, settings.num_fewshot)
                data = local_data(entry, _folder(config), settings.num_fewshot)
                by_task[name][entry.name] = "hub" if data is None else data.files
        except ConfigError as error:
            problems.append(str(error))
    for name, text in config.perplexity.items():
        if text.is_file and not Path(text.path).is_file():
            problems.append(f"perplexity.{name}.path: there is no file {text.path}")
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return by_task


def _folder(config: Config) -> Path | None:
    return None if config.task_data is None else Path(config.task_data)


def _leaves(entries: Mapping[str, TaskFile]) -> list[TaskFile]:
    return [entry for entry in entries.values() if not isinstance(entry.settings.get("task"), list)]


def _check_fewshot(entry: TaskFile, asked: int | None) -> None:
    if asked and entry.settings.get("num_fewshot") == 0:
        raise ConfigError(f"tasks.{entry.name}.num_fewshot: the task is defined with 0 examples, not {asked}")


def _metric_problem(name: str, metric: str | None, entries: Mapping[str, TaskFile]) -> str | None:
    problem = _aggregation_problem(name, entries)
    if metric is None or problem:
        return problem
    allowed: list[str] = []
    for entry in entries.values():
        offered = _metrics(entry)
        if offered is None:
            return None  # a Python class or function decides when it runs; `pick` then checks it
        allowed += offered
    names = list(dict.fromkeys(allowed))
    wanted, _, filter_ = metric.replace(",", "/").partition("/")
    if wanted not in names:
        return f"tasks.{name}.metric: the task has no {metric}{nearest(metric, names)}"
    filters = list(dict.fromkeys(part for entry in _leaves(entries) for part in _filters(entry)))
    listed = [entry.settings["task"] for entry in entries.values() if isinstance(entry.settings.get("task"), list)]
    own = any(isinstance(member, dict) for members in listed for member in members)  # settings that no file has
    if filter_ and not own and filter_ not in filters:
        given = [f"{wanted}/{part}" for part in filters]
        return f"tasks.{name}.metric: the task has no {wanted}/{filter_}{nearest(metric, given)}"
    return None


def _filters(entry: TaskFile) -> list[str]:
    """Names of the filters under which a task's file has its metrics."""
    return [str(part.get("name")) for part in entry.settings.get("filter_list") or [{"name": "none"}]]


def _aggregation_problem(name: str, entries: Mapping[str, TaskFile]) -> str | None:
    """A group of which no aggregated metric, under the filters it names, is one that its tasks give."""
    listed = entries[name].settings.get("aggregate_metric_list")
    if not listed or not isinstance(entries[name].settings.get("task"), list):
        return None
    given: set[tuple[str, str]] = set()
    for entry in _leaves(entries):
        if entry.name == name:
            continue
        metrics = _metrics(entry)
        if metrics is None:
            return None  # only running it can tell
        given |= {(metric, filter_) for metric in metrics for filter_ in _filters(entry)}
    aggregates = listed if isinstance(listed, list) else [listed]
    for part in aggregates:
        filters = part.get("filter_list")
        filters = [filters] if isinstance(filters, str) else filters
        if any(part.get("metric") == metric and (filters is None or filter_ in filters) for metric, filter_ in given):
            return None
    if not given:
        return None
    names = ", ".join(sorted({metric if filter_ == "none" else f"{metric}/{filter_}" for metric, filter_ in given}))
    asked = ", ".join(str(part.get("metric")) for part in aggregates)
    return f"tasks.{name}: the group aggregates {asked}, its tasks give {names}; name its tasks in its place"


def _metrics(entry: TaskFile) -> list[str] | None:
    """Metrics that a task's file names; None when only running it can tell."""
    settings = entry.settings
    if "class" in settings:
        return None
    if isinstance(settings.get("task"), list):
        listed = settings.get("aggregate_metric_list") or []
    else:
        listed = settings.get("metric_list")
        if listed is None:
            return DEFAULT_METRICS[settings.get("output_type", "generate_until")]
    names = [entry.get("metric") for entry in (listed if isinstance(listed, list) else [listed])]
    if any(not isinstance(n, str) or n.startswith("!function") for n in names):
        return None
    return names


def load_tasks(config: Config, hub: Newest | None = None) -> TaskSet:
    """Load every task of a config and build its prompts.

    Args:
        config: tasks, task_include, task_data and limits count.
        hub: where rows come from that are not here; None: as `fetch` pinned them, else the newest.

    Raises:
        ConfigError: as `check_tasks`; ValueError: a data file is damaged.
    """
    from lm_eval.tasks import TaskManager

    hub = Hub.of(config) if hub is None else hub
    files = TaskFiles(config.task_include)
    folder = _folder(config)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    result = TaskSet({}, {})
    with tempfile.TemporaryDirectory(prefix="r2q-tasks-") as scratch:
        closures = {name: files.closure(name) for name in config.tasks}
        local: dict[str, tuple[TaskFile, LocalData | None]] = {}
        for name, entries in closures.items():
            for entry in entries.values():
                single = not isinstance(entry.settings.get("task"), list)
                shots = config.tasks[name].num_fewshot
                if single:
                    _check_fewshot(entry, shots)
                data = local_data(entry, folder, shots) if single else None
                local[entry.name] = (entry, data)
        for number, (entry, data) in enumerate(local.values()):
            if entry.path is not None:
                Path(scratch, f"{number:05}.yaml").write_text(_include(entry, data))
        manager = TaskManager(include_path=scratch, include_defaults=False)
        for name, settings in config.tasks.items():
            seed_all()
            members = [entry.name for entry in _leaves(closures[name])]
            with instead_of_hub(folder, [name, *(m for m in members if m != name)], hub):
                loaded = manager.load([name])
            twice = sorted(loaded["tasks"].keys() & tasks.keys())
            if twice:
                raise ConfigError(f"tasks.{name}: {twice[0]} is also part of another entry; name it once")
            tasks |= loaded["tasks"]
            groups |= loaded.get("groups", {})
            aggregated = [g for g, group in loaded.get("groups", {}).items() if g == name and group.has_aggregation]
            result.asked[name] = aggregated or list(loaded["tasks"])
            for task in loaded["tasks"].values():
                _set_fewshot(task, settings.num_fewshot)
                _describe(task, local.get(task.task_name))
                frozen = freeze(task, config.items_of(name), SEEDS["fewshot"])
                result.limits[task.task_name] = len(frozen.evaluated)
                result.items[task.task_name] = items_of(task, frozen.evaluated)
                result.documents[task.task_name] = frozen.documents
                result.seen[task.task_name] = frozen.seen
                result.hash = sha256(result.hash, task.task_name, frozen.hash)
    result.dictionary = {
        "tasks": tasks,
        "groups": groups,
        "group_map": {name: group.child_names for name, group in groups.items()},
    }
    return result


def _include(entry: TaskFile, data: LocalData | None) -> str:
    """YAML that includes a task's own file, and replaces where its data come from."""
    settings: dict[str, Any] = {"include": str(entry.path.resolve()) if entry.path else None}
    if data is None:
        return yaml.safe_dump(settings)
    files = {split: [str(path) for path in paths] for split, paths in data.files.items()}
    settings |= {**data.changed, "dataset_kwargs": {"files": files}}
    return yaml.safe_dump(settings) + "custom_dataset: !function r2q.evaluation.local_data.load_splits\n"


def _describe(task: Any, source: tuple[TaskFile, LocalData | None] | None) -> None:
    """Let a task's settings say where it came from, without the paths of this machine."""
    metadata = task.config.metadata if isinstance(task.config.metadata, dict) else {}
    if source is None:
        metadata.pop("config_source", None)
        return
    entry, data = source
    if entry.path is not None and "config_source" in metadata:
        root = default_folder().parent.parent
        path = entry.path.resolve()
        inside = path.is_relative_to(root)
        metadata["config_source"] = path.relative_to(root).as_posix() if inside else path.name
    if data is not None:
        task.config.custom_dataset = None
        task.config.dataset_path, task.config.dataset_name = "json", None
        names = {split: [_name(path) for path in paths] for split, paths in data.files.items()}
        task.config.dataset_kwargs = {"data_files": names}


def _name(path: Path) -> str:
    """A data file without what depends on the machine or on how it is compressed."""
    name = path.name
    for ending in COMPRESSION[1:]:
        name = name.removesuffix(ending)
    return name


def _set_fewshot(task: Any, asked: int | None) -> None:
    """As `lm_eval.simple_evaluate` does: the asked number, else the task's own, else none."""
    if asked is not None:
        task.set_config(key="num_fewshot", value=asked)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)


def seed_all() -> None:
    """Seed Python's, NumPy's and torch's generators, as `lm_eval.simple_evaluate` does."""
    import random

    import numpy as np
    import torch

    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])
    torch.manual_seed(SEEDS["torch"])
