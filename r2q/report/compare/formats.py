"""How a comparison is written: what differs on the terminal, every number in the other formats."""

import html
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import pandas as pd

from r2q.report.compare.numbers import APART, BETTER, EQUAL, NOISE, WORSE, Difference, Side
from r2q.report.tables.sheet import grid

SHOWN = 12  # lines of a list on the terminal
HEAD = ["model", "recipe", "seed", "number", "a", "b", "b - a", "95 % interval", "p (Holm)", "test", "verdict"]


def _text(rows: Sequence[Difference], a: Side, b: Side) -> str:
    """What differs, what is worse before what is better, the surest first; then counts."""
    lines = [f"a: {a.name}", f"b: {b.name}", ""]
    told = sorted(
        (row for row in rows if row.verdict in (WORSE, BETTER)), key=lambda row: (row.verdict == BETTER, row.p_holm)
    )
    if told:
        more = f"and {len(told) - SHOWN} more: --format csv has all"
        lines += [*_aligned(told[:SHOWN]), *([more] if len(told) > SHOWN else []), ""]
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


def _cells(row: Difference) -> list[str]:
    recipe = row.recipe_a if row.recipe_a == row.recipe_b else f"{row.recipe_a} / {row.recipe_b}"
    interval = "–" if row.low is None else f"{_digits(row.low, '+')} to {_digits(row.high, '+')}"
    numbers = [_digits(row.value_a), _digits(row.value_b), _digits(row.difference, "+"), interval]
    said = [_digits(row.p_holm, "", 2), row.test, row.reason or row.verdict]
    return [row.model, recipe, row.seed, f"{row.task} {row.metric}", *numbers, *said]


def _aligned(rows: Sequence[Difference]) -> list[str]:
    texts = [HEAD, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in texts]


def _digits(value: float | None, sign: str = "", digits: int = 4) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:{sign}.{digits}g}"


def _csv(rows: Sequence[Difference], a: Side, b: Side) -> str:
    frame = pd.DataFrame(map(asdict, rows), columns=[field.name for field in fields(Difference)])
    counts = {"n_a": "Int64", "n_b": "Int64"}  # whole numbers also where one is missing
    return frame.astype(counts).to_csv(index=False, lineterminator="\n")


def _json(rows: Sequence[Difference], a: Side, b: Side) -> str:
    return json.dumps({"a": a.name, "b": b.name, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"


def _markdown(rows: Sequence[Difference], a: Side, b: Side) -> str:
    return "\n".join([f"a: `{a.name}`, b: `{b.name}`", "", *grid(HEAD, map(_cells, rows), left=(0, 1, 3, 9, 10)), ""])


def _html(rows: Sequence[Difference], a: Side, b: Side) -> str:
    table = pd.DataFrame(map(_cells, rows), columns=HEAD).to_html(index=False, border=0)
    title = html.escape(f"{a.name} and {b.name}")
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><h1>{title}</h1>{table}</html>\n"


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
    changes: dict[tuple[str, str, str], list[str]] = {}
    for name in units:
        pair = (digests[0][name], digests[1][name])
        for path, side, digest in zip(paths, sides, pair, strict=True):
            if digest not in side:
                raise ValueError(f"{path} has no entry {digest}, which the scores beside it name")
        old, new = (dict(_flat(side[digest])) for side, digest in zip(sides, pair, strict=True))
        for field in sorted((old.keys() | new.keys()) - {"config.hash"}):
            if old.get(field) != new.get(field):
                change = (field, _short(old.get(field)), _short(new.get(field)))
                changes.setdefault(change, []).append(f"{name[0]} {name[1]}")
    if not changes:
        yield f"Code, config, data, weights, versions and device of the {len(units)} units in both are the same."
        return
    yield "What else differs (a -> b):"
    for (field, before, after), names in list(changes.items())[:SHOWN]:
        scope = "" if len(names) == len(units) else f"   ({len(names)} of {len(units)} units, {names[0]} first)"
        yield f"  {field}: {before} -> {after}{scope}"
    if len(changes) > SHOWN:
        yield f"  and {len(changes) - SHOWN} more"


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"  # of a hash the start is enough


WRITERS: dict[str, Callable[[Sequence[Difference], Side, Side], str]] = {
    "text": _text,
    "csv": _csv,
    "json": _json,
    "markdown": _markdown,
    "html": _html,
}
