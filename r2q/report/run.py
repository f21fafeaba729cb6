"""The CSV files of one run, read when they are asked for: all that tables, figures, claims and the page look at."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pandas as pd

from r2q.report.items import Items, read_items
from r2q.report.scores import LAYER_COLUMNS, read_csv, read_scores
from r2q.report.training import read_drift, read_gradients, read_steps


class Run:
    """A run's folder, results/<run>; every property raises FileNotFoundError or ValueError for a file that is not right."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @cached_property
    def scores(self) -> pd.DataFrame:
        return read_scores(self.folder / "scores.csv")

    @cached_property
    def layers(self) -> pd.DataFrame:
        return read_csv(self.folder / "layers.csv", LAYER_COLUMNS)

    @cached_property
    def steps(self) -> pd.DataFrame:
        return read_steps(self.folder / "training.csv")

    @cached_property
    def gradients(self) -> pd.DataFrame:
        return read_gradients(self.folder / "gradients.csv")

    @cached_property
    def drift(self) -> pd.DataFrame:
        return read_drift(self.folder / "drift.csv")

    @cached_property
    def items(self) -> Items:
        return read_items(self.folder / "items.csv")

    def csv(self, name: str, columns: list[str]) -> pd.DataFrame:
        """Any other CSV of the run."""
        return read_csv(self.folder / f"{name}.csv", columns)
