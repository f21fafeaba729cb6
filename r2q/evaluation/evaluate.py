"""The verb `evaluate`: scores of packed checkpoints, reading nothing but their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from r2q import config as configuration
from r2q.config import ConfigError
from r2q.evaluation.session import Session, blank, text_of
from r2q.evaluation.tasks import check_tasks
from r2q.kept import Kept, write_atomic
from r2q.status import OK, in_words


def evaluate(config_path: str | Path, prepared: str | Path, model: str, recipes: list[str], out: str | Path) -> None:
    """Score every unit `out/<recipe>/seed<k>/` of the named recipes into its evaluation.json.

    A unit whose key (weights, tokenizer, tasks, settings, code, libraries) has not changed keeps its result. A model
    that gives NaN, or does not fit into memory, becomes a record with status `failed` and the reason; one that was not
    quantized has the status of its report.

    Raises:
        ConfigError: the config is wrong, a task or its data cannot be found, or a window exceeds the model.
        FileNotFoundError: a unit has not been quantized.
        ValueError: a unit's weights are not those of its report, or are damaged.
    """
    config = configuration.load(config_path)
    if model not in config.models:
        raise ConfigError(f"model: {config_path} has no model {model}; it has {', '.join(config.models)}")
    if not Path(prepared).is_file():
        raise FileNotFoundError(f"no file {prepared}; run `prepare` first")
    unknown = [recipe for recipe in recipes if recipe not in config.recipes]
    if unknown:
        raise ConfigError(f"recipes: {config_path} has no recipe {unknown[0]}; it has {', '.join(config.recipes)}")
    check_tasks(config)
    out = Path(out)
    folders = [out / recipe / f"seed{seed}" for recipe in recipes for seed in config.seeds_of(recipe, model)]
    reports = [_report(folder) for folder in folders]
    session: Session | None = None  # imports and tasks cost seconds: only when something is to be evaluated
    for number, (folder, report) in enumerate(zip(folders, reports, strict=True), 1):
        progress = f"evaluate {model} {number}/{len(folders)} {report['recipe']} seed {report['seed']}:"
        if report["status"] != OK:
            record = blank(config, model) | {"status": report["status"], "error": f"quantize: {report['error']}"}
            record["hashes"]["weights"] = report["hashes"]["weights"]
            write_atomic(folder / "evaluation.json", text_of(record))
            print(f"{progress} not evaluated, quantizing {in_words(report)}", flush=True)
            continue
        session = session or Session(config, model, Kept(out.parent / ".kept"))
        print(f"{progress} {session.unit(folder, report)}", flush=True)


def _report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; run `quantize` first")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
