"""Numbers of trained units, worked out by hand."""

import math

import pandas as pd
import pytest

from r2q.report.claims.measures import (
    Key,
    average_scores,
    degradation,
    distances,
    equal_steps,
    first_held_out,
    fluctuation,
    last_held_out,
    last_loss,
)
from tests.report.trained import unit


def steps_of(**columns: list[float]) -> pd.DataFrame:
    rows = pd.DataFrame(columns)
    return rows.assign(model="m", recipe="r", seed=0, frame="f", granularity="g64")


def test_fluctuation_is_the_deviation_of_the_changes() -> None:
    norms = [math.exp(x) for x in (0.0, 1.0, 1.0, 3.0)]  # changes 1, 0, 2: mean 1, deviation 1
    assert fluctuation(steps_of(step=[1, 2, 3, 4], gradient_norm=norms)) == pytest.approx(1.0)
    shuffled = steps_of(step=[4, 1, 3, 2], gradient_norm=[norms[i] for i in (3, 0, 2, 1)])
    assert fluctuation(shuffled) == pytest.approx(1.0)
    assert fluctuation(steps_of(step=[1, 2, 3, 4], gradient_norm=[1, 2, 4, 8])) == pytest.approx(0.0)  # a trend
    assert math.isnan(fluctuation(steps_of(step=[1, 2], gradient_norm=[1, 2])))
    assert math.isnan(fluctuation(steps_of(step=[1, 2, 3, 4], gradient_norm=[1, 0, 1, 2])))


def test_losses_of_a_unit() -> None:
    rows = steps_of(step=[*range(9)], loss=[math.nan, 9, 9, 9, 9, 9, 9, 3, 1], held_out_loss=[5.0] + [4.0] * 7 + [2.0])
    assert last_loss(rows) == 2.0  # steps 7 and 8
    assert (first_held_out(rows), last_held_out(rows)) == (5.0, 2.0)
    assert math.isnan(first_held_out(rows[rows["step"] > 0]))


def test_training_is_compared_at_the_steps_that_both_have() -> None:
    def recipe(name: str, last: int) -> pd.DataFrame:
        return steps_of(step=[*range(last + 1)], loss=[float(last)] * (last + 1)).assign(recipe=name)

    steps = pd.concat([recipe("long", 8), recipe("short", 4), recipe("diverged", 2)])
    drift = pd.DataFrame({"model": "m", "recipe": ["long", "short"], "seed": 0})
    found = equal_steps(steps, drift).groupby("recipe")["step"].agg(["min", "max"])
    assert found.to_dict("index") == {"long": {"min": 1, "max": 4}, "short": {"min": 1, "max": 4}}


def test_distances_weigh_layers_by_their_weights() -> None:
    drift = pd.DataFrame(
        {
            "model": "m", "recipe": "r", "seed": 0, "weights": [1.0, 3.0, 100.0],
            "latent_moved": [2.0, 6.0, 50.0],
            "quantized_before": [0.5, 0.5, None], "quantized_after": [1.0, 2.0, None],  # the head is not quantized
        }
    )  # fmt: skip
    units = {("m", "r", 0): Key("f", "g64", "r2q", "m", 0), ("m", "gone", 0): Key("f", "g64", "rtn", "m", 0)}
    quantized, missing = distances(units, drift, "quantized_after")
    assert quantized.value == pytest.approx(7 / 4)
    assert math.isnan(missing.value)
    assert distances(units, drift, "latent_moved")[0].value == pytest.approx(20 / 4)


def scores_of(*rows: tuple[str, str, str, float | None, float | None]) -> pd.DataFrame:
    found = pd.DataFrame(rows, columns=["recipe", "task", "metric", "value", "stderr"])
    status = ["ok" if value is not None else "failed" for value in found["value"]]
    higher = found["metric"] != "word_perplexity"
    found["value"] = found["value"].astype(float)
    found["stderr"] = found["stderr"].astype(float)
    return found.assign(model="m", seed=0, status=status, in_table=True, higher_is_better=higher, chance=math.nan,
                        majority=math.nan, n=pd.NA)  # fmt: skip


def test_an_average_score_is_that_of_the_main_table() -> None:
    scores = scores_of(
        ("r", "a", "acc", 0.5, 0.03), ("r", "b", "acc", 0.7, 0.04), ("r", "text", "word_perplexity", 9.0, 1.0),
        ("r", "bleu", "bleu", 23.0, 1.0), ("half", "a", "acc", 0.9, 0.03), ("half", "b", "acc", None, None),
        ("vague", "a", "acc", 0.5, 0.03), ("vague", "b", "acc", 0.7, None),
    )  # fmt: skip
    units = {("m", recipe, 0): Key("f", "g64", recipe, "m", 0) for recipe in ("r", "half", "vague", "gone")}
    whole, half, vague, gone = average_scores(units, scores)
    assert (whole.value, whole.error) == (pytest.approx(60), pytest.approx(2.5))  # 3-4-5, halved
    assert math.isnan(half.value)  # an average of other tasks is no rival of this one
    assert (vague.value, math.isnan(vague.error)) == (pytest.approx(60), True)
    assert math.isnan(gone.value)


def test_degradation_is_between_the_ends_that_the_quantizer_has() -> None:
    scores = [
        unit("r2q", 70, error=3.0), unit("r2q", 60, granularity="g128"),
        unit("r2q", 40, error=4.0, granularity="channel"),
        unit("rtn", 50), unit("rtn", 30, granularity="channel"), unit("rtn", 1, granularity="tensor"),
        unit("late", 50), unit("late", math.nan, granularity="channel"),
    ]  # fmt: skip
    ours, rtn, late = degradation(scores, "r2q")
    assert (ours.key.granularity, ours.value, ours.error) == ("g64 to channel", 30, 5.0)
    assert rtn.value == 20
    assert math.isnan(late.value)
    assert degradation(scores[:1], "r2q") == []
