"""Two runs, number by number: what moved, by how much, whether that is more than noise, and what else differed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from r2q.kept import write_atomic
from r2q.report.scores import KEY, in_words, read_scores

SIGNIFICANT = 2.0  # flagged from this many standard errors on
COLUMNS = [
    *KEY, "where", "value_a", "value_b", "difference", "stderr_a", "stderr_b", "stderr", "z", "p", "flag", "n_a", "n_b",
    "status_a", "status_b",
]  # fmt: skip
SHOWN_UNITS = 3  # named where a difference of provenance does not concern all


def compare(a: str | Path, b: str | Path, out: str | Path | None = None) -> pd.DataFrame:
    """Join two scores.csv on (model, recipe, seed, task, metric), print the differences b - a, return and write them.

    The standard error of a difference is sqrt(stderr_a² + stderr_b²), as if both runs had drawn their items
    independently. Runs that answered the same items agree more than that, so it is too large rather than too small and
    z is a lower bound; p is two-sided and normal. A score without stderr has no z.

    Raises FileNotFoundError or ValueError when a file is missing or lacks a column.
    """
    sides = [scores.assign(status=in_words(scores)) for scores in (read_scores(a), read_scores(b))]
    rows = differences(*sides)
    if out is not None:
        write_atomic(out, rows.to_csv(index=False, lineterminator="\n"))
    print("\n".join(report(rows, a, b)))
    return rows


def differences(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """A row per number of either run, in the order of `a`, then what only `b` has; the columns of `COLUMNS`."""
    fields = ["value", "stderr", "n", "status", "provenance"]
    order = pd.concat([a[KEY], b[KEY]]).drop_duplicates()
    rows = order.merge(a[KEY + fields], on=KEY, how="left", indicator="in_a")
    rows = rows.merge(b[KEY + fields], on=KEY, how="left", indicator="in_b", suffixes=("_a", "_b"))
    in_a, in_b = rows.pop("in_a") == "both", rows.pop("in_b") == "both"
    rows["where"] = ["both" if x and y else "only a" if x else "only b" for x, y in zip(in_a, in_b, strict=True)]
    rows["difference"] = [
        0.0 if x == y else y - x for x, y in zip(rows["value_a"], rows["value_b"], strict=True)
    ]  # also inf - inf
    rows["stderr"] = (rows["stderr_a"] ** 2 + rows["stderr_b"] ** 2) ** 0.5
    rows["z"] = [_z(d, s) for d, s in zip(rows["difference"], rows["stderr"], strict=True)]
    rows["p"] = [math.erfc(abs(z) / math.sqrt(2)) for z in rows["z"]]
    rows["flag"] = [_flag(d, z) for d, z in zip(rows["difference"], rows["z"], strict=True)]
    return rows[[*COLUMNS, "provenance_a", "provenance_b"]]


def _z(difference: float, stderr: float) -> float:
    if math.isnan(difference) or difference == 0:
        return difference
    return difference / stderr if stderr > 0 else math.copysign(math.inf, difference) if stderr == 0 else math.nan


def _flag(difference: float, z: float) -> str:
    if math.isnan(difference) or difference == 0:
        return ""
    return "no stderr" if math.isnan(z) else f">{SIGNIFICANT:.0f} se" if abs(z) > SIGNIFICANT else ""


def report(rows: pd.DataFrame, a: str | Path, b: str | Path) -> Iterator[str]:
    """The lines that `compare` prints."""
    both = rows[rows["where"] == "both"]
    numbers = both[both["difference"].notna()]
    moved = numbers[numbers["difference"] != 0]
    yield f"a: {a}"
    yield f"b: {b}"
    yield ""
    if len(moved):
        yield from _table(moved)
        yield ""
    yield f"{len(numbers)} numbers in both, {len(numbers) - len(moved)} equal to the last digit, {len(moved)} differ."
    if len(moved):
        flagged, judged = int((moved["flag"] == f">{SIGNIFICANT:.0f} se").sum()), int(moved["z"].notna().sum())
        yield f"{flagged} of {judged} differences are above {SIGNIFICANT:.0f} stderr (by luck about 1 in 22)."
        yield "stderr = sqrt(a² + b²), as for independent items: too large where both runs answered the same ones."
    other = both[both["n_a"].notna() & both["n_b"].notna() & (both["n_a"] != both["n_b"])]
    if len(other):
        yield f"{len(other)} numbers are of different numbers of items: {', '.join(dict.fromkeys(other['task']))}."
    for row in both[(both["status_a"] != "ok") | (both["status_b"] != "ok")].to_dict("records"):
        yield f"{_name(row)}: a {row['status_a']}; b {row['status_b']}"
    for where in ("only a", "only b"):
        alone = rows[rows["where"] == where]
        if len(alone):
            yield f"{where}, {len(alone)} rows:"
            for unit, part in alone.groupby(["model", "recipe", "seed"], sort=False):
                status = "; ".join(s for s in dict.fromkeys(part[f"status_{where[-1]}"]) if s != "ok")
                tasks = ", ".join(f"{t} {m}" for t, m in zip(part["task"], part["metric"], strict=True) if t)
                yield f"  {unit[0]} {unit[1]} seed{unit[2]}: {'; '.join(filter(None, [tasks, status]))}"
    yield from _provenance_lines(both, a, b)


def _name(row: Mapping[Any, Any]) -> str:
    return " ".join(filter(None, (row["model"], row["recipe"], f"seed{row['seed']}", row["task"], row["metric"])))


def _table(rows: pd.DataFrame) -> Iterator[str]:
    """Differences as aligned text; the seed only where there are several."""
    seeds = rows["seed"].nunique() > 1
    head = ["model", "recipe", *(["seed"] if seeds else []), "task", "metric"]
    records = rows.to_dict("records")
    texts = [[str(row[column]) for column in head] for row in records]
    left = len(head)
    head = [*head, "a", "b", "b - a", "stderr", "z", "p", ""]
    for text, row in zip(texts, records, strict=True):
        text += [_digits(row["value_a"]), _digits(row["value_b"]), _digits(row["difference"], "+")]
        text += [_digits(row["stderr"]), _digits(row["z"], "+", 2), _digits(row["p"], "", 3), row["flag"]]
    widths = [max(map(len, column)) for column in zip(head, *texts, strict=True)]
    for text in [head, *texts]:
        parts = [t.ljust(w) if i < left else t.rjust(w) for i, (t, w) in enumerate(zip(text, widths, strict=True))]
        yield "  ".join(parts).rstrip()


def _digits(value: float, sign: str = "", digits: int = 4) -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.{digits}g}"


def _provenance_lines(both: pd.DataFrame, a: str | Path, b: str | Path) -> Iterator[str]:
    """Which of code, config, data, weights, versions and device differ between the compared units."""
    paths = [Path(scores).with_name("provenance.json") for scores in (a, b)]
    for path in paths:
        if not path.is_file():
            yield f"no {path}: whether code, config, data or versions differ is not known"
            return
    sides = [json.loads(path.read_text()) for path in paths]
    units = both.drop_duplicates(["model", "recipe", "seed"]).to_dict("records")
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in units:
        digests = (row["provenance_a"], row["provenance_b"])
        for path, side, digest in zip(paths, sides, digests, strict=True):
            if digest not in side:
                raise ValueError(f"{path} has no entry {digest}, which the scores beside it name")
        old, new = (dict(_flat(side[digest])) for side, digest in zip(sides, digests, strict=True))
        for field in sorted((old.keys() | new.keys()) - {"config.hash"}):
            if old.get(field) != new.get(field):
                change = (field, _text(old.get(field)), _text(new.get(field)))
                found.setdefault(change, []).append(f"{row['model']} {row['recipe']}")
    if not found:
        yield "Code, config, data, weights, versions and device are the same."
        return
    yield "What else differs (a -> b):"
    for (field, before, after), names in found.items():
        more = f" and {len(names) - SHOWN_UNITS} more" if len(names) > SHOWN_UNITS else ""
        scope = "" if len(names) == len(units) else f"   ({', '.join(names[:SHOWN_UNITS])}{more})"
        yield f"  {field}: {before} -> {after}{scope}"


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"  # of a hash the start is enough
