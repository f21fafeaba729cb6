"""From lm-eval's results to rows: one per task, metric and filter, each with error, chance level and majority rate."""

import math
from collections.abc import Mapping
from typing import Any

from lm_eval.api.task import ConfigurableTask

from r2q.config import Config, ConfigError
from r2q.evaluation.chance import levels
from r2q.evaluation.errors import bootstrap
from r2q.evaluation.fidelity import Distance, Reference
from r2q.evaluation.perplexity import TokenPerplexity
from r2q.evaluation.tasks import TaskSet
from r2q.records import FAILED

SHOWN_FIRST = ("acc", "exact_match", "word_perplexity", "perplexity")  # in the main table, unless the config says else
NOT_METRICS = {"name", "alias", "sample_len", "sample_count"}


def task_scores(
    raw: Mapping[str, Any], tasks: TaskSet, config: Config, failed: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Rows of all tasks, in the order of the config.

    Args:
        raw: what `lm_eval.evaluate` returned.
        tasks: the tasks that were evaluated.
        config: `tasks.<name>.metric` chooses the row that stands in the main table.
        failed: tasks and groups that gave nothing, with the reason: one row each, without a value.

    Returns:
        The entries of `scores` in evaluation.json. A value that is not finite is null. For a group, its aggregated
        scores stand in the table, and its single tasks follow.

    A task that does not give the metric that the config asks for gets a failed row besides its own.
    """
    failed = failed or {}
    rows: list[dict[str, Any]] = []
    done: set[str] = set()
    for asked, names in tasks.asked.items():
        for name in names:
            metric = config.tasks[asked].metric
            done.add(name)
            if name in failed:
                rows.append(_failed_row(name, metric, failed[name], raw, tasks))
                continue
            scored = _rows(name, raw, tasks)
            try:
                _mark(scored, metric, asked)
            except ConfigError as error:
                scored.append(_failed_row(name, metric, str(error), raw, tasks))
            rows += scored
        for name in names:
            for single in _leaves(name, raw):
                if single not in done and single in failed:
                    rows.append(_failed_row(single, None, failed[single], raw, tasks) | {"in_table": False})
                elif single not in done:
                    rows += _rows(single, raw, tasks)
            done |= set(_leaves(name, raw))
    return rows


def perplexity_score(name: str, window: int, result: TokenPerplexity) -> dict[str, Any]:
    """The row of one token perplexity; n counts windows, version is the id of the text's first token."""
    row = _blank_row(name, f"token_ppl_{window}")
    fields = {"value": result.value, "stderr": result.stderr, "n": result.windows}
    return row | fields | {"version": f"first token {result.first_token}"}


def fidelity_scores(result: Distance, teacher: Reference) -> list[dict[str, Any]]:
    """The rows of the distance to full precision; n counts windows, version says what is compared with what."""
    window, k = teacher.tokens.shape[1], teacher.ids.shape[2]
    version = f"top {k}, windows of {window}, first token {int(teacher.tokens[0, 0])}"
    means = result.means
    return [
        _blank_row("fidelity", name)
        | {"value": value, "stderr": error, "n": len(result.kl), "version": version}
        | {"higher_is_better": name != "kl", "in_table": name == "kl"}
        for name, (value, error) in means.items()
    ]


def failed_text(name: str, metric: str, reason: str) -> dict[str, Any]:
    """The row of a text that could not be measured."""
    return _blank_row(name, metric) | {"status": FAILED, "reason": reason}


def _blank_row(name: str, metric: str) -> dict[str, Any]:
    """A row of the table without a value; less is better, as of a text."""
    empty = dict.fromkeys(("value", "stderr", "n", "chance", "majority", "version"))
    return {"task": name, "metric": metric, "filter": "none", **empty, "higher_is_better": False, "in_table": True}


def _failed_row(name: str, choice: str | None, reason: str, raw: Mapping[str, Any], tasks: TaskSet) -> dict[str, Any]:
    """A row without a value, under the metric that would have stood in the table."""
    leaves = [tasks.dictionary["tasks"][leaf] for leaf in _leaves(name, raw)]
    offered = _offered(leaves, tasks.dictionary["groups"].get(name))
    metric, _, filter_ = (choice or "").replace(",", "/").partition("/")
    metric = metric or _first_shown([m for m, _ in offered]) or "acc"
    filter_ = filter_ or next((f for m, f in offered if m == metric), leaves[0]._filters[0].name)
    return _blank_row(name, metric) | {
        "filter": filter_,
        "n": sum(tasks.limits[leaf] for leaf in _leaves(name, raw)),
        "higher_is_better": _direction(metric, leaves[0].higher_is_better() or {}),
        "version": str(raw["versions"].get(name)),
        "output_type": _output_type(_leaves(name, raw), tasks),
        "status": FAILED,
        "reason": reason,
    }


def _offered(leaves: list[Any], group: Any) -> list[tuple[str, str]]:
    """(metric, filter) of all that a single task gives, or a group of such tasks, in the order of lm-eval's results."""
    given = [(m, part.name) for leaf in leaves for m in leaf.aggregation() or {} for part in leaf._filters]
    listed = () if group is None else group.aggregate_metric_list or ()
    if not listed:
        return given
    return [
        (entry.metric, f)
        for entry in listed
        for f in entry.filter_list or sorted({f for m, f in given if m == entry.metric})
        if (entry.metric, f) in given
    ]


def _first_shown(metrics: list[str]) -> str:
    """The metric of these that stands in the main table where the config does not choose; "" of none."""
    return next((m for m in SHOWN_FIRST if m in metrics), metrics[0] if metrics else "")


def _leaves(name: str, raw: Mapping[str, Any]) -> list[str]:
    """Single tasks of a group, in its order; a single task is its own."""
    children = raw["group_subtasks"].get(name)
    if not children:
        return [name]
    return [leaf for child in children for leaf in _leaves(child, raw)]


def _rows(name: str, raw: Mapping[str, Any], tasks: TaskSet) -> list[dict[str, Any]]:
    results = raw["results"][name]
    leaves, single = _leaves(name, raw), tasks.dictionary["tasks"]
    rows = []
    for key, value in results.items():
        if key in NOT_METRICS or "," not in key:
            continue
        metric, filter_ = key.split(",", 1)
        if metric.endswith("_stderr"):
            continue
        counted = [leaf for leaf in leaves if key in raw["results"].get(leaf, {})]  # a group is over those alone
        known = [levels(tasks.items[leaf], _scored(single[leaf]), metric) for leaf in counted]
        counts = [tasks.limits[leaf] for leaf in counted]
        weights = counts if _by_size(tasks.dictionary["groups"].get(name), metric) else [1] * len(counts)
        rows.append(
            {
                "task": name,
                "metric": metric,
                "filter": filter_,
                "value": _number(value),
                "stderr": _stderr(name, metric, results.get(f"{metric}_stderr,{filter_}"), tasks),
                "n": sum(counts),
                "chance": _mean([chance for chance, _ in known], weights),
                "majority": _mean([majority for _, majority in known], weights),
                "higher_is_better": _direction(metric, raw["higher_is_better"].get(name) or {}),
                "in_table": False,
                "version": str(raw["versions"].get(name)),
                "num_fewshot": _shots(leaves, raw),
                "output_type": _output_type(leaves, tasks),
            }
        )
    return rows


def _shots(leaves: list[str], raw: Mapping[str, Any]) -> int | None:
    """Worked examples before each item; None where the tasks of a group differ."""
    shots = {raw["n-shot"].get(leaf) for leaf in leaves}
    return shots.pop() if len(shots) == 1 else None


def _output_type(leaves: list[str], tasks: TaskSet) -> str:
    """What lm-eval asks a model for, `generate_until` say; where the tasks of a group differ, all of them."""
    return " ".join(sorted({tasks.dictionary["tasks"][leaf].OUTPUT_TYPE for leaf in leaves}))


def _scored(task: Any) -> str | None:
    """What lm-eval asks a model for; None of log-likelihoods that a function of the task's own makes a score of."""
    own = callable(task.config.process_results) or type(task).process_results is not ConfigurableTask.process_results
    return None if own and task.OUTPUT_TYPE == "loglikelihood" else task.OUTPUT_TYPE


def _by_size(group: Any, metric: str) -> bool:
    """Whether a group's score is the mean over all items, as by default, and not over its tasks."""
    listed = () if group is None else group.aggregate_metric_list or ()
    return all(entry.weight_by_size for entry in listed if entry.metric == metric)


def _mean(values: list[float | None], weights: list[int]) -> float | None:
    """Mean of a level as the score itself is one; None when a task has no such level."""
    if any(value is None for value in values):
        return None
    return math.fsum(v * n for v, n in zip(values, weights, strict=True) if v is not None) / sum(weights)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _stderr(task: str, metric: str, given: Any, tasks: TaskSet) -> float | None:
    """lm-eval's own standard error, or ours for what it leaves at "N/A"."""
    error = _number(given)
    if error is not None:
        return error
    single = tasks.dictionary["tasks"].get(task)
    if single is None or single.OUTPUT_TYPE != "loglikelihood_rolling":
        return None
    pairs = [values[metric] for values in tasks.seen[task] if metric in values]
    if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        return None
    return bootstrap(pairs, metric)


def _direction(metric: str, stated: Mapping[str, Any]) -> bool:
    if isinstance(stated.get(metric), bool):
        return stated[metric]
    return "perplexity" not in metric and metric not in ("bits_per_byte", "brier_score")


def _mark(rows: list[dict[str, Any]], choice: str | None, asked: str) -> None:
    """Choose the one row of a task that stands in the main table: the first filter of the metric."""
    offered = [(row["metric"], row["filter"]) for row in rows]
    if choice is None:
        metric, filter_ = _first_shown([m for m, _ in offered]), ""
    else:
        metric, _, filter_ = choice.replace(",", "/").partition("/")
    for row in rows:
        if row["metric"] == metric and filter_ in ("", row["filter"]):
            row["in_table"] = True
            return
    names = ", ".join(m if f == "none" else f"{m}/{f}" for m, f in offered)
    raise ConfigError(f"tasks.{asked}.metric: the task gave no {choice or 'metric'}; it gave {names or 'nothing'}")
