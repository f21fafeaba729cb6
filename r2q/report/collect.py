"""Every report.json and evaluation.json of a run, gathered into scores.csv, layers.csv and provenance.json."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from r2q import config as configuration
from r2q.config import Config, some
from r2q.intact import Damaged, sign
from r2q.kept import key, write_json
from r2q.plan import Plan, Unit
from r2q.plan.checks import on_other_data
from r2q.prepare import read_prepared
from r2q.records import (
    FAILED,
    ITEMS,
    OK,
    Evaluation,
    ItemRow,
    Layer,
    LayerRow,
    Report,
    Score,
    columns,
    read_json,
    write_csv,
)
from r2q.report.items import encode

SHOWN_MISSING = 10  # files named in the error about missing ones
UNIT_FIELDS = (
    "model", "family", "recipe", "method", "granularity", "group_size", "bits_per_weight", "file_bytes", "seed",
    "bits",
)  # fmt: skip


def collect(config_path: str | Path, results: str | Path) -> None:
    """Write `scores.csv`, `layers.csv`, `items.csv` and `provenance.json` into the folder `results` of one run, and
    their sha256.

    Rows stand in the order of the config: models, recipes, seeds, perplexities, fidelity, tasks. A unit that failed or
    diverged is one row with an empty task, its status and the reason.

    Raises:
        FileNotFoundError: names the units' files that are not there.
        ValueError: a file is not what its folder says, the evaluation is of other weights than the report, or a unit
            was made with other settings than the config's, or evaluated on other data than the others of its model.
    """
    config, results = configuration.load(config_path), Path(results)
    scores: list[Score] = []
    layers: list[dict[str, Any]] = []
    items: list[ItemRow] = []
    provenance: dict[str, dict[str, Any]] = {}
    formats = {
        name: read_prepared(results / name / "prepared.json", name, ["source_format"])["source_format"]
        for name, entry in config.models.items()
        if entry.is_gguf
    }
    for unit, report, evaluation in _read_units(config, results):
        record = _provenance(config, unit, report, evaluation)
        if unit.model in formats:
            record["weights"]["source_format"] = formats[unit.model]
        digest = key(record)[:12]
        provenance[digest] = record
        scores += _scores(config, report, evaluation, digest)
        items += _items(results, unit, evaluation)
        layers += [_layer_row(config, report, layer) for layer in report.layers]
    notes = sorted({name for layer in layers for name in layer} - set(columns(LayerRow)))
    files = [results / name for name in ("scores.csv", "layers.csv", "items.csv", "provenance.json")]
    write_csv(files[0], columns(Score), scores)
    write_csv(files[1], [*columns(LayerRow), *notes], layers)
    write_csv(files[2], columns(ItemRow), items)
    write_json(files[3], provenance)
    sign(results / "collected.sha256", files)
    for sentence in _mixed(provenance.values()):
        print(f"collect: {sentence}; see provenance.json", flush=True)


def _mixed(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for every library, device and limit of which the run has several: none makes a unit again."""
    seen: dict[str, set[str]] = {}
    for record in records:
        versions = record["versions"]
        for verb, done in (("quantize", "quantized"), ("evaluate", "evaluated")):
            for library, version in (versions[verb] or {}).items():
                seen.setdefault(f"{done} with {library}", set()).add(version)
            for name, number in (record["limits"][verb] or {}).items():
                seen.setdefault(f"{done} with limits.{name}", set()).add(str(number))
        if record["evaluation"]["device"] is not None:
            seen.setdefault("evaluated on", set()).add(record["evaluation"]["device"])
    for what, several in seen.items():
        if len(several) > 1:
            yield f"units were {what} {' and '.join(sorted(several))}, which may be what tells their numbers apart"


def _read_units(config: Config, results: Path) -> Iterator[tuple[Unit, Report, Evaluation | None]]:
    """Every unit with its report and, where quantizing went well, its evaluation, in the order of the config."""
    plan, units, missing = Plan(config), [], []
    for unit in plan.units:
        paths = [results / unit.path / name for name in ("report.json", "evaluation.json")]
        if not paths[0].is_file():
            missing.append(paths[0])
            continue
        report, evaluation = read_json(paths[0], Report), None
        named = Unit(report.model, report.recipe, report.seed)
        if named != unit:
            raise ValueError(f"{paths[0]} is of {named.path}, not of {unit.path}")
        if report.status == OK and not paths[1].is_file():
            missing.append(paths[1])
            continue
        if report.status == OK:
            evaluation = read_json(paths[1], Evaluation)
            written, scored = report.hashes["weights"], evaluation.hashes["weights"]
            if evaluation.status == OK and written != scored:
                raise ValueError(f"{paths[1]} is of weights {scored}, but report.json wrote {written}")
        for path, rule, record in zip(paths, ("quantize", "evaluate"), (report, evaluation), strict=True):
            if record is not None and plan.asks_otherwise(rule, unit, record.asked):
                raise ValueError(f"{path} was made with another config, or other code; run `{rule}` again")
        units.append((unit, report, evaluation))
    if missing:
        raise FileNotFoundError(f"missing: {some(missing, SHOWN_MISSING)}")
    for model in config.models:
        evaluations = {
            results / u.path / "evaluation.json": e for u, _, e in units if u.model == model and e is not None
        }
        if older := on_other_data(evaluations):
            names = some([str(path) for path in older], SHOWN_MISSING)
            raise ValueError(f"{names}: evaluated when tasks or texts held something else; run `evaluate` again")
    yield from units


def _scores(config: Config, report: Report, evaluation: Evaluation | None, provenance: str) -> Iterator[Score]:
    """The rows of one unit."""
    unit: dict[str, Any] = dict.fromkeys(columns(Score)) | {name: getattr(report, name) for name in UNIT_FIELDS}
    record = report if evaluation is None else evaluation
    unit |= {"run": config.run, "provenance": provenance, "status": record.status, "reason": record.reason}
    facts = report.facts
    unit |= {"kind": facts.kind, "frame": facts.frame, "quantizer": facts.label, "control": facts.control}
    unit |= {"seconds": record.seconds, "quantize_cpu_seconds": report.cpu_seconds}
    if evaluation is not None:
        unit |= {"peak_mib": evaluation.peak_mib, "evaluate_cpu_seconds": evaluation.cpu_seconds}
    blank = Score(**unit)
    if evaluation is None or evaluation.status != OK:
        yield blank
        return
    order = {task: place for place, task in enumerate([*config.perplexity, "fidelity", *config.tasks])}
    for score in sorted(evaluation.scores, key=lambda score: order.get(score.task, len(order))):
        lost = {"status": FAILED, "reason": "no finite value"} if score.value is None and score.status == OK else {}
        fields: dict[str, Any] = {name: value for name, value in vars(score).items() if name in unit} | lost
        fields["metric"] = metric_name(score.metric, score.filter)
        yield replace(blank, **fields, seconds=evaluation.task_seconds.get(score.task))


def _items(results: Path, unit: Unit, evaluation: Evaluation | None) -> Iterator[ItemRow]:
    """What every item of a unit gave, task by task; nothing of a unit that was not evaluated, or before there were any.

    Raises:
        Damaged: items.json is not what `evaluate` wrote.
    """
    path = results / unit.path / ITEMS
    if evaluation is None or path.name not in evaluation.files:
        return
    try:
        for task, metrics in json.loads(path.read_text()).items():
            for name, kept in metrics.items():
                metric = metric_name(*name.split(",", 1))
                values = encode(kept["values"])
                yield ItemRow(unit.model, unit.recipe, unit.seed, task, metric, kept["asked"], values)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"{path}: {error}; delete it and run `evaluate` again") from None


def metric_name(metric: str, filter: str | None) -> str:
    """`exact_match` under lm-eval's filter `strict-match` is `exact_match/strict-match`; `none` adds nothing."""
    return metric if filter in (None, "", "none") else f"{metric}/{filter}"


def _layer_row(config: Config, report: Report, layer: Layer) -> dict[str, Any]:
    """The fields of a `LayerRow`, and the method's notes."""
    unit = {"run": config.run, "model": report.model, "recipe": report.recipe, "seed": report.seed}
    shown = columns(LayerRow)
    fields = {name: value for name, value in vars(layer).items() if name in shown}
    measured = {} if layer.output_error is None else {"output_error": layer.output_error}
    notes = {name: json.dumps(note) if isinstance(note, dict | list) else note for name, note in layer.notes.items()}
    return {**unit, **fields, **measured, **notes, "layer": layer.name, "shape": "x".join(map(str, layer.shape))}


def _provenance(config: Config, unit: Unit, report: Report, evaluation: Evaluation | None) -> dict[str, Any]:
    """What can move the numbers of one unit. Of the config only that: not its other models, recipes or figures."""
    asked = _asked(config, unit)
    scored = {} if evaluation is None else vars(evaluation)
    hashes, of_scores = report.hashes, scored.get("hashes", {})
    worked_from = {name: value for name, value in hashes.items() if name in ("calibration", "training")}
    return {
        "code": {"quantize": hashes.get("code"), "evaluate": of_scores.get("code")},
        "config": {"hash": key(asked)[:12], **asked},
        "data": {"tasks": of_scores.get("tasks")} | worked_from,
        "weights": {name: hashes.get(name) for name in ("source", "weights")},
        "versions": {"quantize": report.versions, "evaluate": scored.get("versions")},
        "limits": {"quantize": report.limits, "evaluate": scored.get("limits")},
        "evaluation": {field: scored.get(field) for field in ("device", "dtype", "batch_size", "add_bos", "seeds")},
    }


def _asked(config: Config, unit: Unit) -> dict[str, Any]:
    data = config.resolved()
    chosen = data["recipes"][unit.recipe]
    model = {name: value for name, value in data["models"][unit.model].items() if name != "recipes"}
    return {
        "model": {"name": unit.model, **model},
        "recipe": {
            "name": unit.recipe,
            "version": configuration.method_info(chosen["method"]).version,
            **{name: value for name, value in chosen.items() if name != "seeds"},
        },
        "seed": unit.seed,
        "tasks": {name: task | {"items": config.items_of(name)} for name, task in data["tasks"].items()},
        "perplexity": data["perplexity"],
        "fidelity": data["fidelity"],
    }
