"""Results that outlive Snakemake's bookkeeping.

Snakemake deletes the outputs of a job before it runs the job again. A job here covers several recipes, so without a
second copy one changed recipe would throw away its neighbours' work. Every finished record is therefore kept under the
hash of all that could have moved it, and handed back when the same thing is asked for again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent  # the folder that holds the packages r2q, baselines, mini


def key(parts: Mapping[str, Any]) -> str:
    """Hash of everything that can move a result: 32 hex digits, the same for equal parts in any order of keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def source_hash(paths: Iterable[str | Path]) -> str:
    """sha256 over Python source: `paths` are files or folders; relative ones count from the packages' folder.

    A single file brings along the modules of its own package that it imports, so that a method which builds on another
    changes with it. Names and contents enter, in sorted order; raises FileNotFoundError where there is no source.
    """
    files: set[Path] = set()
    for path in paths:
        full = ROOT / path
        if full.is_file():
            _add_with_siblings(full, files)
        elif found := list(full.rglob("*.py")):
            files.update(found)
        else:
            raise FileNotFoundError(f"no Python source at {full}")
    digest = hashlib.sha256()
    for file in sorted(files):
        name = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _add_with_siblings(file: Path, files: set[Path]) -> None:
    """Add a file and, over and over, what it imports from its own package."""
    if file not in files:
        files.add(file)
        for sibling in _siblings(file, file.read_bytes()):
            _add_with_siblings(sibling, files)


@cache  # parsing is slow, and a workflow asks for the same files again and again
def _siblings(file: Path, source: bytes) -> list[Path]:
    """Files of the modules that a file imports as `<its own package>.<module>`."""
    package = ".".join(file.parent.relative_to(ROOT).parts) if file.is_relative_to(ROOT) else file.parent.name
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            module = f"{package}.{module}".rstrip(".") if node.level == 1 else module
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for name in names:
            head, _, tail = name.rpartition(".")
            if head == package and (file.parent / f"{tail}.py").is_file():
                found.append(file.parent / f"{tail}.py")
    return found


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a whole file or nothing: a reader, or a run after a kill -9 or a power cut, never meets half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, record: Any) -> None:
    """`write_atomic` of readable JSON; raises ValueError for NaN and infinity, which JSON does not have."""
    write_atomic(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


class Kept:
    """The durable copies of one run: `<folder>/<verb>-<key>.json`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, verb: str, key: str) -> Path:
        return self.folder / f"{verb}-{key}.json"

    def put(self, verb: str, key: str, record: Mapping[str, Any], dest: str | Path) -> None:
        """Keep `record` and write it to `dest`. The kept copy comes first: `dest` never exists without it."""
        write_json(self.path(verb, key), record)
        write_json(dest, record)

    def get(self, verb: str, key: str, dest: str | Path) -> dict[str, Any] | None:
        """Write the kept record to `dest` and return it; None when there is none (or it was damaged by hand).

        A record says nothing about other files that the verb wrote; the caller checks those before it asks.
        """
        try:
            record = json.loads(self.path(verb, key).read_text())
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(record, dict):
            return None
        write_json(dest, record)
        return record
