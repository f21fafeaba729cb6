"""What differs between two runs, or between two recipes of one run, and whether it is more than noise.

Two numbers are compared only where they measure the same thing: the same model, task, metric, task version, worked
examples and number of items. Everything else is listed as not comparable, with the reason. Proportions are tested
exactly, item by item where the runs kept what each item gave (`r2q.report.items`); p values are corrected for the
number of comparisons (Holm). A mean over seeds is compared by Student's t over the seeds.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from r2q.kept import write_atomic
from r2q.records import OK
from r2q.report import statistics
from r2q.report.items import Items, read_items
from r2q.report.run import read_scores

Format = Literal["text", "csv", "json", "markdown", "html"]
SIGNIFICANT = 0.05
SHOWN = 12  # lines of a list on the terminal
SAME, DIFFERS, NOT_COMPARABLE = 0, 1, 3  # exit status, as `diff` has it; 2 is an error
MUST_AGREE = {"n": "items", "version": "task version", "num_fewshot": "worked examples"}  # column: in words
EQUAL, BETTER, WORSE, NOISE, APART = "equal", "better", "worse", "no difference found", "not comparable"


@dataclass(frozen=True)
class Difference:
    """One number of `a` beside one of `b`.

    Attributes:
        seed: the seed, or how many seeds the means are over.
        difference: b - a. low, high: its 95 % interval.
        p, p_holm: two-sided, and corrected for all comparisons of the table.
        test: how p was found; `paired` where item by item, or seed by seed.
        verdict: of b against a: equal, better, worse, no difference found, or not comparable.
        reason: why not comparable.
    """

    model: str
    recipe_a: str
    recipe_b: str
    seed: str
    task: str
    metric: str
    value_a: float | None
    value_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    test: str
    paired: bool
    n_a: int | None
    n_b: int | None
    verdict: str
    reason: str


@dataclass(frozen=True)
class Side:
    """One run, or one recipe of it."""

    name: str
    path: Path
    scores: pd.DataFrame
    items: Items


def compare(
    a: str | Path,
    b: str | Path | None = None,
    recipes: Sequence[str] = (),
    format: Format = "text",
    out: str | Path | None = None,
    fail_on_regression: bool = False,
) -> int:
    """Compare two runs, or with `recipes` two recipes of one run; print the result or write it to `out`.

    Args:
        a, b: a scores.csv, or the folder of a run.
        recipes: with `a` alone: two recipes of that run; means over their common seeds.
        format: text shows what differs; the others have every comparison.
        out: a file in place of the terminal.
        fail_on_regression: only a significantly worse `b` counts as a difference in the exit status.

    Returns:
        0 where nothing differs by more than noise, 1 where something does, 3 where nothing does but some numbers could
        not be compared.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, a recipe is not in the run, or the two have not a
            single number in common.
    """
    if (b is None) == (not recipes):
        raise ValueError("compare takes two runs, or one run and two recipes")
    if b is None:
        if len(recipes) != 2:
            raise ValueError(f"compare takes two recipes of a run, not {len(recipes)}")
        run = _side(a)
        first, second = (_of_recipe(run, name) for name in recipes)
    else:
        first, second = _side(a), _side(b)
    rows = differences(first, second, over_seeds=b is None)
    text = _WRITERS[format](rows, first, second)
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        write_atomic(out, text)
    return status(rows, fail_on_regression)


def status(rows: Sequence[Difference], fail_on_regression: bool = False) -> int:
    """The exit status (see :func:`compare`)."""
    verdicts = {row.verdict for row in rows}
    if WORSE in verdicts or (BETTER in verdicts and not fail_on_regression):
        return DIFFERS
    return NOT_COMPARABLE if APART in verdicts else SAME


def differences(a: Side, b: Side, over_seeds: bool = False) -> list[Difference]:
    """Every comparison, in the order of `a`; raises ValueError when there is not one number in both."""
    keys = ["model", "task", "metric"] + ([] if over_seeds else ["recipe", "seed"])
    grouped = [dict(list(side.scores.groupby(keys, sort=False))) for side in (a, b)]
    order = list(dict.fromkeys([*grouped[0], *grouped[1]]))
    rows = [_difference(grouped[0].get(key), grouped[1].get(key), a, b) for key in order]
    if not any(row.verdict != APART for row in rows) and not any(_both(row) for row in rows):
        raise ValueError(f"{a.name} and {b.name} have no number in common: other models, recipes, seeds or tasks")
    tested = [row for row in rows if row.p is not None]
    corrected = dict(zip(map(id, tested), statistics.holm([_nan(row.p) for row in tested]), strict=True))
    return [_judged(row, corrected.get(id(row)), b) for row in rows]


def _both(row: Difference) -> bool:
    return row.value_a is not None and row.value_b is not None


def _side(path: str | Path) -> Side:
    path = Path(path)
    file = path / "scores.csv" if path.is_dir() else path
    return Side(str(path), file, read_scores(file), read_items(file.with_name("items.csv")))


def _of_recipe(run: Side, recipe: str) -> Side:
    known = list(dict.fromkeys(run.scores["recipe"]))
    if recipe not in known:
        raise ValueError(f"{run.path} has no recipe {recipe}; it has {', '.join(known)}")
    return Side(recipe, run.path, run.scores[run.scores["recipe"] == recipe], run.items)


def _difference(a: pd.DataFrame | None, b: pd.DataFrame | None, side_a: Side, side_b: Side) -> Difference:
    """The comparison of the rows (one a seed) that have the same key, without verdict."""
    some = a if a is not None else b
    assert some is not None
    first = some.iloc[0]
    if a is not None and b is not None:  # means over the seeds that both have
        common = [seed for seed in a["seed"] if seed in set(b["seed"])]
        if common:
            a, b = a[a["seed"].isin(common)], b[b["seed"].isin(common)]
    values = [None if part is None else _mean(part["value"]) for part in (a, b)]
    counts = [None if part is None else _count(part["n"].iloc[0]) for part in (a, b)]
    seeds = [str(seed) for seed in some["seed"]]
    found = {
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
        return _row(found, reason=reason, verdict=APART)
    assert values[0] is not None
    assert values[1] is not None
    change = 0.0 if values[0] == values[1] else values[1] - values[0]
    if len(a) > 1:
        test, half = _over_seeds(a, b)
    else:
        test, half = _one_seed(a.iloc[0], b.iloc[0], change, side_a, side_b)
    known = not math.isnan(half)
    found |= {"difference": change, "low": change - half if known else None, "high": change + half if known else None}
    return _row(found, p=None if math.isnan(test.p) else test.p, test=test.name, paired=test.paired)


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


def _over_seeds(a: pd.DataFrame, b: pd.DataFrame) -> tuple[statistics.Test, float]:
    """Student's t over the differences of each seed, and half the width of the 95 % interval."""
    both = a.set_index("seed")["value"].to_frame("a").join(b.set_index("seed")["value"].rename("b"), how="inner")
    changes = [float(y - x) for x, y in zip(both["a"], both["b"], strict=True)]
    _, half = statistics.student(changes)
    return statistics.one_sample_t(changes), half


def _one_seed(a: pd.Series, b: pd.Series, change: float, side_a: Side, side_b: Side) -> tuple[statistics.Test, float]:
    """The strongest test that the numbers allow, and half the width of the difference's 95 % interval."""
    one, two = (side.items.of(row) for side, row in ((side_a, a), (side_b, b)))
    if one is not None and two is not None and one[0] == two[0]:  # the same was asked
        bootstrap, stderr = statistics.paired_bootstrap(one[1], two[1])
        if str(a["metric"]).startswith("token_ppl"):  # exp of the mean of its items: delta method
            stderr *= math.sqrt(a["value"] * b["value"])
        right_or_wrong = np.isin(np.concatenate([one[1], two[1]]), (0, 1)).all()
        return statistics.mcnemar(one[1], two[1]) if right_or_wrong else bootstrap, statistics.Z * stderr
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
    return Difference(**{**asdict(row), "p_holm": corrected, "verdict": verdict})


def _row(found: Mapping[str, Any], **more: Any) -> Difference:
    empty = {field.name: None for field in fields(Difference)} | {"test": "", "paired": False, "reason": ""}
    return Difference(**{**empty, "verdict": "", **found, **more})


def _mean(values: pd.Series) -> float | None:
    return float(values.mean()) if len(values) and values.notna().all() else None


def _count(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _nan(value: Any) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)


# What is printed


def _text(rows: Sequence[Difference], a: Side, b: Side) -> str:
    """What differs, worst first; then counts."""
    lines = [f"a: {a.name}", f"b: {b.name}", ""]
    told = sorted((row for row in rows if row.verdict in (WORSE, BETTER)), key=lambda row: (row.verdict, row.p_holm))
    if told:
        lines += [*_aligned(told[:SHOWN]), *_more(told), ""]
    counts = Counter(row.verdict for row in rows)
    words = ", ".join(f"{counts[v]} {v}" for v in (WORSE, BETTER, NOISE, EQUAL, APART) if counts[v])
    paired = sum(row.paired for row in rows)
    lines.append(f"{len(rows)} numbers: {words}.")
    lines.append(
        f"b against a at 5 % after Holm's correction; {paired} tests are paired (the same items or seeds)."
        if any(row.p is not None for row in rows)
        else "Nothing could be tested."
    )
    apart = Counter(row.reason for row in rows if row.verdict == APART)
    if apart:
        lines += ["Not comparable:", *(f"  {count} numbers, {reason}" for reason, count in apart.most_common(SHOWN))]
    return "\n".join([*lines, *_provenance_lines(a, b)]) + "\n"


def _more(rows: Sequence[Difference]) -> list[str]:
    return [f"and {len(rows) - SHOWN} more: --format csv has all"] if len(rows) > SHOWN else []


def _cells(row: Difference) -> list[str]:
    recipe = row.recipe_a if row.recipe_a == row.recipe_b else f"{row.recipe_a} / {row.recipe_b}"
    interval = "–" if row.low is None else f"{_digits(row.low, '+')} to {_digits(row.high, '+')}"
    numbers = [_digits(row.value_a), _digits(row.value_b), _digits(row.difference, "+"), interval]
    said = [_digits(row.p_holm, "", 2), row.test, row.reason or row.verdict]
    return [row.model, recipe, row.seed, f"{row.task} {row.metric}", *numbers, *said]


HEAD = ["model", "recipe", "seed", "number", "a", "b", "b - a", "95 % interval", "p (Holm)", "test", "verdict"]


def _aligned(rows: Iterable[Difference]) -> list[str]:
    texts = [HEAD, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in texts]


def _digits(value: float | None, sign: str = "", digits: int = 4) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:{sign}.{digits}g}"


def _frame(rows: Sequence[Difference]) -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(Difference)])


def _csv(rows: Sequence[Difference], a: Side, b: Side) -> str:
    return _frame(rows).to_csv(index=False, lineterminator="\n")


def _json(rows: Sequence[Difference], a: Side, b: Side) -> str:
    return json.dumps({"a": a.name, "b": b.name, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"


def _markdown(rows: Sequence[Difference], a: Side, b: Side) -> str:
    from r2q.report.tables.sheet import grid

    return "\n".join([f"a: `{a.name}`, b: `{b.name}`", "", *grid(HEAD, map(_cells, rows), left=(0, 1, 3, 9, 10)), ""])


def _html(rows: Sequence[Difference], a: Side, b: Side) -> str:
    frame = pd.DataFrame([_cells(row) for row in rows], columns=HEAD)
    title = f"{a.name} and {b.name}"
    from html import escape

    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<h1>{escape(title)}</h1>{frame.to_html(index=False, border=0)}</html>\n"
    )


_WRITERS = {"text": _text, "csv": _csv, "json": _json, "markdown": _markdown, "html": _html}


def _provenance_lines(a: Side, b: Side) -> Iterator[str]:
    """Which of code, config, data, weights, versions and device differ between the units that both runs have."""
    if a.path == b.path:
        return
    paths = [side.path.with_name("provenance.json") for side in (a, b)]
    for path in paths:
        if not path.is_file():
            yield f"no {path}: whether code, config, data or versions differ is not known"
            return
    unit = ["model", "recipe", "seed"]
    digests = [dict(zip(side.scores[unit].itertuples(index=False, name=None), side.scores["provenance"], strict=True))
               for side in (a, b)]  # fmt: skip
    units = [name for name in digests[0] if name in digests[1]]
    if not units:
        yield "No unit is in both, so nothing is said of code, config, data or versions."
        return
    sides = [json.loads(path.read_text()) for path in paths]
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in units:
        pair = (digests[0][name], digests[1][name])
        for path, side, digest in zip(paths, sides, pair, strict=True):
            if digest not in side:
                raise ValueError(f"{path} has no entry {digest}, which the scores beside it name")
        old, new = (dict(_flat(side[digest])) for side, digest in zip(sides, pair, strict=True))
        for field in sorted((old.keys() | new.keys()) - {"config.hash"}):
            if old.get(field) != new.get(field):
                change = (field, _short(old.get(field)), _short(new.get(field)))
                found.setdefault(change, []).append(f"{name[0]} {name[1]}")
    if not found:
        yield f"Code, config, data, weights, versions and device of the {len(units)} units in both are the same."
        return
    yield "What else differs (a -> b):"
    for (field, before, after), names in list(found.items())[:SHOWN]:
        scope = "" if len(names) == len(units) else f"   ({len(names)} of {len(units)} units, {names[0]} first)"
        yield f"  {field}: {before} -> {after}{scope}"
    if len(found) > SHOWN:
        yield f"  and {len(found) - SHOWN} more"


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"  # of a hash the start is enough
