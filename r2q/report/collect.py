"""Every report.json and evaluation.json of a run, gathered into scores.csv, layers.csv and provenance.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from r2q import config as configuration
from r2q.config import Config
from r2q.kept import write_json
from r2q.report.scores import COLUMNS, LAYER_COLUMNS, write_csv
from r2q.status import FAILED, OK, in_words

SHOWN_MISSING = 10  # files named in the error about missing ones


def collect(config_path: str | Path, results: str | Path) -> None:
    """Write `scores.csv`, `layers.csv` and `provenance.json` into the folder `results` of one run.

    Rows stand in the order of the config: models, recipes, seeds, perplexities, tasks. A unit that failed or diverged
    is one row with an empty task and the status "failed: <reason>" or "diverged: <reason>". The seconds of a score are
    those of its task in the evaluation, its peak_mib that of the evaluation of the unit; in layers.csv seconds are
    those of quantizing the layer.

    Raises:
        FileNotFoundError: names the units' files that are not there.
        ValueError: a file is not what its folder says, or the evaluation is of other weights than the report.
    """
    config, results = configuration.load(config_path), Path(results)
    scores: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    provenance: dict[str, dict[str, Any]] = {}
    for model, recipe, seed, report, evaluation in _read_units(config, results):
        record = _provenance(config, model, recipe, seed, report, evaluation)
        digest = short_hash(record)
        provenance[digest] = record
        unit = {field: report.get(field) for field in COLUMNS if field in report}
        unit |= {"run": config.run, "status": OK, "seconds": report.get("seconds"), "provenance": digest}
        scores += _score_rows(config, unit, report, evaluation)
        layers += [
            {"run": config.run, "model": model, "recipe": recipe, "seed": seed, **_layer_fields(layer)}
            for layer in report["layers"] or []
        ]
    write_csv(results / "scores.csv", COLUMNS, scores)
    extra = sorted({field for layer in layers for field in layer} - set(LAYER_COLUMNS))
    write_csv(results / "layers.csv", [*LAYER_COLUMNS, *extra], layers)
    write_json(results / "provenance.json", provenance)


def short_hash(record: Mapping[str, Any]) -> str:
    """The first 12 hex digits of the sha256 of canonical JSON: the same for equal records in any order of keys."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read_units(config: Config, results: Path) -> Iterator[tuple[str, str, int, dict[str, Any], dict[str, Any] | None]]:
    """(model, recipe, seed, report, evaluation or None where quantizing failed), in the order of the config."""
    units = [(model, recipe, seed) for model in config.models for recipe, seed in config.units(model)]
    found, missing = [], []
    for model, recipe, seed in units:
        folder = results / model / recipe / f"seed{seed}"
        report, evaluation = _read_json(folder / "report.json"), _read_json(folder / "evaluation.json")
        if report is None:
            missing.append(folder / "report.json")
            continue
        if evaluation is None and report["status"] == OK:
            missing.append(folder / "evaluation.json")
        named = (report["model"], report["recipe"], report["seed"])
        if named != (model, recipe, seed):
            raise ValueError(f"{folder / 'report.json'} is of {named}, not of {(model, recipe, seed)}")
        if evaluation and OK == report["status"] == evaluation["status"]:
            _check_weights(folder, report, evaluation)
        found.append((model, recipe, seed, report, evaluation if report["status"] == OK else None))
    if missing:
        more = f" and {len(missing) - SHOWN_MISSING} more" if len(missing) > SHOWN_MISSING else ""
        raise FileNotFoundError(f"missing: {', '.join(map(str, missing[:SHOWN_MISSING]))}{more}")
    yield from found


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _check_weights(folder: Path, report: dict[str, Any], evaluation: dict[str, Any]) -> None:
    written, scored = report["hashes"]["weights"], evaluation["hashes"]["weights"]
    if written != scored:
        raise ValueError(f"{folder / 'evaluation.json'} is of weights {scored}, but report.json wrote {written}")


def _score_rows(
    config: Config, unit: dict[str, Any], report: dict[str, Any], evaluation: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """The rows of one unit; `unit` holds the columns that they share."""
    if evaluation is None:
        yield unit | {"status": in_words(report)}
        return
    unit = unit | {"peak_mib": evaluation.get("peak_mib")}
    if evaluation["status"] != OK:
        yield unit | {"status": in_words(evaluation), "seconds": evaluation.get("seconds")}
        return
    order = {task: place for place, task in enumerate([*config.perplexity, *config.tasks])}
    for score in sorted(evaluation["scores"], key=lambda score: order.get(score["task"], len(order))):
        row = unit | {field: score[field] for field in COLUMNS if field in score}
        row["metric"] = metric_name(score["metric"], score.get("filter"))
        row["seconds"] = evaluation["task_seconds"].get(score["task"])
        if score["value"] is None and row["status"] == OK:
            row["status"] = f"{FAILED}: no finite value"
        yield row


def metric_name(metric: str, filter: str | None) -> str:
    """`exact_match` under lm-eval's filter `strict-match` is `exact_match/strict-match`; `none` adds nothing."""
    return metric if filter in (None, "", "none") else f"{metric}/{filter}"


def _layer_fields(layer: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of a report's `layers` as CSV fields: `name` is `layer`, a shape is written 384x128."""
    fields = {name: value for name, value in layer.items() if name not in ("name", "shape")}
    nested = {name: json.dumps(value) for name, value in fields.items() if isinstance(value, dict | list)}
    return fields | nested | {"layer": layer["name"], "shape": "x".join(map(str, layer["shape"]))}


def _provenance(
    config: Config,
    model: str,
    recipe: str,
    seed: int,
    report: dict[str, Any],
    evaluation: dict[str, Any] | None,
) -> dict[str, Any]:
    """What can move the numbers of one unit. Of the config only that: not its other models, recipes or figures."""
    asked = _asked(config, model, recipe, seed)
    steps = {"quantize": report, "evaluate": evaluation or {}}
    calibration = {name: value for name, value in report.get("hashes", {}).items() if name == "calibration"}
    return {
        "code": {verb: step.get("hashes", {}).get("code") for verb, step in steps.items()},
        "config": {"hash": short_hash(asked), **asked},
        "data": {"tasks": steps["evaluate"].get("hashes", {}).get("tasks")} | calibration,
        "weights": {name: report.get("hashes", {}).get(name) for name in ("source", "weights")},
        "versions": {verb: step.get("versions") for verb, step in steps.items()},
        "evaluation": {
            field: steps["evaluate"].get(field) for field in ("device", "dtype", "batch_size", "add_bos", "seeds")
        },
    }


def _asked(config: Config, model: str, recipe: str, seed: int) -> dict[str, Any]:
    data = config.resolved()
    chosen = data["recipes"][recipe]
    return {
        "model": {"name": model, **{key: value for key, value in data["models"][model].items() if key != "recipes"}},
        "recipe": {
            "name": recipe,
            "version": configuration.method_info(chosen["method"]).version,
            **{key: value for key, value in chosen.items() if key != "seeds"},
        },
        "seed": seed,
        "tasks": {name: task | {"items": config.items_of(name)} for name, task in data["tasks"].items()},
        "perplexity": data["perplexity"],
    }
