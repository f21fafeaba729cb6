"""Records of all training runs of a run, gathered: training.csv (steps), gradients.csv and drift.csv (layers)."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2q import config as configuration
from r2q.intact import sign
from r2q.plan import Plan
from r2q.records import OK, Drift, Gradient, Report, Step, columns, read_json, write_csv
from r2q.report.run import of_bits


def gather_training(config_path: str | Path, results: str | Path) -> None:
    """Write `training.csv`, `gradients.csv` and `drift.csv` into the folder of one run, in the order of its config.

    A unit that diverged has the steps it made, with their gradients, and no drift; a unit that failed before its first
    step has nothing. Of a run that trains nothing they have no rows, which tables, figures and claims take.

    Raises:
        FileNotFoundError: a unit's report is missing, or the records of a unit whose status is `ok`.
    """
    config, results = configuration.load(config_path), Path(results)
    steps: list[dict[str, Any]] = []
    gradients: list[dict[str, Any]] = []
    drift: list[dict[str, Any]] = []
    for unit in Plan(config).trained:
        folder = results / unit.path
        report, records = read_json(folder / "report.json", Report), folder / "training"
        facts = {"run": config.run, **vars(unit), "frame": of_bits(str(report.facts.frame), report.bits)}
        facts |= {"quantizer": report.facts.label, "granularity": report.granularity, "steps": report.options["steps"]}
        places = {layer.name: {"block": layer.block, "kind": layer.kind} for layer in report.layers}
        whole = report.status == OK
        steps += [facts | row for row in _rows(records / "training.csv", whole)]
        gradients += [facts | row | places.get(row["layer"], {}) for row in _rows(records / "gradients.csv", whole)]
        if whole:
            drift += [facts | row | places.get(row["layer"], {}) for row in _rows(records / "drift.csv", whole)]
    write_csv(results / "training.csv", columns(Step), steps)
    write_csv(results / "gradients.csv", columns(Gradient), gradients)
    write_csv(results / "drift.csv", columns(Drift), drift)
    sign(results / "trained.sha256", [results / name for name in ("training.csv", "gradients.csv", "drift.csv")])


def _rows(path: Path, needed: bool) -> Iterator[dict[str, str]]:
    if not path.is_file():
        if needed:
            raise FileNotFoundError(f"no records {path}: delete the report.json above it to train again")
        return
    with path.open(newline="") as file:
        yield from csv.DictReader(file)
