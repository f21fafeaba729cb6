"""The CSV files between evaluation and everything that is shown: columns, writing, reading.

Written by the csv module (floats as their shortest exact decimal, `None` as an empty field, `\\n` line ends), so equal
records give equal bytes; read back to the same floats.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from r2q.kept import write_atomic

COLUMNS = [
    "run", "model", "family", "recipe", "method", "granularity", "group_size", "bits_per_weight", "file_bytes", "seed",
    "task", "metric", "value", "stderr", "n", "chance", "majority", "higher_is_better", "in_table", "status", "seconds",
    "peak_mib", "provenance",
]  # fmt: skip
KEY = ["model", "recipe", "seed", "task", "metric"]  # one number of one run
LAYER_COLUMNS = [
    "run", "model", "recipe", "seed", "layer", "shape", "mse", "relative_error", "bits_per_weight", "seconds", "status",
]  # fmt: skip

_TEXTS = {
    "run", "model", "family", "recipe", "method", "granularity", "task", "metric", "status", "reason", "provenance",
    "layer", "shape", "kind", "frame", "quantizer", "start", "label", "measure", "unit", "version", "depth", "values",
    "asked",
}  # fmt: skip
_INTEGERS = {"group_size", "file_bytes", "seed", "n", "row", "group", "index", "code", "num_fewshot", "seeds"}
_FLAGS = {"higher_is_better", "in_table", "control", "front"}


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` with exactly `columns`; raises ValueError for a row with a field that is not among them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval=None, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def read_csv(path: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV written by `write_csv`; an empty number is NaN / NA, an empty text is "".

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column of `columns` is missing, or a field is not of its column's type.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with path.open(newline="") as file:
        header = next(csv.reader(file), [])
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(header) or 'no columns'}")
    frame = pd.read_csv(path, dtype="str", keep_default_na=False)
    for column in frame.columns:
        try:
            frame[column] = _typed(column, frame[column], known=column in columns)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, column {column}: {error}") from None
    return frame


def _typed(column: str, texts: pd.Series, known: bool) -> pd.Series:
    """Texts, whole numbers and flags by the column's name; everything else is a number, or stays if it is none."""
    if column in _TEXTS:
        return texts
    if column in _INTEGERS:
        return pd.array([int(text) if text else None for text in texts], dtype="Int64")  # type: ignore[return-value]
    if column in _FLAGS:
        flags = {"True": True, "False": False, "": None}
        for text in texts:
            if text not in flags:
                raise ValueError(f"{text!r} is neither True nor False")
        return pd.array([flags[text] for text in texts], dtype="boolean")  # type: ignore[return-value]
    try:
        return texts.map(lambda text: float(text) if text else float("nan")).astype("float64")
    except ValueError:
        if known:
            raise
        return texts  # a method's own note on its layers


def read_scores(path: str | Path) -> pd.DataFrame:
    """`scores.csv` with the columns of `COLUMNS` (see `read_csv` for errors); also refuses a number given twice."""
    frame = read_csv(path, COLUMNS)
    twice = frame.duplicated(KEY)
    if twice.any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{path} has two rows for {', '.join(f'{column} {row[column]}' for column in KEY)}")
    return frame
