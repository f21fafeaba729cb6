"""scores.csv as it is read by whatever shows or compares numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from r2q.records import Score, read_csv

KEY = ["model", "recipe", "seed", "task", "metric"]  # one number of one run


def read_scores(path: str | Path) -> pd.DataFrame:
    """`scores.csv` as `Score` describes it (see `read_csv` for errors); also refuses a number given twice."""
    frame = read_csv(path, Score)
    twice = frame.duplicated(KEY)
    if twice.any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{path} has two rows for {', '.join(f'{column} {row[column]}' for column in KEY)}")
    return frame


def in_words(scores: pd.DataFrame) -> pd.Series:
    """Status and reason of every row as one text: `ok`, or `failed: no memory`."""
    return scores["status"].where(scores["reason"] == "", scores["status"] + ": " + scores["reason"])
