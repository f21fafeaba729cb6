"""The CSV files of one run, read when they are asked for: all that tables, figures, claims and the page look at."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from r2q.kept import ROOT
from r2q.records import Drift, Latency, LayerRow, Score, Step, columns, read_csv, read_drawn

PUBLISHED = ROOT / "results" / "published"
BITS = 2  # of a code, where the name of a frame or family says nothing
FULL_PRECISION = "full_precision"  # the method that all others are held against
KEY = ["model", "recipe", "seed", "task", "metric"]  # one number of one run


class Run:
    """A run's folder, results/<run>; properties raise FileNotFoundError or ValueError for a file that is not right.

    `published` is the folder of numbers that others published.
    """

    def __init__(self, folder: str | Path, published: str | Path | None = None) -> None:
        self.folder, self.published = Path(folder), PUBLISHED if published is None else Path(published)

    @cached_property
    def scores(self) -> pd.DataFrame:
        return read_scores(self.folder / "scores.csv")

    @cached_property
    def layers(self) -> pd.DataFrame:
        return read_csv(self.folder / "layers.csv", LayerRow)

    @cached_property
    def steps(self) -> pd.DataFrame:
        return with_budgets(read_csv(self.folder / "training.csv", Step))

    @cached_property
    def framed(self) -> pd.DataFrame:
        """The scores, with the frames of recipes that trained named as in `steps`."""
        if not (self.folder / "training.csv").is_file():
            return self.scores
        first = self.steps.drop_duplicates(["model", "recipe"])
        named = first.set_index(["model", "recipe"])["frame"].rename("named")
        return self.scores.assign(
            frame=self.scores.join(named, on=["model", "recipe"])["named"].fillna(self.scores["frame"])
        )

    @cached_property
    def drift(self) -> pd.DataFrame:
        return with_budgets(read_csv(self.folder / "drift.csv", Drift))

    @cached_property
    def latency(self) -> pd.DataFrame:
        """Times of packed checkpoints and their twins; no rows where the run has none."""
        path = self.folder / "latency.csv"
        return read_csv(path, Latency) if path.is_file() else pd.DataFrame(columns=columns(Latency))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What each hash of the scores stands for; nothing where the run has scores alone."""
        path = self.folder / "provenance.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def sources(self) -> list[str]:
        """A sentence for every model whose full precision had been quantized before."""
        formats = {
            record["config"]["model"]["name"]: record["weights"]["source_format"]
            for record in self.provenance.values()
            if record["weights"].get("source_format")
        }
        return [f"{model}: full precision = weights dequantized from {name}." for model, name in formats.items()]

    def csv(self, name: str, columns: list[str]) -> pd.DataFrame:
        """Any other CSV of the run."""
        return read_drawn(self.folder / f"{name}.csv", columns)


def read_scores(path: str | Path) -> pd.DataFrame:
    """A scores.csv (see `r2q.records.read_csv` for errors); also refuses a number given twice."""
    frame = read_csv(path, Score)
    twice = frame.duplicated(KEY)
    if twice.any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{path} has two rows for {', '.join(f'{column} {row[column]}' for column in KEY)}")
    return frame


def of_bits(name: str, bits: Any) -> str:
    """A name of recipes that are compared, with the bits of their codes where these are not the usual two."""
    return name if pd.isna(bits) or bits == BITS else f"{name}, {bits} bits"


def with_budgets(steps: pd.DataFrame) -> pd.DataFrame:
    """Frames with their number of steps, where recipes of one frame differ in it: `bitdistiller, 640 steps`."""
    several = steps.groupby("frame")["steps"].transform("nunique") > 1
    named = steps["frame"] + ", " + steps["steps"].astype(str) + " steps"
    return steps.assign(frame=steps["frame"].where(~several, named))


def first_of_alike(records: pd.DataFrame) -> pd.DataFrame:
    """Records of training without recipes that an earlier one of the model equals in frame, quantizer and granularity.

    Such recipes differ in a learning rate, say: a mean over them is none over seeds.
    """
    named = records[["model", "recipe", "frame", "quantizer", "granularity"]].drop_duplicates(["model", "recipe"])
    first = named.drop_duplicates(["model", "frame", "quantizer", "granularity"])[["model", "recipe"]]
    return records[pd.MultiIndex.from_frame(records[["model", "recipe"]]).isin(pd.MultiIndex.from_frame(first))]
