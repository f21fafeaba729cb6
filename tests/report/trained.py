"""Hand-made runs of models that trained: every number of R2Q is half of round to nearest's."""

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from r2q.kept import write_json
from r2q.records import Drift, Facts, Gradient, Layer, Score, Step, columns, columns_of_trainer, write_csv
from r2q.report.claims.measures import Key, Unit
from tests.units import report

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
                row: dict[str, Any] = dict.fromkeys(columns(Score)) | {"run": "test", "model": model, "recipe": name}
                row |= {"seed": seed, "task": "task", "metric": "acc", "value": value + 0.01 * seed, "stderr": 0.03}
                row |= {"higher_is_better": True, "in_table": True, "status": "ok", "granularity": granularity}
                row |= {"frame": "bitdistiller", "quantizer": quantizer, "kind": "training", "control": False}
                row["bits_per_weight"] = {"r2q": 2.5, "rtn": 2.25}[quantizer] - 0.25 * (granularity == "channel")
                scores.append(row | {"method": "bitdistiller", "reason": ""})
    write_csv(folder / "scores.csv", columns(Score), scores)
    return folder


def write_unit(folder: Path, quantizer: str, granularity: str, scale: float) -> None:
    facts = Facts("bitdistiller", quantizer, label=quantizer, kind="training")
    layers = [Layer(name, [2, 5], 0.1, 0.1, 2.5, block=i, kind="up_proj") for i, name in enumerate(LAYERS)]
    made = {"method": "bitdistiller", "granularity": granularity, "options": {"steps": 8}}
    write_json(folder / "report.json", report(**made, facts=facts, layers=layers))
    factor = FACTOR[quantizer] * scale
    steps: list[dict[str, Any]] = [{"step": 0, "tokens": 0, "held_out_loss": 4 * factor}]
    for step in range(1, 9):
        norm = factor * (2.0 if step % 2 else 1.0)
        steps.append({"step": step, "loss": factor * 8 / step, "gradient_norm": norm, "tokens": step})
    steps[-1]["held_out_loss"] = factor
    write_csv(folder / "training" / "training.csv", columns_of_trainer(Step), steps)
    gradients = [{"step": step, "layer": layer, "gradient_norm": factor * step} for step in (4, 8) for layer in LAYERS]
    write_csv(folder / "training" / "gradients.csv", columns_of_trainer(Gradient), gradients)
    drift = []
    for layer in [*LAYERS, "lm_head"]:
        row = {"layer": layer, "weights": 10, "power": 2.0, "latent_before": 0.0, "latent_after": 0.1 * factor}
        row["latent_moved"] = 0.1 * factor
        inside = {"quantized_before": 0.8 * factor, "quantized_after": 0.4 * factor}
        drift.append(row | (inside if layer != "lm_head" else {}))
    write_csv(folder / "training" / "drift.csv", columns_of_trainer(Drift), drift)


def diverge(results: Path, model: str, recipe: str, seed: int = 0, steps: int = 2) -> None:
    """A unit that made so many steps; its report and scores say so, -1 for nothing recorded at all."""
    folder = results / model / recipe / f"seed{seed}"
    error = f"diverged at step {steps + 1}: loss nan, gradient norm 1.0; no checkpoint before it"
    report = json.loads((folder / "report.json").read_text()) | {"status": "diverged", "reason": error}
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
            row |= {"status": "diverged", "reason": f"step {steps + 1}, loss nan"}
    write_csv(results / "scores.csv", columns(Score), rows)


def unit(quantizer: str, value: float, model: str = "m", seed: int = 0, **changes: Any) -> Unit:
    """A measured number on its own."""
    key = Key("frame", changes.pop("granularity", "g64"), quantizer, model, seed)
    return Unit(key, value, **changes)
