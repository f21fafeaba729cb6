"""Rows that are done before all of them are: an hour of generation outlives a kill."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2q.kept import write_atomic


class Unfinished:
    """A file that grows by a line of JSON for every batch of rows; its first line says what the rows belong to.

    A line counts when it is what was written, by its hash: a kill costs the batch in work, no more. Rows of another
    identity, and what stands from a damaged line on, are dropped.

    Args:
        path: the file; it lives only as long as rows are missing.
        identity: hash of everything that can move a row.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.rows = path, dict[int, list[int]]()  # tokens by number of the row
        header = json.dumps({"identity": identity}) + "\n"
        found = path.read_text(errors="replace").splitlines(keepends=True) if path.is_file() else []
        whole = [header]
        for line in found[1:] if found[:1] == [header] else []:
            try:
                entry = json.loads(line)
                if entry["sha256"] != _digest(entry["rows"]):
                    break
            except (ValueError, TypeError, KeyError, AttributeError):  # any other JSON
                break
            self.rows.update({int(number): row for number, row in entry["rows"].items()})
            whole.append(line.rstrip("\n") + "\n")
        write_atomic(path, "".join(whole))

    def add(self, rows: Mapping[int, list[int]]) -> None:
        """Keep more rows; they are on the disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps({"rows": rows, "sha256": _digest(rows)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.update(rows)

    def remove(self) -> None:
        """All rows stand where they belong."""
        self.path.unlink(missing_ok=True)


def _digest(rows: Mapping[Any, list[int]]) -> str:
    """SHA-256 of rows, whose numbers may be text."""
    return hashlib.sha256(json.dumps({str(number): row for number, row in rows.items()}).encode()).hexdigest()
