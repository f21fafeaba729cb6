"""What a score is worth: the level of a blind answer, from the task's own items.

- chance: expected score of an answer picked uniformly among the item's choices, averaged over the items (which may
  differ in their number of choices); a task that scores answers by a function of its own is asked. For exact match of
  generated text, and of a continuation that decoding has to give, it is 0: no finite set of answers to pick from.
- majority: score of always giving the same answer, the most frequent one: the share of the commonest gold index.
  None where no such answer exists: generated text, and tasks whose file lists the right choice at the same place in
  every item (sciq), where the index says nothing.
- both None for perplexities and other scores that are not shares of right answers.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from r2q.config import ConfigError

CHOICE_METRICS = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info"})
MATCH_METRICS = frozenset({"exact_match"})
UNLIKELY = -1e3  # log-likelihood, nats: of no weight beside a likely choice
GREEDY = "loglikelihood", "acc"  # whether decoding gives the answer, as of LAMBADA


@dataclass(frozen=True)
class Items:
    """The answers of a multiple-choice task."""

    choices: list[list[str]]  # the choices of each item
    gold: list[list[int]]  # indices of each item's right choices; empty when the file names none that exists

    @property
    def chance(self) -> float:
        """Expected accuracy of a uniformly random choice."""
        shares = (len(g) / len(c) for c, g in zip(self.choices, self.gold, strict=True))
        return math.fsum(shares) / len(self.choices)

    @property
    def majority(self) -> float | None:
        """Accuracy of always choosing the commonest gold index."""
        counts = Counter(index for gold in self.gold for index in gold)
        most = max(counts.values(), default=0)
        if most == len(self.gold) and any(choices != self.choices[0] for choices in self.choices):
            return None
        return most / len(self.gold)


def levels(items: Items | None, output_type: str | None, metric: str) -> tuple[float | None, float | None]:
    """(chance, majority) of one metric of a task."""
    if items is not None and metric in CHOICE_METRICS:
        return items.chance, items.majority
    if (output_type == "generate_until" and metric in MATCH_METRICS) or (output_type, metric) == GREEDY:
        return 0.0, None
    return None, None


def items_of(task: Any, docs: Sequence[Any]) -> Items | None:
    """Choices and gold indices of an lm-eval task's documents; None when it is not multiple choice.

    Raises:
        ConfigError: a right answer is null; names task and row.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling":  # scores texts, and has no answers
        return None
    source = task.doc_to_text if getattr(task, "multiple_input", 0) else task.doc_to_target
    golds = [source(doc) for doc in docs]
    for number, (gold, doc) in enumerate(zip(golds, docs, strict=True), 1):
        for value in gold if isinstance(gold, list) else [gold]:
            rendered = value == "None" and isinstance(doc, dict) and None in doc.values()  # by a template
            wrong = task.OUTPUT_TYPE == "multiple_choice" and not isinstance(value, Integral | str)
            if value is None or rendered or wrong:
                answer = None if rendered else gold
                raise ConfigError(
                    f"task {task.task_name}, row {number}: the right answer is {answer!r}, not an index or text"
                )
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = [list(task.doc_to_choice(doc)) for doc in docs]
    if callable(rule := task.config.process_results):
        return _by_rule(rule, docs, choices)
    return Items(choices, [_indices(gold, c) for gold, c in zip(golds, choices, strict=True)])


def _by_rule(rule: Any, docs: Sequence[Any], choices: list[list[str]]) -> Items | None:
    """The right choices of a task that scores answers by a function of its own: what it calls right when that alone is
    likely. None where it cannot be asked so, or gives a part of a point."""
    gold = []
    for doc, offered in zip(docs, choices, strict=True):
        picks = [[(0.0 if i == j else UNLIKELY, i == j) for i in range(len(offered))] for j in range(len(offered))]
        try:
            points = [float(rule(doc, pick)["acc"]) for pick in picks]
        except Exception:  # of a function of anyone's
            return None
        if not set(points) <= {0.0, 1.0}:
            return None
        gold.append([j for j, point in enumerate(points) if point])
    return Items(choices, gold)


def _indices(gold: Any, choices: Sequence[str]) -> list[int]:
    indices = set()
    for value in gold if isinstance(gold, list) else [gold]:
        if isinstance(value, str):
            value = list(choices).index(value) if value in choices else -1
        if 0 <= int(value) < len(choices):
            indices.add(int(value))
    return sorted(indices)
