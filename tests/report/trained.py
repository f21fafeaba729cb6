"""Hand-made runs of models that trained: every number of R2Q is half of round to nearest's."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from r2q.report.measures import Key, Unit
from r2q.report.scores import COLUMNS, write_csv
from r2q.training.state import DRIFT_COLUMNS, GRADIENT_COLUMNS, STEP_COLUMNS

GRANULARITIES = ("g64", "channel")
LAYERS = [f"model.layers.{i}.mlp.up_proj" for i in range(5)]
FACTOR = {"r2q": 0.5, "rtn": 1.0}
SEEDS = {"one": [0, 1, 2], "two": [0], "three": [0]}


def trained_run(folder: Path) -> Path:
    """Three models, two quantizers at two granularities; model `one` with three seeds that differ a little."""
    recipes = {
        f"bitdistiller-{q}-{g}": {"method": "bitdistiller", "granularity": g, "options": {"quantizer": q}}
        for g in GRANULARITIES
        for q in FACTOR
    }
    config = {
        "run": "test",
        "models": {name: {"path": "a/b", "seeds": seeds} for name, seeds in SEEDS.items()},
        "recipes": {"rtn-g64": {"method": "rtn", "granularity": "g64"}} | recipes,
        "training": {"texts": [{"path": "a.txt", "rows": 400}]},
        "tasks": {"task": {}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    scores = []
    for model, seeds in SEEDS.items():
        for name, entry in recipes.items():
            quantizer, granularity = str(entry["options"]["quantizer"]), str(entry["granularity"])  # type: ignore[index]
            for seed in seeds:
                write_unit(folder / model / name / f"seed{seed}", quantizer, granularity, 1 + 0.01 * seed)
                value = {"r2q": 0.75, "rtn": 0.5}[quantizer] - (0.25 if granularity == "channel" else 0.0)
                row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"run": "test", "model": model, "recipe": name}
                row |= {"seed": seed, "task": "task", "metric": "acc", "value": value + 0.01 * seed, "stderr": 0.03}
                row |= {"higher_is_better": True, "in_table": True, "status": "ok", "granularity": granularity}
                scores.append(row | {"method": "bitdistiller"})
    write_csv(folder / "scores.csv", COLUMNS, scores)
    return folder


def write_unit(folder: Path, quantizer: str, granularity: str, scale: float) -> None:
    (folder / "training").mkdir(parents=True)
    report = {"method": "bitdistiller", "granularity": granularity, "options": {"quantizer": quantizer}}
    (folder / "report.json").write_text(json.dumps(report | {"status": "ok"}))
    factor = FACTOR[quantizer] * scale
    steps: list[dict[str, Any]] = [{"step": 0, "tokens": 0, "held_out_loss": 4 * factor}]
    for step in range(1, 9):
        norm = factor * (2.0 if step % 2 else 1.0)
        steps.append({"step": step, "loss": factor * 8 / step, "gradient_norm": norm, "tokens": step})
    steps[-1]["held_out_loss"] = factor
    _write(folder, "training", STEP_COLUMNS, steps)
    gradients = [{"step": step, "layer": layer, "gradient_norm": factor * step} for step in (4, 8) for layer in LAYERS]
    _write(folder, "gradients", GRADIENT_COLUMNS, gradients)
    drift = []
    for layer in [*LAYERS, "lm_head"]:
        row = {"layer": layer, "weights": 10, "power": 2.0, "latent_before": 0.0, "latent_after": 0.1 * factor}
        row["latent_moved"] = 0.1 * factor
        inside = {"quantized_before": 0.8 * factor, "quantized_after": 0.4 * factor}
        drift.append(row | (inside if layer != "lm_head" else {}))
    _write(folder, "drift", DRIFT_COLUMNS, drift)


def diverge(results: Path, model: str, recipe: str, seed: int = 0, steps: int = 2) -> None:
    """A unit that made so many steps; its report and scores say so, -1 for nothing recorded at all."""
    folder = results / model / recipe / f"seed{seed}"
    error = f"diverged at step {steps + 1}: loss nan, gradient norm 1.0; no checkpoint before it"
    report = json.loads((folder / "report.json").read_text()) | {"status": "diverged", "error": error}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "training" / "drift.csv").unlink()
    for name in ("training", "gradients"):
        path = folder / "training" / f"{name}.csv"
        kept = [line for line in path.read_text().splitlines()[1:] if int(line.split(",")[0]) <= steps]
        path.write_text("\n".join([path.read_text().splitlines()[0], *kept]) + "\n")
        if steps < 0:
            path.unlink()
    with (results / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if (row["model"], row["recipe"], row["seed"]) == (model, recipe, str(seed)):
            row |= {"task": "", "metric": "", "value": "", "stderr": "", "in_table": "", "higher_is_better": ""}
            row["status"] = f"diverged: step {steps + 1}, loss nan"
    write_csv(results / "scores.csv", COLUMNS, rows)


def unit(quantizer: str, value: float, model: str = "m", seed: int = 0, **changes: Any) -> Unit:
    """A measured number on its own."""
    key = Key("frame", changes.pop("granularity", "g64"), quantizer, model, seed)
    return Unit(key, value, **changes)


def _write(folder: Path, name: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with (folder / "training" / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
