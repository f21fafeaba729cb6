"""What claims about training are about: one number a trained unit and measure, NaN where a unit has none."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from r2q.records import OK
from r2q.report.averages import group_width, unit_averages
from r2q.report.statistics import Z, of_few

Name = tuple[str, str, int]  # model, recipe, seed: a unit's folder
NAME = ["model", "recipe", "seed"]
LAST = 0.25  # the last quarter of the steps stands for the loss at equal steps: single steps are noisy


class Key(NamedTuple):
    """What two units are compared by: everything but the quantizer is the same."""

    frame: str
    granularity: str
    quantizer: str
    model: str
    seed: int


class Unit(NamedTuple):
    """A measured number, and its standard error over items or windows where it has one; of its logarithm for ratios.

    Over windows it is so much larger that the normal interval made of it is Student's.
    """

    key: Key
    value: float
    error: float = math.nan


Units = dict[Name, Key]


def trained_units(steps: pd.DataFrame, scores: pd.DataFrame) -> tuple[Units, list[str]]:
    """The units that trained or should have, in the order of the run.

    A unit that failed before its first step is known by its recipe's other units. Where two recipes have the same
    frame, quantizer and granularity, the first one is compared; the others are named in the second result.
    """
    recipes = steps[["recipe", "frame", "granularity", "quantizer"]].drop_duplicates("recipe").set_index("recipe")
    twice = recipes.duplicated()
    first = dict(zip(recipes.index[~twice], recipes[~twice].itertuples(index=False, name=None), strict=True))
    known = dict.fromkeys(name for frame in (scores, steps) for name in names(frame) if name[1] in first)
    units = {(model, recipe, seed): Key._make((*first[recipe], model, seed)) for model, recipe, seed in known}
    return units, [*map(str, recipes.index[twice])]


def bits(units: Units, scores: pd.DataFrame) -> dict[tuple[str, str, str, str], float]:
    """Effective bits a weight by frame, granularity, quantizer and model."""
    known = scores[scores["bits_per_weight"].notna()]
    sizes = dict(zip(names(known), known["bits_per_weight"], strict=True))
    bits_of = {}
    for name, key in units.items():
        if name in sizes:
            bits_of[key.frame, key.granularity, key.quantizer, key.model] = float(sizes[name])
    return bits_of


def names(frame: pd.DataFrame) -> list[Name]:
    """The unit of every row."""
    return [(str(m), str(r), int(s)) for m, r, s in zip(*(frame[column] for column in NAME), strict=True)]


def unfinished(units: Units, steps: pd.DataFrame, scores: pd.DataFrame) -> dict[Name, str]:
    """The units of the training frames that are not `ok` in the scores, or lack a number there, and why."""
    frames = {frame.partition(", ")[0] for frame in steps["frame"]}  # without a number of steps
    known = names(scores)
    mine = scores["method"].isin(frames) | np.array([name in units for name in known], dtype=bool)
    reasons_of: dict[Name, list[str]] = {name: [] for name in units if name not in known}
    bad = scores[mine & (scores["status"] != OK)]
    for name, row in zip(names(bad), bad.to_dict("records"), strict=True):
        words = f"{row['status']}: {row['reason']}"
        reasons_of.setdefault(name, []).append(f"{row['task']} {row['metric']}: {words}" if row["task"] else words)
    return {name: "; ".join(reasons) or "no row in scores.csv" for name, reasons in reasons_of.items()}


def equal_steps(steps: pd.DataFrame, drift: pd.DataFrame) -> pd.DataFrame:
    """Steps of the units that trained to their end, up to the last one that all of a model, frame and granularity have.

    A unit that diverged has only early steps, and comparing those with another's late ones would say nothing.
    """
    whole = finished(steps, drift)
    whole = whole[whole["step"] > 0]
    last = whole.groupby(NAME)["step"].transform("max")
    shortest = last.groupby([whole[column] for column in ("model", "frame", "granularity")]).transform("min")
    return whole[whole["step"] <= shortest]


def finished(steps: pd.DataFrame, drift: pd.DataFrame) -> pd.DataFrame:
    """Steps of the units that trained to their end: those have a drift."""
    done = set(names(drift))
    return steps[np.array([name in done for name in names(steps)], dtype=bool)]


def measure(units: Units, frame: pd.DataFrame, number: Callable[[pd.DataFrame], float]) -> list[Unit]:
    """`number` of each unit's rows."""
    return _units(units, {name: number(rows) for name, rows in _by_unit(frame).items()})


def _units(units: Units, values: Mapping[Name, float], errors: Mapping[Name, float] | None = None) -> list[Unit]:
    """NaN for what has no finite value."""
    numbers = {name: value for name, value in values.items() if math.isfinite(value)}
    errors = errors or {}
    return [Unit(key, numbers.get(name, math.nan), errors.get(name, math.nan)) for name, key in units.items()]


def mean_norm(rows: pd.DataFrame) -> float:
    return float(rows["gradient_norm"].mean())


def fluctuation(rows: pd.DataFrame) -> float:
    """Standard deviation of the changes of ln(gradient norm) from step to step: no unit, and no trend in it."""
    norms = rows.sort_values("step")["gradient_norm"].to_numpy()
    changes = np.diff(np.log(norms)) if (norms > 0).all() else np.array([])
    return float(changes.std(ddof=1)) if len(changes) > 1 else math.nan


def last_loss(rows: pd.DataFrame) -> float:
    return float(rows[rows["step"] > (1 - LAST) * rows["step"].max()]["loss"].mean())


def first_held_out(rows: pd.DataFrame) -> float:
    return _held_out(rows, 0)


def last_held_out(rows: pd.DataFrame) -> float:
    return _held_out(rows, rows["step"].max())


def _held_out(rows: pd.DataFrame, step: float) -> float:
    losses = rows.loc[rows["step"] == step, "held_out_loss"]
    return float(losses.iloc[0]) if len(losses) else math.nan


def distances(units: Units, drift: pd.DataFrame, column: str) -> list[Unit]:
    """A squared distance of the drift, over all quantized layers, a weight."""
    rows = _by_unit(drift[drift["quantized_after"].notna()])
    means = {name: float(np.average(part[column], weights=part["weights"])) for name, part in rows.items()}
    return _units(units, means)


def average_scores(units: Units, scores: pd.DataFrame) -> list[Unit]:
    """Average of the main table, in percent."""
    averages = unit_averages(scores)
    values = {name: 100 * average.value for name, average in averages.items()}
    return _units(units, values, {name: 100 * average.width for name, average in averages.items()})


def divergences(units: Units, scores: pd.DataFrame) -> list[Unit]:
    """Mean KL to full precision on held-out text, nats a token; the error (see `Unit`) is of its logarithm.

    None of any unit where the run did not measure it.
    """
    rows = scores[(scores["task"] == "fidelity") & (scores["metric"] == "kl") & (scores["status"] == OK)]
    wider = [math.nan if pd.isna(n) else of_few(int(n)) / Z for n in rows["n"]]
    error = (rows["stderr"] * wider / rows["value"]).where(rows["value"] > 0)
    values, errors = (dict(zip(names(rows), column, strict=True)) for column in (rows["value"], error))
    return _units(units, values, errors) if values else []


def degradation(scores: list[Unit], quantizer: str) -> list[Unit]:
    """Points lost from the finest to the coarsest granularity that `quantizer` has in a frame."""
    by_key = {unit.key: unit for unit in scores}
    measured = []
    for frame in dict.fromkeys(unit.key.frame for unit in scores):
        mine = [unit for unit in scores if unit.key.frame == frame]
        order = sorted({unit.key.granularity for unit in mine if unit.key.quantizer == quantizer}, key=group_width)
        for fine in mine if len(order) > 1 else []:
            coarse = by_key.get(fine.key._replace(granularity=order[-1]))
            if fine.key.granularity == order[0] and coarse is not None:
                key = fine.key._replace(granularity=f"{order[0]} to {order[-1]}")
                measured.append(Unit(key, fine.value - coarse.value, math.hypot(fine.error, coarse.error)))
    return measured


def ratios(after: list[Unit], before: list[Unit]) -> list[Unit]:
    """`after` over `before`, unit by unit."""
    return [Unit(b.key, a.value / b.value if b.value > 0 else math.nan) for a, b in zip(after, before, strict=True)]


def _by_unit(frame: pd.DataFrame) -> dict[Name, pd.DataFrame]:
    return {names(rows)[0]: rows for _, rows in frame.groupby(NAME, sort=False)}
