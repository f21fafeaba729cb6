"""Feeding lm-eval's own task definitions from local files, in place of the hub and of `datasets`' cache.

Two cases: `task_data: DIR` replaces the hub for every task (DIR/<task>/<split>.jsonl[.xz|.gz]), and a task file of the
user's own that names `data_files` is read from just these files, relative to the task file. Both end in memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2q.config import ConfigError
from r2q.evaluation.task_files import TaskFile
from r2q.files import COMPRESSION, Newest, find_compressed, read_rows

SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")
ENDINGS = tuple(f".jsonl{ending}" for ending in COMPRESSION)
_WHOLE = (None, "main", "default", "all", "plain_text")  # names of the only configuration of a data set on the hub


@dataclass(frozen=True)
class LocalData:
    """Files of one task."""

    files: dict[str, list[Path]]  # split -> its files
    # keys of the task's settings that have to be replaced: splits that the files lack become null
    changed: dict[str, None]


def local_data(entry: TaskFile, task_data: Path | None, num_fewshot: int | None) -> LocalData | None:
    """Where the rows of a single task come from; None = the hub, or a Python class that loads its own.

    Raises:
        ConfigError: a file that the task needs is not there; the message names it.
    """
    named = _data_files(entry)
    if named is not None:
        return LocalData(named, _check_splits(entry, named, f"{entry.path}", num_fewshot))
    if task_data is None or "class" in entry.settings:
        return None
    if not task_data.is_dir():
        raise ConfigError(f"task_data: there is no folder {task_data}")
    folder = find_folder(task_data, entry)
    if folder is None:
        split = entry.settings.get("test_split") or entry.settings.get("validation_split") or "test"
        raise ConfigError(f"task_data: task {entry.name} needs {task_data / entry.name / split}.jsonl (or .xz, .gz)")
    files = split_files(folder)
    return LocalData(files, _check_splits(entry, files, str(folder), num_fewshot))


def split_files(folder: Path) -> dict[str, list[Path]]:
    """split -> [file] for every <split>.jsonl[.xz|.gz] in a folder; the plain file wins over its compressed twin."""
    stems = {file.name[: -len(end)] for file in folder.iterdir() for end in ENDINGS if file.name.endswith(end)}
    files = {stem: find_compressed(folder / f"{stem}.jsonl") for stem in sorted(stems)}
    return {stem: [path] for stem, path in files.items() if path is not None}


def find_folder(root: Path, entry: TaskFile) -> Path | None:
    """The folder of a task: named like the task, like its YAML file, or like its data set on the hub.

    mmlu_anatomy (cais/mmlu, anatomy) is found in mmlu/anatomy; social_iqa (siqa/siqa.yaml) in siqa.
    """
    file = [entry.path.stem] if entry.path is not None else []
    hub = _hub_folders(entry.settings.get("dataset_path"), entry.settings.get("dataset_name"))
    return _with_rows(root / name for name in (entry.name, *file, *hub))


def _with_rows(folders: Iterable[Path]) -> Path | None:
    """The first of them that is there and holds rows."""
    return next((folder for folder in folders if folder.is_dir() and split_files(folder)), None)


def _hub_folders(repository: Any, name: Any) -> Iterator[str]:
    if isinstance(repository, str):
        short = repository.rstrip("/").split("/")[-1]
        if isinstance(name, str):
            yield f"{short}/{name}"
        if name in _WHOLE or name == short:
            yield short


def _data_files(entry: TaskFile) -> dict[str, list[Path]] | None:
    """The local .json or .jsonl files that a task's own settings name, or None."""
    settings = entry.settings
    named = (settings.get("dataset_kwargs") or {}).get("data_files")
    if settings.get("dataset_path") != "json" or named is None or "class" in settings:
        return None
    by_split = named if isinstance(named, Mapping) else {"train": named}
    files: dict[str, list[Path]] = {}
    for split, value in by_split.items():
        names = value if isinstance(value, list) else [value]
        if any("://" in name or any(c in name for c in "*?[") for name in names):
            return None  # addresses and patterns are for `datasets` to resolve
        files[split] = [_resolve(name, entry) for name in names]
    return files


def _resolve(name: str, entry: TaskFile) -> Path:
    assert entry.path is not None
    beside = entry.path.parent / name
    for path in (beside, Path(name)):
        if path.is_file():
            return path
    raise ConfigError(f"{entry.path}: data file {name} is neither beside the task file nor in {Path.cwd()}")


def _check_splits(entry: TaskFile, files: Mapping[str, Any], where: str, num_fewshot: int | None) -> dict[str, None]:
    """Split keys that must become null; raises when nothing is left to evaluate on, or to take examples from."""
    settings = entry.settings
    missing = {key: None for key in SPLIT_KEYS if settings.get(key) and settings[key] not in files}
    evaluated = [settings[key] for key in ("test_split", "validation_split") if settings.get(key)]
    if not any(split in files for split in evaluated):
        needed = " or ".join(f"{split}.jsonl" for split in evaluated) or "a test split"
        raise ConfigError(f"task {entry.name} needs {needed} (also .xz, .gz) in {where}; there is {_names(files)}")
    shots = settings.get("num_fewshot") if num_fewshot is None else num_fewshot
    explicit = (settings.get("fewshot_config") or {}).get("split")
    source = explicit or settings.get("fewshot_split") or settings.get("training_split")
    if source and source not in files and (shots or explicit):
        raise ConfigError(
            f"task {entry.name} takes its {shots or 0} few-shot examples from {source}.jsonl (also .xz, .gz), "
            f"which is not in {where}; there is {_names(files)}"
        )
    return missing


def _names(files: Mapping[str, Any]) -> str:
    return ", ".join(files) or "no .jsonl file"


def load_splits(files: Mapping[str, list[str]], **_: Any) -> Any:
    """The rows of each split as an in-memory `datasets.DatasetDict` (a task's `custom_dataset`).

    Raises:
        ValueError: a file is damaged, or a column mixes kinds of values.
    """
    import datasets
    import pyarrow as pa

    loaded = {}
    for split, paths in files.items():
        rows = [row for path in paths for row in read_rows(path)]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        try:
            loaded[split] = datasets.Dataset.from_dict({key: [row.get(key) for row in rows] for key in columns})
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            what = "a number beyond 64 bits" if isinstance(error, OverflowError) else "values of several kinds"
            raise ValueError(f"{', '.join(paths)}: a column holds {what} ({error})") from None
    return datasets.DatasetDict(loaded)


@contextmanager
def instead_of_hub(task_data: Path | None, names: list[str], hub: Newest) -> Iterator[None]:
    """While tasks are built: what they ask `datasets.load_dataset` for comes from `task_data`, else from `hub`.

    `names` are the tasks being built.
    """
    import datasets

    original = datasets.load_dataset

    def load(path: Any = None, name: Any = None, **options: Any) -> Any:
        if task_data is None:
            return hub.load(original, path, name, **options)
        if folder := _with_rows(task_data / candidate for candidate in (*names, *_hub_folders(path, name))):
            return load_splits({split: [str(p) for p in paths] for split, paths in split_files(folder).items()})
        expected = task_data / (names[0] if names else str(path)) / "<split>.jsonl"
        raise ConfigError(f"task_data: task {', '.join(names)} loads {path}; it needs {expected} (or .xz, .gz)")

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = original
