"""What every item of a task gave: items.json of a unit, from which `collect` makes items.csv for paired tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from r2q.evaluation.tasks import TaskSet

CLOSE = 1e-9  # relative; of a mean to the score


def kept(values: Sequence[float], asked: str) -> dict[str, Any]:
    """An entry of items.json: numbers in the order of the items, and a hash of the items."""
    return {"asked": asked, "values": list(values)}


def task_items(raw: Mapping[str, Any], tasks: TaskSet) -> dict[str, dict[str, Any]]:
    """By single task and `metric,filter`, what every document gave; only where the score is the mean of that.

    Args:
        raw: what `lm_eval.evaluate` returned.
        tasks: the tasks, whose `seen` holds what the last evaluation gave: all documents under the first filter, then
            all under the second one, and so on.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, seen in tasks.seen.items():
        results, count = raw["results"].get(name, {}), tasks.limits[name]
        for place, filter_ in enumerate(part.name for part in tasks.dictionary["tasks"][name]._filters):
            documents = seen[place * count : (place + 1) * count]
            for metric in documents[0] if len(documents) == count else ():
                values, score = [document.get(metric) for document in documents], results.get(f"{metric},{filter_}")
                if _is_mean(score, values):
                    numbers = [float(value) for value in values]
                    found.setdefault(name, {})[f"{metric},{filter_}"] = kept(numbers, tasks.documents[name])
    return found


def _is_mean(score: Any, values: Sequence[Any]) -> bool:
    try:
        numbers = [float(value) for value in values]
        return math.isclose(float(score), math.fsum(numbers) / len(numbers), rel_tol=CLOSE, abs_tol=CLOSE)
    except (TypeError, ValueError):
        return False
