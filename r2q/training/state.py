"""States to resume from and records of one training run, written whole or not at all."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from r2q.kept import file_sha256, write_json
from r2q.records import Drift, Gradient, Step, columns_of_trainer, write_csv
from r2q.training.processes import ALONE, Group

FACTS = {"identity": str, "step": int, "processes": int, "sha256": list}  # of a state


class Store:
    """The folder of a training run; without a folder nothing is written and nothing found.

    A state is a file of each process and, written last, a small one with their hashes: after a crash there is the old
    state or the new one. The state before the last one is kept, too, and stands in for one that was damaged since.

    Args:
        folder: where states (``checkpoint``) and the CSV files go.
        identity: hash of everything that can move the result.
        group: the processes; each writes and reads its own part.
    """

    def __init__(self, folder: Path | None, identity: str, group: Group = ALONE) -> None:
        self.folder, self.identity, self.group = folder, identity, group
        self._good: dict[str, dict[str, Any]] = {}  # facts of the last state that was written or read, by name

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write the state of ``state["step"]`` under a name; the good one before it stays, older ones go.

        Raises:
            OSError: it cannot be written; names the file.
        """
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._part(name, state["step"])
        scratch = path.with_name(f".{path.name}.writing")
        try:
            with scratch.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # of a full disk torch says "unexpected pos"
            why = error if isinstance(error, OSError) else error.__context__
            if isinstance(why, OSError):
                raise OSError(why.errno, why.strerror, str(scratch)) from None
            raise
        scratch.replace(path)
        digests = self.group.gather(file_sha256(path))
        facts = {"identity": self.identity, "step": state["step"], "processes": self.group.count, "sha256": digests}
        latest, before = self._facts(name)
        good = self._good.get(name)
        if self.group.first:
            if good is None:
                before.unlink(missing_ok=True)
            else:
                write_json(before, good)
            write_json(latest, facts)
        self.group.wait()
        kept = {path} if good is None else {path, self._part(name, good["step"])}
        for other in set(self.folder.glob(f"{name}-*-{self.group.rank}.pt")) - kept:
            other.unlink()
        self._good[name] = facts

    def load(self, name: str, device: torch.device) -> dict[str, Any] | None:
        """The last state that was saved and is whole; None when there is none, or it belongs to another identity.

        What is damaged or missing, or of another identity, is named on the terminal.
        """
        for path in () if self.folder is None else self._facts(name):
            if not path.is_file():
                continue
            facts = _read_facts(path)
            if facts is not None and (facts["identity"], facts["processes"]) != (self.identity, self.group.count):
                if self.group.first:
                    what = "other options, rows, code, libraries, device or number of processes"
                    print(f"{path}: its state is of {what}, and is not used", flush=True)
                continue
            whole = facts is not None and self._is_whole(name, facts)
            damaged = torch.tensor([not whole], dtype=torch.float32, device=self.group.device)
            if float(self.group.total(damaged)) == 0:  # no process finds its part damaged
                assert facts is not None
                self._good[name] = facts
                return torch.load(self._part(name, facts["step"]), map_location=device, weights_only=True)
            if self.group.first:
                print(f"{path}: it or its state is damaged or incomplete, and is not used", flush=True)
        return None

    def _is_whole(self, name: str, facts: Mapping[str, Any]) -> bool:
        """Whether this process's part of a state is what was written."""
        part = self._part(name, facts["step"])
        return part.is_file() and [file_sha256(part)] == facts["sha256"][self.group.rank : self.group.rank + 1]

    def _facts(self, name: str) -> tuple[Path, Path]:
        """The small files of the last state and of the one before."""
        assert self.folder is not None
        return self.folder / f"{name}.json", self.folder / f"{name}-before.json"

    def _part(self, name: str, step: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}-{step}-{self.group.rank}.pt"

    def write_csv(self, name: str, kind: type[Step | Gradient | Drift], rows: Iterable[Mapping[str, Any]]) -> None:
        """Write ``<name>.csv``, by the first process; a missing number is an empty cell."""
        if self.folder is not None and self.group.first:
            cells = ({key: _cell(value) for key, value in row.items()} for row in rows)
            write_csv(self.folder / f"{name}.csv", columns_of_trainer(kind), cells)


def _read_facts(path: Path) -> dict[str, Any] | None:
    """What :meth:`Store.save` wrote of a state; None when the file is damaged."""
    try:
        facts = json.loads(path.read_text())
    except ValueError:
        return None
    known = isinstance(facts, dict) and facts.keys() == FACTS.keys()
    return facts if known and all(type(facts[key]) is kind for key, kind in FACTS.items()) else None


def _cell(value: Any) -> Any:
    """Seven digits: float32 has no more; NaN, which is no number, is an empty cell."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.7g}"
    return "" if value is None else value
