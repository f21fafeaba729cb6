"""Finding the YAML files of named lm-eval tasks without loading the other 14,000.

lm-eval's own index parses every file it ships (9 s). A named task mostly stands in a file or folder of its name, which
takes a walk of the folder (0.1 s); the rest (groups' tags, odd file names, spelling mistakes) takes one search for
`task:`, `group:` and `tag:` lines through the text of all files (about 1 s). Nothing here imports lm-eval.
"""

import glob
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from r2q.config.base import ConfigError, nearest
from r2q.failures import one_line

_KEY = re.compile(rb"""^["']?(task|group|tag|include|class)["']?[ \t]*:(.*(?:\n(?:[ \t-].*)?)*)""", re.MULTILINE)
_SKIPPED = {"__pycache__", ".ipynb_checkpoints"}


@dataclass(frozen=True)
class TaskFile:
    """A task, group or tag."""

    name: str  # as lm-eval knows it
    path: Path | None  # its YAML file; None for a tag, which is only a list of tasks
    # the YAML with its includes, functions as text; {"task": [...]} for a tag
    settings: dict[str, Any] = field(repr=False)

    @property
    def children(self) -> list[str]:
        """Names of the registered tasks that a group or tag stands for; [] for a task."""
        members = self.settings.get("task")
        if not isinstance(members, list):
            return []
        return list(_references(members))


def _references(members: Iterable[Any]) -> Iterable[str]:
    for member in members:
        if isinstance(member, str):
            yield member
        elif isinstance(member, dict) and isinstance(member.get("task"), str):
            yield member["task"]
        elif isinstance(member, dict) and isinstance(member.get("task"), list):
            yield from _references(member["task"])
        elif isinstance(member, dict) and isinstance(member.get("group"), str):
            yield member["group"]


class TaskFiles:
    """Where tasks are: in the user's folders first, then in lm-eval's own.

    Raises:
        ConfigError: a folder of `include` does not exist or has no .yaml file.
    """

    def __init__(self, include: Iterable[str | Path] = ()) -> None:
        self._own: dict[str, TaskFile] = {}
        self._members: dict[str, list[str]] = {}
        for folder in map(Path, include):
            if not folder.is_dir():
                raise ConfigError(f"task_include: there is no folder {folder}")
            files = sorted(p for p in folder.rglob("*.yaml") if not _SKIPPED & set(p.parts))
            if not files:
                raise ConfigError(f"task_include: no .yaml file in {folder}")
            for path in files:
                self._register(path)

    def _register(self, path: Path) -> None:
        settings = read_settings(path)
        name = settings.get("group") if "class" not in settings else None
        name = name or settings.get("task")
        if isinstance(name, str):
            self._own[name] = TaskFile(name, path, settings)
            if not isinstance(settings.get("task"), list):
                for tag in _listed(settings.get("tag")):
                    self._members.setdefault(tag, []).append(name)

    def find(self, name: str) -> TaskFile:
        """The file of a task, group or tag; raises ConfigError where nothing has this name, with the nearest one."""
        if name in self._own:
            return self._own[name]
        path = self._by_file_name(name) or self._index.paths.get(name)
        if path is not None:
            return TaskFile(name, path, read_settings(path))
        members = sorted({*self._members.get(name, []), *self._index.tags.get(name, [])})
        if members:
            return TaskFile(name, None, {"tag": name, "task": members})
        known = [*self._own, *self._members, *self._index.paths, *self._index.tags]
        raise ConfigError(f"tasks: there is no lm-eval task {name}{nearest(name, known)}")

    def closure(self, name: str) -> dict[str, TaskFile]:
        """`name` and everything that it stands for, down to single tasks."""
        entries: dict[str, TaskFile] = {}
        waiting = [name]
        while waiting:
            entry = self.find(waiting.pop())
            if entry.name not in entries:
                entries[entry.name] = entry
                waiting += [child for child in entry.children if child not in entries and self._is_known(child, entry)]
        return entries

    def _is_known(self, child: str, group: TaskFile) -> bool:
        """A member with settings of its own need not be registered; then the group's file is its definition."""
        for member in group.settings["task"]:
            if isinstance(member, dict) and child in (member.get("task"), member.get("group")):
                return child in self._own or self._by_file_name(child) is not None or child in self._index.paths
        return True

    @cached_property
    def _walked(self) -> dict[str, list[Path]]:
        """Files of lm-eval by their stem, by their stem without a leading _, and by their folder's name."""
        by_word: dict[str, list[Path]] = {}
        for folder, folders, files in os.walk(default_folder()):
            folders[:] = sorted(f for f in folders if f not in _SKIPPED)
            for file in sorted(files):
                if file.endswith(".yaml"):
                    path = Path(folder, file)
                    for word in {path.stem, path.stem.lstrip("_"), path.parent.name}:
                        by_word.setdefault(word, []).append(path)
        return by_word

    def _by_file_name(self, name: str) -> Path | None:
        quoted = rb"""["']?%b["']?""" % re.escape(name).encode()
        line = re.compile(rb"""^["']?(task|group)["']?[ \t]*:[ \t]*%b[ \t]*(#.*)?\r?$""" % quoted, re.MULTILINE)
        for path in self._walked.get(name, []):
            if line.search(path.read_bytes()):
                settings = read_settings(path)
                if name == (settings.get("group") if "group" in settings else settings.get("task")):
                    return path
        return None

    @cached_property
    def _index(self) -> "_TextIndex":
        return _TextIndex(default_folder())


class _TextIndex:
    """Names in all files of a folder, read as text: `paths` of tasks and groups, `tags` with their tasks."""

    def __init__(self, root: Path) -> None:
        self.paths: dict[str, Path] = {}
        self.tags: dict[str, list[str]] = {}
        self._keys: dict[Path, dict[str, Any]] = {}
        files = (Path(folder, file) for folder, _, names in os.walk(root) for file in names if file.endswith(".yaml"))
        for path in sorted((p for p in files if not _SKIPPED & set(p.parts)), key=Path.as_posix):
            keys = self._resolved(path)
            name = keys.get("task") if "class" in keys else keys.get("group", keys.get("task"))
            if not isinstance(name, str) or name in self.paths:
                continue
            self.paths[name] = path
            if "group" not in keys or "class" in keys:
                for tag in _listed(keys.get("tag")):
                    self.tags.setdefault(tag, []).append(name)

    def _resolved(self, path: Path) -> dict[str, Any]:
        if path not in self._keys:
            keys: dict[str, Any] = {}
            self._keys[path] = keys  # an include cycle ends here
            for key, value in _KEY.findall(path.read_bytes() if path.is_file() else b""):
                keys[key.decode()] = _value(value)
            for include in _listed(keys.get("include")):
                inherited = self._resolved(Path(os.path.normpath(path.parent / include)))
                keys = {**inherited, **keys}
            self._keys[path] = keys
        return self._keys[path]


def _value(text: bytes) -> Any:
    plain = text.strip()
    if b"\n" not in plain and re.fullmatch(rb"[\w.-]+|\"[^\"\\]*\"|'[^']*'", plain):
        return plain.decode().strip("\"'")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return None


def _listed(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, str)]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML in which `!function utils.process` stays text."""


_Loader.add_constructor("!function", lambda loader, node: f"!function {loader.construct_scalar(node)}")


def read_settings(path: Path, included: list[Path] | None = None, _open: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A task's YAML with its includes, later keys first, as lm-eval resolves them; the files go into `included`.

    Raises:
        ConfigError: the file is not YAML, or includes itself or a file that is not there.
    """
    path = Path(os.path.normpath(path))
    if path in _open:
        raise ConfigError(f"{path}: includes itself")
    try:
        with path.open("rb") as file:
            settings = yaml.load(file, Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"{_open[-1] if _open else 'tasks'}: includes {path}, which is not there") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({one_line(error)})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: holds {type(settings).__name__} instead of settings")
    merged: dict[str, Any] = {}
    for include in _listed(settings.pop("include", None)):
        other = Path(os.path.normpath(path.parent / include))
        if included is not None:
            included.append(other)
        merged |= read_settings(other, included, (*_open, path))
    return merged | settings


def named_files(folder: str | Path) -> Iterator[tuple[str, bool]]:
    """Files that the task files of a folder name, wherever they are, and whether scores are measured on them.

    Rows (`data_files` and `data_dir` in `dataset_kwargs`, a folder as `dataset_path`); settings (`include`).
    A name counts from the task file, and from the working folder: one of the two is mostly not there.
    """
    for path in sorted(Path(folder).rglob("*.yaml")):
        included: list[Path] = []
        try:
            settings = read_settings(path, included)
        except ConfigError:  # `TaskFiles` says so, where the file is read as a task
            continue
        yield from ((str(file), False) for file in included)
        given = settings.get("dataset_kwargs")
        rows: dict[str, Any] = given if isinstance(given, dict) else {}
        files = rows.get("data_files")
        evaluated = settings.get("test_split") or settings.get("validation_split")
        named = list(files.items()) if isinstance(files, dict) else [("train", files)]
        named += [(evaluated, name) for name in (settings.get("dataset_path"), rows.get("data_dir"))]
        for split, names in named:
            places = (place / name for name in _listed(names) if name for place in (path.parent, Path()))
            for place in map(os.path.normpath, places):
                found = glob.glob(place, recursive=True) if glob.has_magic(place) else [place]  # noqa: PTH207
                found += [str(file) for name in found for file in Path(name).rglob("*")]
                yield from ((name, split == evaluated) for name in found if not Path(name).is_dir())


def files_with_python(include: Iterable[str | Path]) -> list[Path]:
    """Task files of the user's folders that name Python functions: loading such a task runs their module."""
    files = (path for folder in include for path in sorted(Path(folder).rglob("*.yaml")))
    return [path for path in files if b"!function" in path.read_bytes()]


def default_folder() -> Path:
    """The folder of lm-eval's own tasks, found without importing lm-eval."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("lm_eval is not installed")
    return Path(spec.submodule_search_locations[0]) / "tasks"
