"""What every item of a task gave: items.json of a unit, from which `collect` makes items.csv for paired tests."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from r2q.evaluation.tasks import TaskSet

CLOSE = 1e-9  # relative; of a mean to the score


def item_entry(values: Sequence[float], asked: str) -> dict[str, Any]:
    """An entry of items.json: numbers in the order of the items, and a hash of the items."""
    return {"asked": asked, "values": list(values)}


def task_items(raw: Mapping[str, Any], tasks: TaskSet) -> dict[str, dict[str, Any]]:
    """By single task and `metric,filter`, what every document gave; only where the score is the mean of that.

    Args:
        raw: what `lm_eval.evaluate` returned.
        tasks: the tasks, whose `seen` holds what the last evaluation gave: all documents under the first filter, then
            all under the second one, and so on.
    """
    items: dict[str, dict[str, Any]] = {}
    for name, seen in tasks.seen.items():
        results, count = raw["results"].get(name, {}), tasks.limits[name]
        for place, filter_ in enumerate(part.name for part in tasks.dictionary["tasks"][name]._filters):
            documents = seen[place * count : (place + 1) * count]
            for metric in documents[0] if len(documents) == count else ():
                values, score = [document.get(metric) for document in documents], results.get(f"{metric},{filter_}")
                numbers = _numbers(values)
                if numbers is not None and _is_mean(score, numbers):
                    items.setdefault(name, {})[f"{metric},{filter_}"] = item_entry(numbers, tasks.documents[name])
    return items


def _numbers(values: Sequence[Any]) -> list[float] | None:
    """None where they are not all numbers: a metric that is more than a mean has pairs, texts, lists."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        return None


def _is_mean(score: Any, numbers: Sequence[float]) -> bool:
    return isinstance(score, float | int) and math.isclose(
        score, math.fsum(numbers) / len(numbers), rel_tol=CLOSE, abs_tol=CLOSE
    )
