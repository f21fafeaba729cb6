"""The numbers of two sides one beside the other: may they be compared, and is their difference more than noise?"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from r2q.records import OK
from r2q.report import statistics
from r2q.report.items import Items, read_items
from r2q.report.run import read_scores

SIGNIFICANT = 0.05
MUST_AGREE = {"n": "items", "version": "task version", "num_fewshot": "worked examples"}  # column: in words
EQUAL, BETTER, WORSE, NOISE, APART = "equal", "better", "worse", "no difference found", "not comparable"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One number of `a` beside one of `b`."""

    model: str
    recipe_a: str
    recipe_b: str
    seed: str  # the seed, or how many seeds the means are over; `0 and 5` where the sides have none in common
    task: str
    metric: str
    value_a: float | None
    value_b: float | None
    difference: float | None = None  # b - a
    low: float | None = None  # of its 95 % interval
    high: float | None = None
    p: float | None = None  # two-sided
    p_holm: float | None = None  # corrected for all comparisons of the table
    test: str = ""  # how p was found
    paired: bool = False  # item by item, or seed by seed
    n_a: int | None
    n_b: int | None
    verdict: str = ""  # of b against a: equal, better, worse, no difference found, or not comparable
    reason: str = ""  # why not comparable


@dataclass(frozen=True)
class Side:
    """One run, or one recipe of it."""

    name: str
    path: Path
    scores: pd.DataFrame
    items: Items


def differences(a: Side, b: Side, over_seeds: bool = False) -> list[Difference]:
    """Every comparison, in the order of `a`; raises ValueError when there is not one number in both."""
    keys = ["model", "task", "metric"] + ([] if over_seeds else ["recipe", "seed"])
    grouped = [dict(list(side.scores.groupby(keys, sort=False))) for side in (a, b)]
    order = list(dict.fromkeys([*grouped[0], *grouped[1]]))
    rows = [_difference(grouped[0].get(key), grouped[1].get(key), a, b) for key in order]
    if all(row.value_a is None or row.value_b is None for row in rows):
        raise ValueError(f"{a.name} and {b.name} have no number in common: other models, recipes, seeds or tasks")
    tested = [row for row in rows if row.p is not None]
    corrected = dict(zip(map(id, tested), statistics.holm([_nan(row.p) for row in tested]), strict=True))
    return [_judged(row, corrected.get(id(row)), b) for row in rows]


def side_of(path: str | Path) -> Side:
    path = Path(path)
    file = path / "scores.csv" if path.is_dir() else path
    return Side(str(path), file, read_scores(file), read_items(file.with_name("items.csv")))


def of_recipe(run: Side, recipe: str) -> Side:
    known = list(dict.fromkeys(run.scores["recipe"]))
    if recipe not in known:
        raise ValueError(f"{run.path} has no recipe {recipe}; it has {', '.join(known)}")
    return Side(recipe, run.path, run.scores[run.scores["recipe"] == recipe], run.items)


def _difference(a: pd.DataFrame | None, b: pd.DataFrame | None, side_a: Side, side_b: Side) -> Difference:
    """The comparison of the rows (one a seed) that have the same key, without verdict."""
    if a is not None and b is not None:  # means over the seeds that both have, or the first of each
        common = [seed for seed in a["seed"] if seed in set(b["seed"])]
        a, b = (part[part["seed"].isin(common)] if common else part.iloc[:1] for part in (a, b))
    some = a if a is not None else b
    assert some is not None
    first = some.iloc[0]
    values = [None if part is None else _mean(part["value"]) for part in (a, b)]
    counts = [None if part is None else _count(part["n"].iloc[0]) for part in (a, b)]
    seeds = [str(seed) for seed in some["seed"]]
    if a is not None and b is not None and a["seed"].iloc[0] not in set(b["seed"]):
        seeds = [f"{seeds[0]} and {b['seed'].iloc[0]}"]
    fields: dict[str, Any] = {
        "model": first["model"],
        "recipe_a": "" if a is None else a["recipe"].iloc[0],
        "recipe_b": "" if b is None else b["recipe"].iloc[0],
        "seed": seeds[0] if len(seeds) == 1 else f"mean of {len(seeds)}",
        "task": first["task"],
        "metric": first["metric"],
        "value_a": values[0],
        "value_b": values[1],
        "n_a": counts[0],
        "n_b": counts[1],
    }
    reason = _apart(a, b, side_a, side_b)
    if reason or a is None or b is None:
        return Difference(**fields, reason=reason, verdict=APART)
    assert values[0] is not None
    assert values[1] is not None
    change = 0.0 if values[0] == values[1] else values[1] - values[0]
    pairs = a.merge(b, on="seed", suffixes=("_a", "_b"))
    changes = [float(y - x) for x, y in zip(pairs["value_a"], pairs["value_b"], strict=True)]
    if len(a) > 1 and not statistics.alike(changes):
        test, (_, half) = statistics.one_sample_t(changes), statistics.student(changes)
    else:  # or seeds that moved alike: the items of one have to tell
        other = b[b["seed"] == a["seed"].iloc[0]] if changes else b  # the only one
        test, half = _one_seed(a.iloc[0], other.iloc[0], change, side_a, side_b)
    known = not math.isnan(half)
    fields |= {"difference": change, "low": change - half if known else None, "high": change + half if known else None}
    return Difference(**fields, p=None if math.isnan(test.p) else test.p, test=test.name, paired=test.paired)


def _apart(a: pd.DataFrame | None, b: pd.DataFrame | None, side_a: Side, side_b: Side) -> str:
    """Why two numbers cannot be compared; "" where they can."""
    if a is None or b is None:
        return f"only in {(side_b if a is None else side_a).name}"
    for side, part in ((side_a, a), (side_b, b)):
        bad = part[(part["status"] != OK) | part["value"].isna()]
        if len(bad):
            first = bad.iloc[0]
            return f"{side.name}: {'no value' if first['status'] == OK else first['status'] + ': ' + first['reason']}"
    for column, words in MUST_AGREE.items():
        if column in a and column in b:
            old, new = a[column].iloc[0], b[column].iloc[0]
            if not (pd.isna(old) and pd.isna(new)) and (pd.isna(old) or pd.isna(new) or old != new):
                return f"{words}: {'none' if pd.isna(old) else old} and {'none' if pd.isna(new) else new}"
    return ""


def _one_seed(a: pd.Series, b: pd.Series, change: float, side_a: Side, side_b: Side) -> tuple[statistics.Test, float]:
    """The strongest test that the numbers allow, and half the width of the difference's 95 % interval."""
    one, two = (side.items.of(row) for side, row in ((side_a, a), (side_b, b)))
    if one is not None and two is not None and one[0] == two[0]:  # the same was asked
        right_or_wrong = np.isin(np.concatenate([one[1], two[1]]), (0, 1)).all()
        test = (statistics.mcnemar if right_or_wrong else statistics.paired_bootstrap)(one[1], two[1])
        exp = str(a["metric"]).startswith("token_ppl")  # of the mean of its items: delta method
        scales = (a["value"], b["value"]) if exp else (1.0, 1.0)
        return test, statistics.paired_half(scales[0] * one[1], scales[1] * two[1])
    counts = [statistics.right_answers(row["value"], _count(row["n"])) for row in (a, b)]
    n = [_count(row["n"]) for row in (a, b)]
    if counts[0] is not None and counts[1] is not None and bool(a["higher_is_better"]):
        assert n[0] is not None
        assert n[1] is not None
        half = statistics.newcombe(counts[0], n[0], counts[1], n[1])
        return statistics.fisher(counts[0], n[0], counts[1], n[1]), half
    stderr = math.hypot(_nan(a["stderr"]), _nan(b["stderr"]))
    return statistics.z_test(change, stderr), statistics.Z * stderr


def _judged(row: Difference, corrected: float | None, b: Side) -> Difference:
    if row.verdict == APART:
        return row
    assert row.difference is not None
    verdict = EQUAL if row.difference == 0 else NOISE
    if verdict == NOISE and corrected is not None and corrected < SIGNIFICANT:
        match = b.scores[(b.scores["task"] == row.task) & (b.scores["metric"] == row.metric)]
        verdict = BETTER if (row.difference > 0) == bool(match["higher_is_better"].iloc[0]) else WORSE
    return replace(row, p_holm=corrected, verdict=verdict)


def _mean(values: pd.Series) -> float | None:
    return float(values.mean()) if len(values) and values.notna().all() else None


def _count(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _nan(value: Any) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)
