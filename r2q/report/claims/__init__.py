"""The claims of the R2Q paper about training against a run's own numbers: difference, 95 % interval, verdict.

A claim compares one quantizer, R2Q unless the config names another, with every other one in the same training frame,
model, seed and data: at equal granularity, and for the numbers that users see also at equal size, where the rival is
the smallest one that is no smaller. Two kinds of rows say the same: one per model, with the interval over its seeds
(where it has several; for scores and divergences of a single seed over items and windows), and one over all models,
each model being the mean over its seeds. Few seeds and few models give wide intervals by Student's t: that is what they
are worth. Those with one and the same difference have no spread: scores and divergences then have an interval over
items, too.

    supported        the whole interval is on the claimed side
    not supported    the whole interval is on the other side
    undecided        the interval holds both, or there is none; beside it the effect that so many pairs would find in
                     four of five cases

Ratios are means of logarithms: 0.8 says a fifth less than the other quantizer. A pair of units of which one has no
number, because it diverged or failed, is left out of the difference and named under `missing`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import pandas as pd

from r2q.intact import sign
from r2q.kept import write_atomic
from r2q.records import write_csv
from r2q.report import statistics
from r2q.report.claims import measures
from r2q.report.claims.markdown import ENDS, GAINS, NEARER, SCORE, STARTS, page
from r2q.report.claims.measures import Key, Unit
from r2q.report.run import Run

COLUMNS = [
    "claim", "measure", "frame", "granularity", "quantizer", "other", "pairing", "model", "unit", "claimed",
    "difference", "low", "high", "n", "over", "verdict", "detectable", "missing",
]  # fmt: skip
SUBJECT = "r2q"
RIVALS = ("rtn (clipped start)", "rtn")  # whom the paper's claims are about: BitDistiller's own, else plain
GRANULARITY, BITS = "granularity", "bits"  # what the units of a pair have in common
NOISE = 1e-9  # of sums of floats: this close to equality is equal
Bits = Mapping[tuple[str, str, str, str], float]  # frame, granularity, quantizer, model: bits a weight


class Claim(NamedTuple):
    """What is claimed, how it is measured, on which side of `limit` the difference should lie, how units are paired."""

    text: str
    measure: str
    ratio: bool
    below: bool
    pairings: tuple[str, ...] = (GRANULARITY,)

    @property
    def limit(self) -> int:
        """Where both quantizers are equal."""
        return 1 if self.ratio else 0


class Pair(NamedTuple):
    """Units of both quantizers with the same seed: the logarithm of their ratio, or their difference."""

    seed: int
    change: float
    error: float


def claims(results: str | Path, out: str | Path, subject: str = SUBJECT, against: Sequence[str] = ()) -> None:
    """Write `<out>.csv` and `<out>.md` from training.csv, drift.csv and scores.csv of a run's folder.

    Without `against`, all others are compared, the paper's rival first.

    Raises:
        FileNotFoundError, ValueError: a CSV is missing or damaged, or no recipe trained with such a quantizer.
    """
    run = Run(results)
    known = list(dict.fromkeys(run.steps["quantizer"]))
    begun_or_not = dict.fromkeys([*known, *run.scores.loc[run.scores["kind"] == "training", "quantizer"]])
    for name in (subject, *against) if (subject, *against) != (SUBJECT,) else ():
        if name not in begun_or_not:
            raise ValueError(
                f"claims: no recipe of the run trained with quantizer {name}; there are {', '.join(begun_or_not)}"
            )
    others = list(against) or sorted((name for name in known if name != subject), key=_place)
    rows = list(judge(run.steps, run.drift, run.scores, subject, others))
    units, twice = measures.trained_units(run.steps, run.scores)
    write_csv(f"{out}.csv", COLUMNS, rows)
    name = str(run.scores["run"].iloc[0]) if len(run.scores) else ""
    unfinished = measures.unfinished(units, run.steps, run.scores)
    count = len(units.keys() | unfinished.keys())
    write_atomic(f"{out}.md", page(name, subject, others[0] if others else "", rows, count, unfinished, twice))
    sign(f"{out}.sha256", [f"{out}.csv", f"{out}.md"])


def _place(quantizer: str) -> int:
    return RIVALS.index(quantizer) if quantizer in RIVALS else len(RIVALS)


def judge(
    steps: pd.DataFrame, drift: pd.DataFrame, scores: pd.DataFrame, subject: str, others: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Every claim for which the run has both quantizers, as rows of `COLUMNS`."""
    units, _ = measures.trained_units(steps, scores)
    whole, equal = measures.finished(steps, drift), measures.equal_steps(steps, drift)
    start = measures.measure(units, whole, measures.first_held_out)
    end = measures.measure(units, whole, measures.last_held_out)
    points = measures.average_scores(units, scores)
    both = (GRANULARITY, BITS)
    measured: list[tuple[Claim, list[Unit]]] = [
        (Claim("lower mean gradient norm", "gradient norm before clipping, mean over the steps", True, True),
         measures.measure(units, equal, measures.mean_norm)),
        (Claim("less fluctuation", "standard deviation of step-to-step changes of ln(gradient norm)", True, True),
         measures.measure(units, equal, measures.fluctuation)),
        (Claim("lower loss at equal steps", "training loss, mean over the last quarter of the steps", True, True),
         measures.measure(units, equal, measures.last_loss)),
        (Claim("smaller drift", "squared distance that training moved the latent weights", True, True),
         measures.distances(units, drift, "latent_moved")),
        (Claim("closer to full precision after training",
               "squared distance of the stored (quantized) weights to full precision", True, True),
         measures.distances(units, drift, "quantized_after")),
        (Claim(SCORE, "mean accuracy over the tasks of the main table", False, False, both), points),
        (Claim(NEARER, "mean KL of its next tokens from full precision's (fidelity)", True, True, both),
         measures.divergences(units, scores)),
        (Claim("less degradation from fine to coarse", "loss of mean accuracy", False, True),
         measures.degradation(points, subject)),
        (Claim(STARTS, "held-out loss before training", True, True), start),
        (Claim(ENDS, "held-out loss after the last step", True, True), end),
        (Claim(GAINS, "held-out loss after over before training", True, True),
         measures.ratios(end, start)),
    ]  # fmt: skip
    bits = measures.bits(units, scores)
    for claim, numbers in measured:
        for other in others:
            for pairing in claim.pairings:
                yield from _rows(claim, numbers, subject, other, pairing, bits)


def _rows(
    claim: Claim, units: list[Unit], subject: str, other: str, pairing: str = GRANULARITY, bits: Bits | None = None
) -> Iterator[dict[str, Any]]:
    """A row per model, and one over all where there are several."""
    for (frame, granularity), models in _pairs(claim, units, subject, other, pairing, bits or {}).items():
        base = {"claim": claim.text, "measure": claim.measure, "frame": frame, "granularity": granularity}
        base |= {"quantizer": subject, "other": other, "pairing": pairing}
        base |= {"unit": "ratio" if claim.ratio else "points"}
        base["claimed"] = f"{'below' if claim.below else 'above'} {claim.limit}"
        means, errors, missing = [], [], []
        for model, pairs in models.items():
            finite = [pair for pair in pairs if math.isfinite(pair.change)]
            changes = [pair.change for pair in finite]
            lost = [pair.seed for pair in pairs if not math.isfinite(pair.change)]
            here = [f"{model} seed {seed}" if len(pairs) > 1 else model for seed in lost]
            missing += here
            error = fmean(pair.error for pair in finite) if finite else math.nan  # of the same items: seeds add none
            means += [fmean(changes)] if finite else []
            errors += [error] if finite else []
            items = error if len(finite) == 1 or statistics.alike(changes) else math.nan
            yield base | {"model": model, **_verdict(claim, changes, "seeds", items), "missing": "; ".join(here)}
        if len(models) > 1:
            items = math.hypot(*errors) / len(errors) if statistics.alike(means) else math.nan
            yield base | {"model": "all", **_verdict(claim, means, "models", items), "missing": "; ".join(missing)}


def _pairs(
    claim: Claim, units: list[Unit], subject: str, other: str, pairing: str, bits: Bits
) -> dict[tuple[str, str], dict[str, list[Pair]]]:
    """Pairs by frame and granularity, and then by model."""
    pairs: dict[tuple[str, str], dict[str, list[Pair]]] = {}
    by_key = {unit.key: unit for unit in units}
    for key, unit in by_key.items():
        rival = by_key.get(key._replace(quantizer=other))
        where = key.granularity
        if pairing == BITS:
            rival = _no_smaller(key, by_key, other, bits)
            where = "" if rival is None else f"{where} to {rival.key.granularity}"
            if rival is not None and rival.key.granularity == key.granularity:
                rival = None  # the same pair as at equal granularity
        if key.quantizer != subject or rival is None:
            continue
        a, b = unit.value, rival.value
        change = a - b if not claim.ratio else math.log(a / b) if a > 0 and b > 0 else math.nan  # 0 has no multiples
        pair = Pair(key.seed, change, math.hypot(unit.error, rival.error))
        pairs.setdefault((key.frame, where), {}).setdefault(key.model, []).append(pair)
    return pairs


def _no_smaller(key: Key, by_key: Mapping[Key, Unit], other: str, bits: Bits) -> Unit | None:
    """The unit of the other quantizer with the fewest bits that are no fewer than this unit's; None without one."""

    def size(k: Key) -> float:
        return bits.get((k.frame, k.granularity, k.quantizer, k.model), math.nan)

    same = [k for k in by_key if k._replace(granularity="", quantizer="") == key._replace(granularity="", quantizer="")]
    fits = [k for k in same if k.quantizer == other and size(k) >= size(key)]
    return by_key[min(fits, key=size)] if fits else None


def _verdict(claim: Claim, changes: Sequence[float], over: str, items: float) -> dict[str, Any]:
    """Interval and verdict of the mean change over seeds or models; where their spread can tell nothing, over items.

    `items` is the mean's standard error over those, NaN where it is not to be used, or there is none.
    """
    middle, half = statistics.student(changes)
    if math.isfinite(items):
        half, over = statistics.Z * items, "items"
    low, high = middle - half, middle + half
    if math.isnan(half) or (low <= NOISE and high >= -NOISE):
        verdict = "undecided"
    else:
        verdict = "supported" if (high < 0) == claim.below else "not supported"
    sd = stdev(changes) if len(changes) > 1 else math.nan
    effect = statistics.detectable(sd if sd > NOISE else math.nan, len(changes)) * (-1 if claim.below else 1)
    shown = [None if math.isnan(x) else math.exp(x) if claim.ratio else x for x in (middle, low, high, effect)]
    ends = dict(zip(("difference", "low", "high", "detectable"), shown, strict=True))
    return {**ends, "verdict": verdict, "n": len(changes), "over": over}
