"""What every single item of a task gave: `items.csv` of a run, which paired tests read.

One row per unit, task and metric, the numbers of all its items in the order of the task in one field: right or wrong as
a text of 0 and 1, anything else separated by blanks. Numbers that differ from run to run in what was asked cannot be
mistaken for each other: `asked` is a hash of the items.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2q.records import ItemRow, read_csv

Key = tuple[str, str, int, str, str]


def encode(values: Iterable[float]) -> str:
    """Numbers of items as the text of one field."""
    numbers = list(values)
    if all(number in (0, 1) for number in numbers):
        return "".join(str(int(number)) for number in numbers)
    text = " ".join(f"{number:.7g}" for number in numbers)
    return text if set(text) - {"0", "1"} else f"{text}."  # one number like 10 is no answers


def decode(text: str) -> np.ndarray:
    """The numbers `[items]` in a field; a text of one number with a decimal point or an exponent is one number."""
    if text and set(text) <= {"0", "1"}:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(float) - ord("0")
    return np.array([float(part) for part in text.split()])


@dataclass(frozen=True)
class Items:
    """The items of a run."""

    values: Mapping[Key, tuple[str, str]]  # (asked, numbers as text)

    def of(self, row: Mapping[Any, Any] | Any) -> tuple[str, np.ndarray] | None:
        """What was asked (a hash), and the numbers `[items]`, behind a row of scores.csv; None where none were kept."""
        entry = self.values.get((row["model"], row["recipe"], int(row["seed"]), row["task"], row["metric"]))
        return None if entry is None else (entry[0], decode(entry[1]))


def read_items(path: str | Path) -> Items:
    """`items.csv`; without such a file no number has items."""
    if not Path(path).is_file():
        return Items({})
    frame = read_csv(path, ItemRow)
    rows = frame[["model", "recipe", "seed", "task", "metric", "asked", "values"]].itertuples(index=False, name=None)
    return Items({(m, r, int(seed), task, metric): (asked, values) for m, r, seed, task, metric, asked, values in rows})
