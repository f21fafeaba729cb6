"""The claims of the R2Q paper against a run's own numbers: difference, 95 % interval, verdict.

A claim compares R2Q with another quantizer in the same training frame, model, seed, data and granularity. Two kinds of
rows say the same claim: one per model, with the interval over its seeds (where it has several; for scores of a single
seed over items, tasks taken as independent), and one over all models, each model being the mean over its seeds. Few
seeds and few models give wide intervals by Student's t: that is what they are worth.

    supported        the whole interval is on the claimed side
    not supported    the whole interval is on the other side
    undecided        the interval holds both, or a single number has no interval

Ratios are means of logarithms: 0.8 says a fifth less than the other quantizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from r2q.kept import write_atomic
from r2q.report.scores import read_scores, write_csv
from r2q.report.training import read_drift, read_steps

COLUMNS = [
    "claim", "measure", "frame", "granularity", "quantizer", "other", "model", "unit", "claimed", "difference", "low",
    "high", "n", "over", "verdict",
]  # fmt: skip
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 97.5 % quantile, 1 to 10 degrees
OURS, RIVAL = "r2q", "rtn"
LAST = 0.25  # the last quarter of the steps stands for the loss at equal steps: single steps are noisy


class Unit(NamedTuple):
    """One trained unit: its keys and a measured number, with the standard error over items where there is one."""

    frame: str
    granularity: str
    quantizer: str
    model: str
    seed: str
    value: float
    error: float = math.nan


class Claim(NamedTuple):
    """What the paper says, how it is measured, and on which side of `limit` the difference should lie."""

    text: str
    measure: str
    ratio: bool
    below: bool
    others: tuple[str, ...] = (RIVAL,)


def claims(steps: str | Path, drift: str | Path, scores: str | Path, out: str | Path) -> None:
    """Write `<out>.csv` and `<out>.md` from a run's training.csv, drift.csv and scores.csv (see there for errors)."""
    rows = list(judge(read_steps(steps), read_drift(drift), read_scores(scores)))
    write_csv(f"{out}.csv", COLUMNS, rows)
    write_atomic(f"{out}.md", markdown(rows))


def judge(steps: pd.DataFrame, drift: pd.DataFrame, scores: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Every claim for which the run has both quantizers, as rows of `COLUMNS`."""
    training = steps[steps["step"] > 0]
    everyone = (RIVAL, "rtn-clip", "r2q-alternating")
    points = _scores(scores, steps)
    measured: list[tuple[Claim, list[Unit]]] = [
        (Claim("lower mean gradient norm", "mean gradient norm", True, True), _of(training, _mean_norm)),
        (
            Claim("less fluctuation", "standard deviation of step-to-step changes of ln(gradient norm)", True, True),
            _of(training, _fluctuation),
        ),
        (Claim("lower loss at equal steps", "training loss, last quarter", True, True), _of(training, _last_loss)),
        (Claim("starts closer to the teacher", "held-out loss before training", True, True, everyone),
         _of(steps, _first_held_out)),
        (Claim("ends closer to the teacher", "held-out loss after training", True, True, everyone),
         _of(steps, _last_held_out)),
        (Claim("smaller drift", "latent weights: squared distance (a clipped start included)", True, True),
         _of(drift, lambda rows: _distance(rows, "latent_after"))),
        (Claim("closer to full precision after training", "quantized weights: squared distance", True, True),
         _of(drift, lambda rows: _distance(rows, "quantized_after"))),
        (Claim("higher average score", "mean accuracy over tasks", False, False, everyone), points),
        (Claim("less degradation from fine to coarse", "loss of mean accuracy", False, True), _degradation(points)),
    ]  # fmt: skip
    for claim, units in measured:
        for other in claim.others:
            yield from _rows(claim, units, other)


def _of(frame: pd.DataFrame, measure: Callable[[pd.DataFrame], float]) -> list[Unit]:
    keys = ["frame", "granularity", "quantizer", "model", "seed"]
    found = []
    for key, rows in frame.groupby(keys, sort=False):
        value = measure(rows)
        if math.isfinite(value):
            found.append(_unit(key, value))
    return found


def _unit(key: Any, value: float, error: float = math.nan) -> Unit:
    frame, granularity, quantizer, model, seed = map(str, key)
    return Unit(frame, granularity, quantizer, model, seed, value, error)


def _mean_norm(rows: pd.DataFrame) -> float:
    return float(rows["gradient_norm"].mean())


def _fluctuation(rows: pd.DataFrame) -> float:
    changes = np.log(rows.sort_values("step")["gradient_norm"].to_numpy()[1:]) - np.log(
        rows.sort_values("step")["gradient_norm"].to_numpy()[:-1]
    )
    return float(changes.std(ddof=1)) if len(changes) > 1 else math.nan


def _last_loss(rows: pd.DataFrame) -> float:
    return float(rows[rows["step"] > (1 - LAST) * rows["step"].max()]["loss"].mean())


def _first_held_out(rows: pd.DataFrame) -> float:
    return float(rows.dropna(subset="held_out_loss").sort_values("step")["held_out_loss"].iloc[0])


def _last_held_out(rows: pd.DataFrame) -> float:
    return float(rows.dropna(subset="held_out_loss").sort_values("step")["held_out_loss"].iloc[-1])


def _distance(rows: pd.DataFrame, column: str) -> float:
    """Squared distance over all quantized layers, a weight."""
    layers = rows[rows["depth"] != "head"]
    return float((layers[column] * layers["weights"]).sum() / layers["weights"].sum())


def _scores(scores: pd.DataFrame, steps: pd.DataFrame) -> list[Unit]:
    """Mean accuracy (percent) of the trained units over the tasks of the main table where higher is better."""
    units = steps[["model", "recipe", "seed", "frame", "quantizer", "granularity"]].drop_duplicates()
    shown = scores[(scores["status"] == "ok") & scores["in_table"].fillna(False) & scores["higher_is_better"]]
    joined = units.merge(shown.drop(columns="granularity"), on=["model", "recipe", "seed"])
    found = []
    for key, rows in joined.groupby(["frame", "granularity", "quantizer", "model", "seed"], sort=False):
        error = math.sqrt(float((rows["stderr"] ** 2).sum())) / len(rows)
        found.append(_unit(key, 100 * float(rows["value"].mean()), 100 * error))
    return found


def _degradation(units: list[Unit]) -> list[Unit]:
    """Points lost from the finest granularity of the run (groups) to the coarsest."""
    order = sorted({unit.granularity for unit in units}, key=_width)
    if len(order) < 2:
        return []
    by_key = {unit[:5]: unit for unit in units}
    found = []
    for unit in units:
        coarse = by_key.get((unit.frame, order[-1], *unit[2:5]))
        if unit.granularity == order[0] and coarse is not None:
            error = math.hypot(unit.error, coarse.error)
            found.append(unit._replace(granularity=f"{order[0]} to {order[-1]}", value=unit.value - coarse.value,
                                       error=error))  # fmt: skip
    return found


def _width(granularity: str) -> float:
    return {"channel": 1e9, "tensor": 1e10}.get(granularity) or float(granularity[1:])


def _rows(claim: Claim, units: list[Unit], other: str) -> Iterator[dict[str, Any]]:
    pairs: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    theirs = {unit[:5]: unit for unit in units if unit.quantizer == other}
    for unit in units:
        rival = theirs.get((unit.frame, unit.granularity, other, unit.model, unit.seed))
        if unit.quantizer != OURS or rival is None:
            continue
        if claim.ratio:
            change = math.log(unit.value / rival.value), math.nan
        else:
            change = unit.value - rival.value, math.hypot(unit.error, rival.error)
        pairs.setdefault((unit.frame, unit.granularity), {}).setdefault(unit.model, []).append(change)
    for (frame, granularity), models in pairs.items():
        base = {"claim": claim.text, "measure": claim.measure, "frame": frame, "granularity": granularity}
        base |= {"quantizer": OURS, "other": other, "unit": "ratio" if claim.ratio else "points"}
        base["claimed"] = f"{'below' if claim.below else 'above'} {1 if claim.ratio else 0}"
        for model, changes in models.items():
            values = [value for value, _ in changes]
            if len(values) == 1 and math.isfinite(changes[0][1]):
                middle, half = values[0], 1.96 * changes[0][1]
                yield base | {"model": model, **_verdict(claim, middle, half, 1, "items")}
            else:
                yield base | {"model": model, **_verdict(claim, *student(values), len(values), "seeds")}
        means = [fmean(value for value, _ in changes) for changes in models.values()]
        if len(means) > 1:
            yield base | {"model": "all", **_verdict(claim, *student(means), len(means), "models")}


def student(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (NaN for a single value)."""
    n = len(values)
    if n < 2:
        return fmean(values), math.nan
    quantile = STUDENT[n - 2] if n - 2 < len(STUDENT) else 1.96 + 2.4 / (n - 1)
    return fmean(values), quantile * stdev(values) / math.sqrt(n)


def _verdict(claim: Claim, middle: float, half: float, n: int, over: str) -> dict[str, Any]:
    low, high = middle - half, middle + half
    if math.isnan(half) or low <= 0 <= high:
        verdict = "undecided"
    else:
        verdict = "supported" if (high < 0) == claim.below else "not supported"
    show = math.exp if claim.ratio else float
    ends = {"low": None, "high": None} if math.isnan(half) else {"low": show(low), "high": show(high)}
    return {"difference": show(middle), **ends, "n": n, "over": over, "verdict": verdict}


def markdown(rows: list[dict[str, Any]]) -> str:
    """A page section: verdicts over all models, then those of single models."""
    head = "| claim | measure | frame | granularity | against | model | difference | 95 % interval | over | verdict |"
    lines = ["# Claims", "", " ".join((__doc__ or "").split("\n\n")[1].split()), ""]
    for title, chosen in (("All models", True), ("Single models", False)):
        part = [row for row in rows if (row["model"] == "all") == chosen]
        if part:
            lines += [f"## {title}", "", head, "|" + " --- |" * 10, *map(_line, part), ""]
    if not rows:
        lines += ["The run trained no model with both R2Q and another quantizer.", ""]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    unit = "×" if row["unit"] == "ratio" else " points"
    sign = "" if row["unit"] == "ratio" else "+"
    ends = "none" if row["low"] is None else f"{row['low']:{sign}.3f} … {row['high']:{sign}.3f}"
    cells = [row["claim"], row["measure"], row["frame"], row["granularity"], row["other"], row["model"]]
    cells += [f"{row['difference']:{sign}.3f}{unit}", ends, f"{row['n']} {row['over']}", row["verdict"]]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
