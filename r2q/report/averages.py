"""One number for how good a recipe is, with its interval: the average score, and the distance to full precision."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from r2q.records import OK
from r2q.report import statistics
from r2q.report.run import of_bits

SCORE = "average accuracy, %"
MANY = 20  # recipes of a model; of more the end of a run shows the best of each family
FIDELITY = ("kl", "KL to full precision, nats")
OTHER_SCALES = frozenset({"mcc", "bleu", "chrf", "chrf++"})  # of lm-eval: no shares, even where all lie between 0 and 1
COLUMNS = ["model", "recipe", "measure", "higher_is_better", "value", "low", "high", "chance", "at_chance", "seeds",
           "n"]  # fmt: skip


def flags(column: pd.Series) -> pd.Series:
    """A column of True and False; what is not known is False."""
    return column.fillna(False).astype(bool)


def in_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of the main table."""
    return scores[flags(scores["in_table"]) & (scores["task"] != "")]


def shares(shown: pd.DataFrame) -> set[tuple[str, str]]:
    """Task and metric of those numbers of the main table that are shares of right answers, from all rows of a run.

    What is no share for one recipe, or is known to go beyond all shares, is none for any other.
    """
    found = set()
    for (task, metric), rows in shown.groupby(["task", "metric"], sort=False):
        known = pd.concat([rows["value"], rows["chance"], rows["majority"]]).dropna()
        other = str(metric).partition("/")[0] in OTHER_SCALES  # also where no recipe's correlation is negative
        if flags(rows["higher_is_better"]).iloc[0] and not other and known.between(0, 1).all():
            found.add((str(task), str(metric)))
    return found


def accuracies(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of the main table that are shares of right answers."""
    shown = in_table(scores)
    chosen = shares(shown)
    share = [name in chosen for name in zip(shown["task"], shown["metric"], strict=True)]
    return shown[pd.Series(share, shown.index, dtype=bool)]


def standard_errors(rows: pd.DataFrame) -> pd.Series:
    """Of accuracies, for their intervals: 0 of all right or all wrong is a part of the width of Wilson's interval."""
    certain = (rows["stderr"] == 0) & rows["value"].isin((0, 1))
    return rows["stderr"].mask(certain, statistics.Z / (rows["n"].fillna(0).astype(float) + statistics.Z**2))


class Average(NamedTuple):
    """The mean accuracy of a unit over all tasks of its run, 0 to 1; NaN for what one of them lacks."""

    value: float
    stderr: float  # the items of different tasks are independent, so variances add
    width: float  # the same for its interval (see `standard_errors`)
    chance: float
    majority: float  # a free answer has none, and counts with its chance
    n: int  # items


def unit_averages(scores: pd.DataFrame) -> dict[tuple[str, str, int], Average]:
    """By model, recipe and seed, of the rows of a whole run; a unit that lacks a task has none, nor has any of a task
    that nobody has."""
    rows = accuracies(scores)
    tasks = len(rows[["task", "metric"]].drop_duplicates())
    rows = rows[(rows["status"] == OK) & rows["value"].notna()]
    averages: dict[Any, Average] = {}
    for name, unit in rows.groupby(["model", "recipe", "seed"], sort=False):
        if len(unit) == tasks:
            averages[name] = Average(
                value=fmean(unit["value"]),
                stderr=math.hypot(*unit["stderr"]) / tasks,
                width=math.hypot(*standard_errors(unit)) / tasks,
                chance=fmean(unit["chance"]),
                majority=fmean(unit["majority"].fillna(unit["chance"])),
                n=int(unit["n"].sum()),
            )
    return averages


def average_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Per model and recipe the mean over its seeds of `unit_averages` of a whole run, in percent.

    The interval is over the items (tasks as independent samples); with several seeds Student's over the seeds, or the
    one over items where that is wider.
    """
    of_recipes: dict[tuple[str, str], list[Average]] = {}
    for (model, recipe, _), average in unit_averages(scores).items():
        of_recipes.setdefault((model, recipe), []).append(average)
    rows = []
    for (model, recipe), seeds in of_recipes.items():
        values, first = [one.value for one in seeds], seeds[0]
        ends = np.clip(np.array(interval(values, [one.width for one in seeds])), 0, 1)  # NaN stays: no interval
        mean, error = fmean(values), fmean(one.stderr for one in seeds)
        marked = statistics.at_chance(mean, error, (first.chance, first.majority))
        percent = (100 * float(number) for number in (mean, *ends, first.chance))
        rows.append((model, recipe, SCORE, True, *percent, marked, len(values), first.n))
    return _numbers(rows)


def _numbers(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    """Rows of COLUMNS; a measure that a run does not have is a frame without rows, whose numbers are still numbers."""
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(("value", "low", "high", "chance"), float))


def by_granularity(scores: pd.DataFrame) -> pd.DataFrame:
    """`average_scores` of those rows of a whole run that have a granularity, with it, its place among all, finest
    first, and the recipe's family.

    A family is all but the granularity: frame, method, quantizer and bits, and the number of steps where `Run.framed`
    has named it; of recipes that have these in common and are not the same, such as two learning rates, it is the name
    without the granularity.
    """
    facts = ["granularity", "kind", "frame", "method", "quantizer", "bits", "control"]
    rows = average_scores(scores).join(scores.drop_duplicates("recipe").set_index("recipe")[facts], on="recipe")
    rows = rows[rows["granularity"] != ""].reset_index(drop=True)
    order = sorted(set(rows["granularity"]), key=group_width)
    rows["place"] = rows["granularity"].map(order.index)
    method = rows["method"].where(rows["kind"] == "calibration", "")
    parts = zip(rows["frame"].fillna(""), method, rows["quantizer"], strict=True)
    rows["family"] = [of_bits(_family(*part), bits) for part, bits in zip(parts, rows["bits"], strict=True)]
    shared = rows.duplicated(["model", "family", "granularity"], keep=False)
    shared = rows["family"].isin(rows.loc[shared, "family"])
    stems = [recipe.replace(f"-{width}", "") for recipe, width in zip(rows["recipe"], rows["granularity"], strict=True)]
    rows["family"] = rows["family"].mask(shared, pd.Series(stems, rows.index, dtype=object))
    return rows


def _family(frame: str, method: str, quantizer: str) -> str:
    """`bitdistiller r2q, 256 steps` of the frame `bitdistiller, 256 steps`."""
    frame, comma, steps = frame.partition(",")
    return " ".join(dict.fromkeys(filter(None, (frame, method, quantizer)))) + comma + steps


def group_width(granularity: str) -> float:
    """Weights a group, for the order of granularities; a channel has more than any group, a tensor the most."""
    return {"channel": 1e9, "tensor": 1e10}.get(granularity) or float(granularity[1:])


def fidelity_of(scores: pd.DataFrame) -> pd.DataFrame:
    """Per model and recipe the distance to full precision; else the main table's first perplexity."""
    rows = scores[(scores["status"] == OK) & scores["value"].notna()]
    of_kl = rows[rows["metric"] == FIDELITY[0]]
    if len(of_kl):
        rows, measure = of_kl[of_kl["task"] == of_kl["task"].iloc[0]], FIDELITY[1]
        rows = rows[rows["value"] > 0]  # full precision is at 0
    else:
        rows = in_table(rows[rows["metric"].str.contains("ppl|perplexity")])
        if rows.empty:
            return _numbers([])
        task, metric = rows[["task", "metric"]].iloc[0]
        rows, measure = rows[(rows["task"] == task) & (rows["metric"] == metric)], f"{task} {metric}"
    means = []
    for (model, recipe), part in rows.groupby(["model", "recipe"], sort=False):
        values, n = list(part["value"]), int(part["n"].iloc[0])
        low, high = interval(values, list(part["stderr"]), statistics.of_few(n))
        mean = sum(values) / len(values)
        low = mean * math.exp(-(mean - low) / mean) if low <= 0 else low  # a positive number's interval is positive
        means.append((model, recipe, measure, False, mean, low, high, math.nan, False, len(values), n))
    return _numbers(means)


def interval(values: Sequence[float], errors: Sequence[float], times: float = statistics.Z) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds whose items have these standard errors, half of it `times` so wide: the
    wider of both kinds."""
    mean, half = statistics.student(values)
    of_items = times * sum(errors) / len(errors)
    wide = max([part for part in (half, of_items) if not math.isnan(part)], default=math.nan)
    return mean - wide, mean + wide


def recipes_of(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per model and recipe with what is known of any of its seeds: one that failed has no size."""
    return scores.groupby(["model", "recipe"], sort=False, as_index=False).first()


def unbeaten(rows: pd.DataFrame, size: str) -> list[int]:
    """Index of the rows of one measure that no other row of at most their `size` beats; of equals the first one.

    Controls and what is at chance do not compete.
    """
    out = flags(rows["control"]) | flags(rows["at_chance"])
    rivals = rows[~out].dropna(subset=["value", size])
    sign = 1 if rivals["higher_is_better"].all() else -1
    best, found = -math.inf, []
    for _, alike in rivals.groupby(size):
        values = sign * alike["value"].to_numpy(dtype=float)
        if values.max() > best:
            best = values.max()
            found.append(alike.index[int(values.argmax())])
    return found


def best_of_families(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of recipes to show at the end of a run, of its `Score` rows.

    All, where no model has more than MANY recipes; else, per model, controls, recipes of which something failed, and
    of every family (frame, quantizer and bits, whatever its options and granularity) that of the best average accuracy.
    """
    if scores.groupby("model")["recipe"].nunique().max() <= MANY:
        return scores
    average = average_scores(scores)
    if average.empty:
        return scores
    facts = scores.drop_duplicates("recipe").set_index("recipe")
    family = facts["frame"].fillna("") + " " + facts["quantizer"].str.split(r"[- ]").str[0]
    family = pd.Series(list(map(of_bits, family, facts["bits"])), facts.index, dtype=object)
    average = average[~flags(average["recipe"].map(facts["control"]))]
    average["family"] = average["recipe"].map(family)
    best = average.loc[average.groupby(["model", "family"])["value"].idxmax(), ["model", "recipe"]]
    pairs = pd.Series(list(zip(scores["model"], scores["recipe"], strict=True)), index=scores.index)
    kept = {*best.itertuples(index=False, name=None), *pairs[scores["status"] != OK]}
    return scores[pairs.isin(kept) | flags(scores["control"])]
