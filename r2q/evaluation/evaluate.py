"""The verb `evaluate`: scores of a packed checkpoint, reading nothing but its folder."""

import sys
from pathlib import Path
from typing import Any

from r2q import config as configuration
from r2q.evaluation.tasks import check_tasks
from r2q.kept import write_json
from r2q.records import ITEMS, OK, RAW, Report, read_json, write_record

SHARED: dict[tuple[str, ...], Any] = {}  # sessions of a server, and of the processes that it forks


def share(config_path: str | Path, model: str, out: str | Path, reference: str | Path | None = None) -> None:
    """Make once what the units of a model, of which `out` is one, are evaluated with; nothing of methods stays."""
    from r2q.evaluation.session import Session

    key = _key(config_path, model, reference)
    if key not in SHARED:
        before = set(sys.modules)
        try:
            session = Session(configuration.load(config_path, model), model, reference)
            session.encode(Path(out))
        finally:
            configuration.forget(before)  # they may be edited before the next unit is quantized
        SHARED[key] = session


def _key(config_path: str | Path, model: str, reference: str | Path | None) -> tuple[str, ...]:
    return Path(config_path).read_text(errors="replace"), model, str(reference)


def evaluate(config_path: str | Path, model: str, out: str | Path, reference: str | Path | None = None) -> None:
    """Score the unit in the folder `out` into its evaluation.json, with lm-eval's own results in lm_eval.json and
    what every item gave in items.json.

    `reference` is what the verb of that name wrote of the model, where the config has a section `fidelity`.

    A unit whose key (weights, tokenizer, tasks, settings, code, libraries) has not changed keeps its result. A model
    that gives NaN, or does not fit into memory, becomes a record with status `failed` and the reason; one that was not
    quantized has the status of its report.

    Raises:
        ConfigError: the config is wrong, a task or its data cannot be found, or a window exceeds the model.
        FileNotFoundError: the unit has not been quantized.
        ValueError: its weights are not those of its report, or its report is damaged.
    """
    out = Path(out)
    session = SHARED.get(_key(config_path, model, reference)) if SHARED else None
    config = session.config if session else configuration.load(config_path, model)
    check_tasks(config)
    if not (out / "report.json").is_file():
        raise FileNotFoundError(f"no file {out / 'report.json'}; run `quantize` first")
    report = read_json(out / "report.json", Report)
    from r2q.evaluation.session import Session, blank  # torch and lm-eval: not before the input is right

    progress = f"evaluate {model} {report.recipe} seed {report.seed}:"
    if report.status == OK:
        session = session or Session(config, model, reference)
        print(f"{progress} {session.unit(out, report)}", flush=True)
        return
    for name in (RAW, ITEMS):
        write_json(out / name, {})
    reason = f"quantize: {report.reason}"
    write_record(out / "evaluation.json", blank(config, model, report, status=report.status, reason=reason))
    print(f"{progress} not evaluated, quantizing {report.status}: {report.reason}", flush=True)
