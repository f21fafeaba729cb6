"""Which model it is, by the content of every file that its numbers follow from."""

from pathlib import Path
from typing import Any

from r2q.kept import file_sha256, state_of
from r2q.models.checks import read_files


def describe_files(folder: Path) -> dict[str, Any]:
    """sha256 and state of every file of a model that is read; each is read whole, every time.

    The state is size, number on its disk, and times of modification and of change, in nanoseconds. The last one is the
    system's: every write, replacement and change of the other time moves it, and no user can set it.
    """
    return {file.name: {"sha256": file_sha256(file), "state": state_of(file)} for file in read_files(folder)}


def check_unchanged(folder: Path, facts: dict[str, Any]) -> None:
    """Make sure that a model is still the one that `prepare` saw; only what may have changed is read again.

    Args:
        folder: the model's.
        facts: what `prepare` wrote of it; where they have no `files`, there is nothing to hold the model against.

    Raises:
        ValueError: a file has another content, is gone, or is new.
    """
    if "files" not in facts:
        return
    files, present = facts["files"], {file.name: file for file in read_files(folder)}
    for name in sorted({*present, *files}):
        file, known = present.get(name), files.get(name)
        if file is None or known is None:
            what = "is gone" if file is None else "is new"
        elif state_of(file) != known["state"] and file_sha256(file) != known["sha256"]:
            what = "has another content"
        else:
            continue
        raise ValueError(f"{folder / name} {what} since `prepare` looked at the model; run it again")
