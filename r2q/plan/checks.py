"""Looked at before the first job: what cannot work, and what is there but has to be made again.

Snakemake asks whether a unit's report.json and evaluation.json are there and newer than what they depend on. They
stand for a whole folder, whose other files differ from model to model: the report lists them. What is missing or cut
off, and what failed for a reason outside of the run (a file, memory), is therefore found here, and asked for again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from r2q import prepare
from r2q.intact import OTHERWISE, Damaged, changed_files, check_tensors, missing_files, touched_files
from r2q.kept import file_sha256
from r2q.plan import Plan, Unit, model_files
from r2q.records import OK, Evaluation, Report, read_json


def problems(plan: Plan, made_tasks: Iterable[str]) -> list[str]:
    """One sentence for everything that can be known before any work: paths, tasks, recipes that a model cannot have.

    `made_tasks` are those that a rule writes.
    """
    config, checkable = plan.config, plan.config
    if damaged_worlds(plan):  # what the rule will write is known
        texts = {name: text for name, text in config.perplexity.items() if not plan.is_made(text.path)}
        checkable = config.model_copy(
            update={
                "tasks": {name: task for name, task in config.tasks.items() if name not in made_tasks},
                "task_include": [path for path in config.task_include if not plan.is_made(path)],
                "perplexity": texts,
                "fidelity": None,
                "calibration": None,
                "training": None,
            }
        )
    sentences = prepare.missing_paths(checkable) + prepare.future_paths(checkable) or prepare.task_problems(checkable)
    made = [*plan.intermediates, *plan.files("report.json", "evaluation.json")]
    if plan.hub.pinned and (not all(Path(file).is_file() for file in made) or _work(plan)):
        sentences += plan.hub.missing()  # else no job reads the hub's cache
    # Heavy jobs run in this environment, on a cluster, too: an engine that is missing here is missing there.
    rows = dict.fromkeys(path for unit in plan.units for path in plan.training(unit))
    sentences += prepare.engine_problems(config, rows)
    sentences += prepare.optimizer_problems(config, (u.recipe for u in plan.trained if not _is_trained(plan, u)))
    for model in config.models:
        sentences += _of_model(plan, model)
    return sentences


def _is_trained(plan: Plan, unit: Unit) -> bool:
    """Whether a training has come to its end, good or bad, by its recipe and code as they are now."""
    folder = Path(plan.results, unit.path)
    try:
        report = read_json(folder / "report.json", Report)
    except (FileNotFoundError, Damaged):
        return False
    same = report.asked == plan.asked("quantize", unit)
    return same and not report.retry and not (report.status == OK and missing_files(folder, report.files))


def _of_model(plan: Plan, model: str) -> list[str]:
    """Recipes that a model cannot have, by what `prepare` found of it; nothing where that is older than the model."""
    path, entry = Path(plan.results, model, "prepared.json"), plan.config.models[model]
    times = [Path(file).stat().st_mtime for file in model_files(entry) if Path(file).is_file()]
    if not path.is_file() or path.stat().st_mtime < max(times, default=0):
        return []
    try:
        return prepare.recipe_problems(plan.config, model, _prepared(plan, model, path))
    except Damaged:  # made again
        return []


def _prepared(plan: Plan, model: str, path: str | Path) -> dict[str, Any]:
    """What `prepare` found of a model; raises Damaged where the file is, or where the model stood elsewhere."""
    facts, entry = prepare.read_prepared(path, model, prepare.FACTS), plan.config.models[model]
    if [facts["path"], facts["revision"]] != [entry.path, entry.revision]:
        raise Damaged(OTHERWISE)
    return facts


def stale(plan: Plan) -> dict[str, str]:
    """Outputs that are there and have to be made again, each with the reason."""
    reasons = _work(plan)
    for manifest in plan.manifests:
        reasons |= dict.fromkeys(changed_files(manifest), f"{manifest}: the files are not what was written; made again")
    return reasons


def _work(plan: Plan) -> dict[str, str]:
    """Those of them that are made of models, texts and tasks."""
    reasons = dict(_stale_units(plan))
    reasons |= {file: reason for file, reason in damaged_worlds(plan).items() if Path(file).is_file()}
    for model in plan.config.models:
        reasons |= _damage(f"{plan.results}/{model}/prepared.json", partial(_prepared, plan, model))
    for path, (rule, unit) in plan.token_files.items():
        reasons |= _damage(path, partial(check_tensors, asked=plan.asked(rule, unit)))
    return reasons


def damaged_worlds(plan: Plan) -> dict[str, str]:
    """Folders that a rule makes, by their first file, which has the sha256 of the others; with what is wrong."""
    damage = {}
    for folder, (first, *rest) in plan.made.items():
        try:
            digests = json.loads(Path(first).read_bytes())["files"]
            wrong = [f for f in rest if file_sha256(Path(f)) != digests[Path(f).relative_to(folder).as_posix()]]
        except (OSError, ValueError, LookupError, TypeError):
            wrong = [first]
        if wrong:
            damage[first] = f"{wrong[0]}: missing or damaged; {folder} is made again"
    return damage


def _damage(path: str, read: Any) -> dict[str, str]:
    try:
        if Path(path).is_file():
            read(path)
    except Damaged as error:
        return {path: str(error)}
    return {}


def _stale_units(plan: Plan) -> Iterator[tuple[str, str]]:
    evaluations: dict[str, dict[Path, Evaluation]] = {model: {} for model in plan.config.models}
    for unit in plan.units:
        folder = Path(plan.results, unit.path)
        kinds: list[tuple[str, type[Report] | type[Evaluation], str]]
        kinds = [("report.json", Report, "quantize"), ("evaluation.json", Evaluation, "evaluate")]
        for name, kind, rule in kinds:
            if not (folder / name).is_file():
                continue
            try:
                record = read_json(folder / name, kind)
            except Damaged as error:
                yield str(folder / name), str(error)
                continue
            if isinstance(record, Evaluation):
                evaluations[unit.model][folder / name] = record
            files = missing_files(folder, record.files)
            if plan.asks_otherwise(rule, unit, record.asked):
                yield str(folder / name), OTHERWISE
            elif record.retry:
                yield str(folder / name), f"{folder}: {record.status} before ({record.reason}); tried again"
            elif record.status == OK and files:
                yield str(folder / name), f"{folder}: {', '.join(files)} missing or cut off; made again"
            elif record.status == OK and (later := touched_files(folder / name, record.files)):
                yield str(folder / name), f"{folder}: {', '.join(later)} written since; looked at again"
    for model, of_model in evaluations.items():
        for path in on_other_data(of_model):
            yield str(path), f"{model}: tasks or texts held something else when older units were evaluated: again"


def on_other_data(evaluations: Mapping[Path, Evaluation]) -> list[Path]:
    """Evaluations of one model, by their files, whose tasks and texts held something else than those of the newest."""
    read = {path: record.hashes["tasks"] for path, record in evaluations.items() if record.hashes.get("tasks")}
    newest = max(read, key=lambda path: path.stat().st_mtime_ns, default=None)
    return [path for path, digest in read.items() if newest is not None and digest != read[newest]]
