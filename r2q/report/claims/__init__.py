"""The claims of the R2Q paper about training against a run's own numbers: difference, 95 % interval, verdict.

A claim compares R2Q with another quantizer in the same training frame, model, seed, data and granularity. Two kinds of
rows say the same claim: one per model, with the interval over its seeds (where it has several; for scores of a single
seed over items), and one over all models, each model being the mean over its seeds. Few seeds and few models give wide
intervals by Student's t: that is what they are worth.

    supported        the whole interval is on the claimed side
    not supported    the whole interval is on the other side
    undecided        the interval holds both, or there is none

Ratios are means of logarithms: 0.8 says a fifth less than the other quantizer. A pair of units of which one has no
number, because it diverged or failed, is left out of the difference and named under `missing`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import pandas as pd

from r2q.kept import write_atomic
from r2q.records import write_csv
from r2q.report.claims import measures
from r2q.report.claims.measures import Unit
from r2q.report.claims.page import ENDS, GAINS, RIVAL, SCORE, STARTS, page
from r2q.report.run import read_scores
from r2q.report.training import read_drift, read_steps

COLUMNS = [
    "claim", "measure", "frame", "granularity", "quantizer", "other", "model", "unit", "claimed", "difference", "low",
    "high", "n", "over", "verdict", "missing",
]  # fmt: skip
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 97.5 % quantile, 1 to 10 degrees
NORMAL = 1.959964  # the same of the normal distribution
OURS = "r2q"
NOISE = 1e-9  # of sums of floats: this close to equality is equal
OTHERS = (RIVAL, "rtn-unclipped", "rtn-clip", "r2q-alternating")


class Claim(NamedTuple):
    """What is claimed, how it is measured, and on which side of `limit` the difference should lie."""

    text: str
    measure: str
    ratio: bool
    below: bool
    others: tuple[str, ...] = (RIVAL,)

    @property
    def limit(self) -> int:
        """Where both quantizers are equal."""
        return 1 if self.ratio else 0


class Pair(NamedTuple):
    """Units of both quantizers with the same seed: the logarithm of their ratio, or their difference."""

    seed: int
    change: float
    error: float


def claims(steps: str | Path, drift: str | Path, scores: str | Path, out: str | Path) -> None:
    """Write `<out>.csv` and `<out>.md` from a run's training.csv, drift.csv and scores.csv (see there for errors)."""
    taken, numbers = read_steps(steps), read_scores(scores)
    rows = list(judge(taken, read_drift(drift), numbers))
    units, twice = measures.trained_units(taken, numbers)
    write_csv(f"{out}.csv", COLUMNS, rows)
    run = str(numbers["run"].iloc[0]) if len(numbers) else ""
    unfinished = measures.unfinished(units, taken, numbers)
    write_atomic(f"{out}.md", page(run, rows, len(units.keys() | unfinished.keys()), unfinished, twice))


def judge(steps: pd.DataFrame, drift: pd.DataFrame, scores: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Every claim for which the run has both quantizers, as rows of `COLUMNS`."""
    units, _ = measures.trained_units(steps, scores)
    whole, equal = measures.finished(steps, drift), measures.equal_steps(steps, drift)
    start = measures.measure(units, whole, measures.first_held_out)
    end = measures.measure(units, whole, measures.last_held_out)
    points = measures.average_scores(units, scores)
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
        (Claim(SCORE, "mean accuracy over the tasks of the main table", False, False, OTHERS), points),
        (Claim("less degradation from fine to coarse", "loss of mean accuracy", False, True),
         measures.degradation(points, OURS)),
        (Claim(STARTS, "held-out loss before training", True, True, OTHERS), start),
        (Claim(ENDS, "held-out loss after the last step", True, True, OTHERS), end),
        (Claim(GAINS, "held-out loss after over before training", True, True, OTHERS),
         measures.ratios(end, start)),
    ]  # fmt: skip
    for claim, found in measured:
        for other in claim.others:
            yield from _rows(claim, found, other)


def _rows(claim: Claim, units: list[Unit], other: str) -> Iterator[dict[str, Any]]:
    """A row per model, and one over all where there are several."""
    for (frame, granularity), models in _pairs(claim, units, other).items():
        base = {"claim": claim.text, "measure": claim.measure, "frame": frame, "granularity": granularity}
        base |= {"quantizer": OURS, "other": other, "unit": "ratio" if claim.ratio else "points"}
        base["claimed"] = f"{'below' if claim.below else 'above'} {claim.limit}"
        means, missing = [], []
        for model, pairs in models.items():
            found = [pair for pair in pairs if math.isfinite(pair.change)]
            changes = [pair.change for pair in found]
            lost = [pair.seed for pair in pairs if not math.isfinite(pair.change)]
            here = [f"{model} seed {seed}" if len(pairs) > 1 else model for seed in lost]
            missing += here
            means += [fmean(changes)] if found else []
            if len(found) == 1 and math.isfinite(found[0].error):
                interval, over = (found[0].change, NORMAL * found[0].error), "items"
            else:
                interval, over = student(changes), "seeds"
            ends = _verdict(claim, *interval)
            yield base | {"model": model, **ends, "n": len(found), "over": over, "missing": "; ".join(here)}
        if len(models) > 1:
            ends = _verdict(claim, *student(means))
            yield base | {"model": "all", **ends, "n": len(means), "over": "models", "missing": "; ".join(missing)}


def _pairs(claim: Claim, units: list[Unit], other: str) -> dict[tuple[str, str], dict[str, list[Pair]]]:
    """Pairs by frame and granularity, and then by model."""
    found: dict[tuple[str, str], dict[str, list[Pair]]] = {}
    by_key = {unit.key: unit for unit in units}
    for key, unit in by_key.items():
        rival = by_key.get(key._replace(quantizer=other))
        if key.quantizer != OURS or rival is None:
            continue
        a, b = unit.value, rival.value
        change = a - b if not claim.ratio else math.log(a / b) if a > 0 and b > 0 else math.nan  # 0 has no multiples
        pair = Pair(key.seed, change, math.hypot(unit.error, rival.error))
        found.setdefault((key.frame, key.granularity), {}).setdefault(key.model, []).append(pair)
    return found


def student(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval; NaN for what there is not."""
    n = len(values)
    if n < 2:
        return values[0] if values else math.nan, math.nan
    return fmean(values), quantile(n - 1) * stdev(values) / math.sqrt(n)


def quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t; from 11 degrees on by Abramowitz and Stegun 26.7.5, good to four digits."""
    if degrees <= len(STUDENT):
        return STUDENT[degrees - 1]
    z = NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def _verdict(claim: Claim, middle: float, half: float) -> dict[str, Any]:
    low, high = middle - half, middle + half
    if math.isnan(half) or (low <= NOISE and high >= -NOISE):
        verdict = "undecided"
    else:
        verdict = "supported" if (high < 0) == claim.below else "not supported"
    shown = [None if math.isnan(x) else math.exp(x) if claim.ratio else x for x in (middle, low, high)]
    return {**dict(zip(("difference", "low", "high"), shown, strict=True)), "verdict": verdict}
