"""Records of all training runs of a run, gathered: training.csv (steps), gradients.csv and drift.csv (layers)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from r2q import config as configuration
from r2q.report.scores import read_csv, write_csv
from r2q.status import OK

UNIT_COLUMNS = ["run", "model", "recipe", "frame", "quantizer", "granularity", "seed"]
STEP_NUMBERS = [
    "step", "loss", "forward_kl", "reverse_kl", "gradient_norm", "learning_rate", "flipped", "tokens", "seconds",
    "held_out_loss", "held_out_forward_kl", "held_out_reverse_kl",
]  # fmt: skip
DRIFT_NUMBERS = [
    "weights", "power", "latent_before", "quantized_before", "latent_after", "quantized_after", "latent_moved",
]  # fmt: skip
STEP_COLUMNS = [*UNIT_COLUMNS, *STEP_NUMBERS]
GRADIENT_COLUMNS = [*UNIT_COLUMNS, "step", "layer", "kind", "block", "gradient_norm"]
DRIFT_COLUMNS = [*UNIT_COLUMNS, "layer", "kind", "block", *DRIFT_NUMBERS]


def gather_training(config_path: str | Path, results: str | Path) -> None:
    """Write `training.csv`, `gradients.csv` and `drift.csv` into the folder of one run, in the order of its config.

    A unit that diverged has the steps it made, with their gradients, and no drift; a unit that failed before its first
    step has nothing.

    Raises:
        FileNotFoundError: a unit's report is missing, or the records of a unit whose status is `ok`.
    """
    config, results = configuration.load(config_path), Path(results)
    steps: list[dict[str, Any]] = []
    gradients: list[dict[str, Any]] = []
    drift: list[dict[str, Any]] = []
    for model in config.models:
        for recipe, seed in config.units(model):
            if not config.trains(recipe):
                continue
            folder = results / model / recipe / f"seed{seed}"
            report, records = json.loads((folder / "report.json").read_text()), folder / "training"
            unit = {"run": config.run, "model": model, "recipe": recipe, "frame": report["method"], "seed": seed}
            unit |= {"quantizer": quantizer_label(recipe, report), "granularity": report["granularity"]}
            whole = report["status"] == OK
            steps += [unit | row for row in _rows(records / "training.csv", whole)]
            gradients += [unit | row for row in _with_depths(_rows(records / "gradients.csv", whole))]
            drift += [unit | row for row in _with_depths(_rows(records / "drift.csv", whole) if whole else [])]
    write_csv(results / "training.csv", STEP_COLUMNS, steps)
    write_csv(results / "gradients.csv", GRADIENT_COLUMNS, gradients)
    write_csv(results / "drift.csv", DRIFT_COLUMNS, drift)


def quantizer_label(recipe: str, report: dict[str, Any]) -> str:
    """What stands for the quantizer in a recipe's name: `bitdistiller-rtn-clip-g64` gives `rtn-clip`."""
    granularity, quantizer = report["granularity"], report["options"]["quantizer"].replace("_", "-")
    name = recipe.removesuffix(f"-{granularity}").replace("_", "-")
    place = name.find(f"-{quantizer}")
    return name[place + 1 :] if place >= 0 else quantizer


def _rows(path: Path, needed: bool) -> Iterator[dict[str, str]]:
    if not path.is_file():
        if needed:
            raise FileNotFoundError(f"no records {path}: delete the report.json above it to train again")
        return
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def _with_depths(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of layers with `depth`: the decoder block, counted from the end for the later half; `head` if in none."""
    rows = list(rows)
    numbers = [next((int(part) for part in row["layer"].split(".") if part.isdigit()), None) for row in rows]
    count = 1 + max((n for n in numbers if n is not None), default=0)
    depths = ["head" if n is None else str(n) if n < count / 2 else str(n - count) for n in numbers]
    return [row | {"depth": depth} for row, depth in zip(rows, depths, strict=True)]


def read_steps(path: str | Path) -> pd.DataFrame:
    """A gathered training.csv with numbers as floats (see `read_csv` for errors)."""
    return _numbers(read_csv(path, STEP_COLUMNS), STEP_NUMBERS)


def read_gradients(path: str | Path) -> pd.DataFrame:
    """A gathered gradients.csv with numbers as floats (see `read_csv` for errors)."""
    return _numbers(read_csv(path, GRADIENT_COLUMNS), ["step", "gradient_norm"])


def read_drift(path: str | Path) -> pd.DataFrame:
    """A gathered drift.csv with numbers as floats (see `read_csv` for errors)."""
    return _numbers(read_csv(path, DRIFT_COLUMNS), ["block", *DRIFT_NUMBERS])


def _numbers(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    for column in columns:
        frame[column] = pd.to_numeric(frame[column].replace("", None)).astype("float64")
    return frame
