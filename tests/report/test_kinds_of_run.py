"""Tables, every figure and the page of runs that measure little, or of which little went well."""

import itertools
import json

import pandas as pd
import pytest
from scipy.stats import binomtest

from r2q.records import read_drawn
from r2q.report.averages import accuracies, average_scores, fidelity_of
from r2q.report.collect import collect
from r2q.report.figures import figure
from r2q.report.page import page
from r2q.report.run import read_scores
from r2q.report.tables import table
from r2q.report.tables.summary import summarize
from tests.report.conftest import RECIPES, score

MODELS = ("mini-llama", "mini-opt")
FIGURES = ["frontier-bytes", "frontier-bits", "granularity"]
FIGURES += [f"{name}-{model}" for name in ("tasks", "layer_errors") for model in MODELS]
TEXT = {"chance": None, "majority": None, "higher_is_better": False}
KINDS = {
    "a text": [score("wiki", "token_ppl_64", 12.5, **TEXT)],
    "a distance": [score("fidelity", "kl", 0.25, **TEXT), score("fidelity", "top1_agreement", 0.5, in_table=False)],
    "a score of no choice": [score("mine", "bleu", 31.5, chance=None, majority=None)],
    "one item": [score("mini_who", "acc", 1.0, stderr=None, n=1)],
    "tasks that failed": [
        score("mini_who", "acc", None, status="failed", reason="no"),
        score("wiki", "token_ppl_64", 2.0, **TEXT),
    ],
    "never right": [score("mini_who", "acc", 0.0, stderr=0.0)],
}


def all_of_it(run, out) -> None:
    collect(run.config_path, run.results)
    for name in FIGURES:
        figure(name, run.results, out / "figures" / name)
    table(run.results, run.results / "tables", show=True)
    page([run.results], out / "report.html", figures=out / "figures")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_measures_one_thing(kind, make_run, tmp_path, capsys):
    run = make_run(models=MODELS)
    for path in run.results.rglob("evaluation.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": KINDS[kind]}))
    all_of_it(run, tmp_path)
    assert KINDS[kind][0]["task"].split("_")[0] in capsys.readouterr().out
    means = read_drawn(tmp_path / "figures" / "frontier-bits.csv", ["model"])
    assert ("mean of models" in set(means["model"])) == (kind != "a score of no choice")


@pytest.mark.parametrize("left", ["full-precision", "r2q-g64", "none"])
def test_a_run_of_which_one_recipe_or_none_went_well(left, make_run, tmp_path, capsys):
    run = make_run(models=MODELS)
    for model, recipe in itertools.product(MODELS, RECIPES):
        if recipe != left:
            run.fail(model, recipe, "weights are not finite")
    all_of_it(run, tmp_path)
    assert "weights are not finite" in capsys.readouterr().out


@pytest.fixture
def scores(collected):
    return read_scores(collected / "scores.csv")


def test_an_average_has_a_chance_level_where_all_its_tasks_have_one(scores):
    assert set(average_scores(scores)["chance"]) == {37.5}  # of 25 and 50
    scores.loc[scores["task"] == "mini_who", "chance"] = float("nan")
    assert average_scores(scores)["chance"].isna().all()


def test_a_task_that_fails_costs_one_recipe_its_average_and_no_other_a_task(scores):
    whole = average_scores(scores)
    scores.loc[(scores["task"] == "mini_who") & (scores["recipe"] == "rtn-g64"), "value"] = float("nan")
    left = whole[whole["recipe"] != "rtn-g64"].reset_index(drop=True)
    pd.testing.assert_frame_equal(average_scores(scores), left)


def test_a_task_that_fails_for_a_whole_model_leaves_it_no_average_anywhere(make_run):
    """As in the main table: a mean over the other tasks beside other models' means over all says nothing."""
    run = make_run(models=MODELS)
    collect(run.config_path, run.results)
    scores = read_scores(run.results / "scores.csv")
    whole, lost = average_scores(scores), MODELS[0]
    scores.loc[(scores["task"] == "mini_who") & (scores["model"] == lost), "value"] = float("nan")
    (block,) = (block for block in summarize(scores).blocks if block.model == lost)
    assert {row.cells[-1].value for row in block.rows if row.seeds} == {None}
    left = whole[whole["model"] != lost].reset_index(drop=True)
    pd.testing.assert_frame_equal(average_scores(scores), left)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_right_or_all_wrong_is_not_known_for_certain(share, scores):
    """The standard error of such a score is 0, and 100 (100, 100) had stood there as an interval of 95 %."""
    chosen = accuracies(scores).index
    scores.loc[chosen, ["value", "stderr"]] = share, 0.0
    scores["n"] = 24
    low, high = binomtest(round(24 * share), 24).proportion_ci(method="wilson")
    half = 100 * (high - low) / 2**0.5  # two tasks, each with one whole width on its open side
    ends = average_scores(scores)[["low", "high"]].drop_duplicates().to_numpy().tolist()
    assert ends == [pytest.approx([max(0, 100 * share - half), min(100, 100 * share + half)])]


def test_a_distance_over_few_windows_has_the_interval_of_few(scores):
    """Student's t, as over few seeds: 4.3 standard errors of three windows; it had been 1.96, as of many."""
    scores.loc[scores["task"] == "mini_text", ["value", "stderr"]] = 20.0, 0.5
    scores["n"] = 3
    ends = fidelity_of(scores)[["low", "high"]].drop_duplicates().to_numpy().tolist()
    assert ends == [pytest.approx([20 - 4.3027 * 0.5, 20 + 4.3027 * 0.5], rel=1e-4)]


def test_an_average_has_no_interval_where_a_task_has_no_standard_error(scores):
    assert average_scores(scores)[["low", "high"]].notna().all(axis=None)
    scores.loc[scores["task"] == "mini_who", "stderr"] = float("nan")
    assert average_scores(scores)[["low", "high"]].isna().all(axis=None)
