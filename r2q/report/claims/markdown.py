"""claims.md: verdicts over all models first, then what became of the start, single models, units without numbers."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from r2q.report.claims.measures import Name
from r2q.report.tables.sheet import NONE, grid

Row = Mapping[str, Any]  # of `r2q.report.claims.COLUMNS`
STARTS, ENDS, GAINS = "starts closer to the teacher", "ends closer to the teacher", "gains more from training"
SCORE, NEARER = "higher average score", "closer to full precision on held-out text"
VERDICTS = ("supported", "not supported", "undecided")
LOST = "diverged, failed or lack a number"

READING = """\
Every comparison is one quantizer against another, trained in the same frame on the same rows from the same model with
the same seed and granularity. Equal granularity is not equal size: that has a section of its own.

- `0.82 ×` is a ratio: the number is 0.82 times the other's. `-1.2 points` is a difference of percentages.
- 95 % intervals are Student's, over the models, each of which is the mean over its seeds; in a run of one model, over
  its seeds; scores and divergences of a single seed, over items and windows of text. Two or three seeds give wide ones.
  One interval in twenty misses the truth, so of many verdicts some are luck.
- **supported**: the whole interval is on the claimed side. **not supported**: the whole interval is on the other side.
  **undecided**: the interval holds both sides, or there is none; in brackets the true effect that so many pairs, as
  different as these, would find in four of five cases (of three pairs in 77 of 100, of two in 73: the usual sum of two
  quantiles of Student's t is small there)."""

BY_SIZE = """\
The rival is the one in the same frame with the fewest bits that are no fewer, at whatever granularity that is."""

SURVIVAL = """\
The ratio of the held-out losses (to the teacher, where the frame distils) before and after training; below 1 is ahead.
`after / before` is the second ratio over the first: above 1 is ground lost.

- **kept**: the intervals before and after exclude 1 on the same side; **reversed**: on opposite sides.
- **lost**: before excludes 1, after does not, and `after / before` excludes 1 on the other side than before: whoever
  was ahead has clearly lost ground.
- **undecided**: the rest. Either no one was clearly ahead before training, or the end fits both kept and lost."""


MODELS = """\
Intervals are over the seeds of a model where it has several; before training these are alike, so there it is a point.
Average scores and divergences of a single seed, or of seeds with one and the same difference, have an interval over
items and windows, as if both quantizers had answered different ones: rather too wide. The rest of a single seed has
neither interval nor verdict."""


def page(
    run: str,  # its name
    subject: str,  # label of the quantizer that the claims are about
    rival: str,  # whom it is compared with first
    rows: Sequence[Row],  # what `judge` found
    trained: int,  # number of units that trained or should have
    unfinished: Mapping[Name, str],  # units without numbers, and why
    twice: Sequence[str],  # recipes that are not compared: an earlier one has the same frame, quantizer, granularity
) -> str:
    """The whole page."""
    whole = overall(rows)
    every = [row for row in whole if row["pairing"] == "granularity"]
    paper = [row for row in every if row["other"] == rival and row["claim"] not in (STARTS, ENDS, GAINS)]
    by_size = [row for row in whole if row["pairing"] == "bits"]
    frames = list(dict.fromkeys(row["frame"] for row in rows))
    lines = [f"# Claims of the R2Q paper about training, held against the run {run}".rstrip(), ""]
    if not rows:
        lines += [f"The run trained no model with both {subject} and another quantizer.", ""]
    else:
        lines += [*_summary(paper), *_starts_in_short(every, subject)]
        if unfinished:
            lines.append(f"- {len(unfinished)} of {trained} trained units {LOST}; they stand at the end")
        lines.append("")
        lines += [f"Trained with {', '.join(frames)}.", "", "## How to read this", "", READING, ""]
    if paper:
        lines += [f"## The paper's claims for {subject}, against {rival}", "", *_claims(paper), ""]
    if by_size:
        lines += ["## At equal size", "", BY_SIZE, "", *_claims(by_size), ""]
    table = _start_table(every, subject)
    if table:
        lines += ["## Does the start survive?", "", SURVIVAL, "", *table, ""]
    models = list(dict.fromkeys(row["model"] for row in rows if row["model"] != "all"))
    if len(models) > 1:
        lines += ["## Single models", "", *_models(rows, models), ""]
    if unfinished:
        lines += [f"## Units that {LOST}", "", *_unfinished(unfinished), ""]
    if twice:
        named = ", ".join(twice)
        lines += [f"Not compared, as an earlier recipe has the same frame, quantizer and granularity: {named}.", ""]
    return "\n".join(lines)


def survival(start: Row, end: Row, gain: Row, subject: str) -> str:
    """What became of the start, from the intervals before training, after it, and of the one over the other."""
    before, after, change = _side(start), _side(end), _side(gain)
    if before and after == before:
        return f"kept: {subject} {_place(after)}"
    if before and after == -before:
        return f"reversed: {subject} {_place(after)}"
    return "lost" if before and change == -before else "undecided"


def _side(row: Row) -> int:
    """-1 where the whole interval of a ratio is below 1, 1 where it is above, else 0."""
    if row["low"] is None:
        return 0
    return -1 if row["high"] < 1 else 1 if row["low"] > 1 else 0


def _place(side: int) -> str:
    return "ahead" if side < 0 else "behind"


def overall(rows: Sequence[Row]) -> list[Row]:
    """The rows over all models; of what a single model has, its own."""
    several = {_kind(row) for row in rows if row["model"] == "all"}
    return [row for row in rows if row["model"] == "all" or _kind(row) not in several]


def _kind(row: Row) -> tuple[str, ...]:
    return row["claim"], row["frame"], row["granularity"], row["other"], row["pairing"]


def _where(row: Row, rows: Sequence[Row]) -> str:
    at = "from" if " to " in row["granularity"] else "at"
    frame = f" in {row['frame']}" if len({other["frame"] for other in rows}) > 1 else ""
    return f"against {row['other']} {at} {row['granularity']}{frame}"


def _summary(paper: Sequence[Row]) -> Iterator[str]:
    """Verdicts counted."""
    places = [_where(row, paper) for row in paper]
    for where in dict.fromkeys(places):
        counts = Counter(row["verdict"] for row, place in zip(paper, places, strict=True) if place == where)
        said = ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS)
        yield f"- {said} of {counts.total()} claims {where}"


def _starts(every: Sequence[Row]) -> Iterator[tuple[Row, Row, Row]]:
    """Rows before training, after it, and of the change, for each frame, other quantizer and granularity."""
    by_kind = {_kind(row): row for row in every}
    for (claim, *rest), row in by_kind.items():
        if claim == STARTS:
            yield row, by_kind[ENDS, *rest], by_kind[GAINS, *rest]


def _starts_in_short(every: Sequence[Row], subject: str) -> Iterator[str]:
    for start, end, gain in _starts(every):
        ratios = f"{measured(start)} before and {measured(end)} after training"
        yield f"- start {_where(start, every)}: {survival(start, end, gain, subject)} ({ratios})"


def _claims(paper: Sequence[Row]) -> Iterator[str]:
    """Verdicts, and what was measured."""
    head = ["claim", "against", "frame", "granularity", "verdict", "measured", "95 % interval", "from"]
    keys = ("claim", "other", "frame", "granularity")
    body = [[*(row[key] for key in keys), _said(row), measured(row), interval(row), _source(row)] for row in paper]
    yield from _table(head, body, {"against", "frame"})
    yield from ["", "Measured, and on which side of equality the paper's claim is:", ""]
    for claim, measure, side in dict.fromkeys((row["claim"], row["measure"], row["claimed"]) for row in paper):
        yield f"- {claim}: {measure}; {side}"


def _start_table(every: Sequence[Row], subject: str) -> list[str]:
    scores = {_kind(row)[1:]: row for row in every if row["claim"] == SCORE}
    head = ["against", "frame", "granularity", "verdict", "before training", "after training", "after / before",
            "average score after training", "from"]  # fmt: skip
    body = []
    for start, end, gain in _starts(every):
        score = scores.get(_kind(start)[1:])
        shown = [_with_interval(row) for row in (start, end, gain)] + [NONE if score is None else _with_interval(score)]
        verdict = survival(start, end, gain, subject)
        body.append([start["other"], start["frame"], start["granularity"], verdict, *shown, _source(end)])
    return _table(head, body, {"frame"}) if body else []


def _models(rows: Sequence[Row], models: Sequence[str]) -> Iterator[str]:
    """A row per claim, a column per model."""
    yield MODELS
    yield ""
    by_model = {(*_kind(row), row["model"]): row for row in rows}
    body = []
    for kind in dict.fromkeys(map(_kind, rows)):
        claim, frame, granularity, other, _ = kind
        cells = [_of_model(by_model.get((*kind, model))) for model in models]
        body.append([claim, frame, granularity, other, *cells])
    yield from _table(["claim", "frame", "granularity", "against", *models], body, {"frame", "against"})


def _of_model(row: Row | None) -> str:
    if row is None or row["difference"] is None:
        return NONE
    verdict = "" if row["low"] is None else f", {row['verdict']}"
    without = f", without {row['missing']}" if row["missing"] else ""
    return f"{_with_interval(row)}{verdict}{without}"


def _unfinished(unfinished: Mapping[Name, str]) -> Iterator[str]:
    yield "No comparison above contains a number that these do not have; `without` names the pairs that it left out."
    yield ""
    body = [[model, recipe, str(seed), reason] for (model, recipe, seed), reason in unfinished.items()]
    yield from grid(["model", "recipe", "seed", "what happened"], body, left=range(4))


def _table(head: Sequence[str], body: Iterable[Sequence[str]], optional: set[str]) -> list[str]:
    """A table without those of the optional columns that say the same in every row."""
    body = list(body)
    shown = [i for i, name in enumerate(head) if name not in optional or len({row[i] for row in body}) > 1]
    return grid([head[i] for i in shown], [[row[i] for i in shown] for row in body], left=range(len(shown)))


def _said(row: Row) -> str:
    """The verdict; where it is undecided, with the effect that would have been found."""
    if row["verdict"] != "undecided" or row["detectable"] is None:
        return row["verdict"]
    return f"undecided ({measured(row, 'detectable')} would be found)"


def measured(row: Row, what: str = "difference") -> str:
    """A number of a row with its unit."""
    if row[what] is None:
        return NONE
    return f"{digits(row[what], row)} {'×' if row['unit'] == 'ratio' else 'points'}"


def interval(row: Row) -> str:
    """The interval of a row's difference."""
    return NONE if row["low"] is None else f"{digits(row['low'], row)} to {digits(row['high'], row)}"


def _with_interval(row: Row) -> str:
    return measured(row) if row["low"] is None else f"{measured(row)} ({interval(row)})"


def digits(value: float, row: Row) -> str:
    """Three digits of a ratio, a tenth of a point."""
    if row["unit"] == "ratio":
        return f"{value:#.3g}".rstrip(".")
    return f"{round(value, 1) or 0.0:+.1f}"  # no -0.0


def _source(row: Row) -> str:
    """How many models, or seeds of the only one, and what is missing."""
    over = "models" if row["model"] == "all" else "seeds"
    counted = f"{row['n']} {over if row['n'] != 1 else over[:-1]}"
    return f"{counted}, without {row['missing']}" if row["missing"] else counted
