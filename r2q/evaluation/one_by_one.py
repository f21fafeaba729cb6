"""lm-eval's evaluation of each single task on its own: what fails in one leaves the others' scores alone."""

from functools import partial
from typing import Any

import lm_eval

from r2q.evaluation.attempt import attempt
from r2q.evaluation.sharing import quiet
from r2q.evaluation.tasks import TaskSet, seed_all

BOOTSTRAP = 200  # resamples for lm-eval's own bootstrapped metrics (f1, mcc, bleu ...); means are in closed form
BY_TASK = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "samples")


def evaluate_tasks(
    scorer: Any, tasks: TaskSet, samples: bool
) -> tuple[dict[str, Any], dict[str, Exception], dict[str, float]]:
    """(what `lm_eval.evaluate` would return for all tasks that ended, errors by task and group, seconds by both).

    Groups are aggregated by lm-eval's own rule. A group of which a task failed, fails: a mean over the rest is another
    number.
    """
    raw: dict[str, Any] = {part: {} for part in BY_TASK}
    failed: dict[str, Exception] = {}
    seconds: dict[str, float] = {}
    for name, task in tasks.dictionary["tasks"].items():
        seed_all()
        scorer.task = name
        count = tasks.limits[name]
        work = partial(
            lm_eval.evaluate,
            lm=scorer,
            task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
            samples={name: range(count)} if count < len(task.eval_docs) else None,
            bootstrap_iters=BOOTSTRAP,
            log_samples=samples,
        )
        with quiet():
            result, error, seconds[name] = attempt(work, ArithmeticError)
        if error is not None:
            failed[name] = error
            continue
        for part in BY_TASK:
            raw[part] |= result.get(part, {})
    raw["group_subtasks"] = tasks.dictionary["group_map"]
    for name, group in tasks.dictionary["groups"].items():
        members = [task.task_name for task in group.get_all_tasks()]
        seconds[name] = round(sum(seconds[member] for member in members), 3)
        broken = [member for member in members if member in failed]
        if broken:
            failed[name] = failed[broken[0]]
            continue
        raw["results"][name] = group.aggregate(raw["results"])
        raw["versions"][name] = group.version
        raw["higher_is_better"][name] = {
            metric: better for member in members for metric, better in raw["higher_is_better"][member].items()
        }
    if not samples:
        raw.pop("samples")
    return raw, failed, seconds
