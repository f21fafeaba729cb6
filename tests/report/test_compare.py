"""compare: only what measures the same thing, exact and paired tests, exit statuses, what else differed."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from r2q.records import ItemRow, columns, write_csv
from r2q.report.collect import collect
from r2q.report.compare import compare, differences
from r2q.report.compare.formats import WRITERS
from r2q.report.compare.numbers import Side
from r2q.report.compare.numbers import side_of as side
from r2q.report.items import Items, decode, encode
from r2q.report.statistics import fisher


@pytest.fixture
def two(make_run):
    """Two equal runs, to be changed and then collected."""
    return make_run("a", models=("mini-llama",)), make_run("b", models=("mini-llama",))


def gathered(two):
    for run in two:
        collect(run.config_path, run.results)
    return [run.results for run in two]


@pytest.fixture
def pair(two):
    """The folders of two equal runs."""
    return gathered(two)


def test_identical_runs(pair, capsys):
    assert compare(*pair) == 0
    printed = capsys.readouterr().out
    assert "16 numbers: 16 equal." in printed
    assert "Code, config, data, weights, versions and device of the 4 units in both are the same." in printed


def test_disjoint_runs_are_an_error(make_run):
    runs = make_run("a", models=("mini-llama",)), make_run("b", models=("mini-opt",))
    with pytest.raises(ValueError, match="have no number in common"):
        compare(*gathered(runs))


def accuracy(run, recipe, right, n, items=None, **more):
    """Give a unit's mini_facts so many right answers, in the collected CSV."""
    path = run / "scores.csv"
    lines = path.read_text().splitlines()
    head = lines[0].split(",")
    for number, line in enumerate(lines):
        row = dict(zip(head, line.split(","), strict=False))
        if row["recipe"] == recipe and (row["task"], row["metric"]) == ("mini_facts", "acc"):
            row |= {"value": repr(right / n), "stderr": "0.0", "n": str(n), **more}
            lines[number] = ",".join(row[name] for name in head)
    path.write_text("\n".join(lines) + "\n")
    (run / "collected.sha256").unlink(missing_ok=True)  # it is not what was collected
    if items is not None:
        kept = {"model": "mini-llama", "recipe": recipe, "seed": 0, "task": "mini_facts", "metric": "acc"}
        write_csv(run / "items.csv", columns(ItemRow), [kept | {"asked": "h", "values": encode(items)}])


def only(rows, recipe):
    (row,) = [r for r in rows if (r.recipe_a or r.recipe_b, r.task, r.metric) == (recipe, "mini_facts", "acc")]
    return row


def test_eight_of_eight_is_no_evidence_against_459_of_500(pair):
    """A standard error of 0 at 100 % is no certainty; other numbers of items are not compared at all."""
    a, b = pair
    accuracy(a, "rtn-g64", 8, 8)
    accuracy(b, "rtn-g64", 459, 500)
    row = only(differences(side(a), side(b)), "rtn-g64")
    assert (row.verdict, row.reason, row.p) == ("not comparable", "items: 8 and 500", None)
    assert fisher(8, 8, 459, 500).p > 0.5  # one side alone: 0.918^8 = 0.5
    assert compare(a, b) == 3


def test_proportions_are_tested_exactly(pair):
    a, b = pair
    accuracy(a, "rtn-g64", 10, 10)
    accuracy(b, "rtn-g64", 7, 10)
    row = only(differences(side(a), side(b)), "rtn-g64")
    # both margins fixed: 17 right of 20, ten of them in a; P(10 or 7 in a) = 2 C(10,0) C(10,3) / C(20,3)
    assert row.p == pytest.approx(2 * 120 / 1140)
    assert (row.test, row.paired, row.verdict) == ("Fisher", False, "no difference found")
    assert row.low < row.difference < row.high


def test_items_make_the_test_a_paired_one(pair):
    a, b = pair
    accuracy(a, "rtn-g64", 90, 100, [0] * 10 + [1] * 90)
    accuracy(b, "rtn-g64", 100, 100, [1] * 100)
    row = only(differences(side(a), side(b)), "rtn-g64")
    assert (row.test, row.paired) == ("McNemar", True)
    assert row.p == pytest.approx(2 * 0.5**10)  # ten items changed, all one way
    assert row.verdict == "better"
    assert compare(a, b) == 1
    assert compare(a, b, fail_on_regression=True) == 0
    assert compare(b, a, fail_on_regression=True) == 1


ACC = {"metric": "acc", "higher_is_better": True}


def made(name, rows, items=None, **changes):
    """A side of one model, of rows (recipe, seed, task, value, stderr) of a loss, but for `changes`."""
    alike = {"model": "m", "metric": "loss", "n": 8, "status": "ok", "reason": "", "higher_is_better": False} | changes
    named = [alike | dict(zip(("recipe", "seed", "task", "value", "stderr"), row, strict=True)) for row in rows]
    return Side(name, Path(name), pd.DataFrame(named), Items(items or {}))


@pytest.mark.parametrize("right", [(6, 6), (6, 7)])
def test_seeds_that_moved_alike_are_no_certainty(right):
    """Two seeds of eight items, each with one more right: a spread of 0 would make p 0."""
    a = made("a", [("a", seed, "t", 5 / 8, 0.17) for seed in (0, 1)], **ACC)
    b = made("b", [("b", seed, "t", right[seed] / 8, 0.17) for seed in (1, 0)], **ACC)
    (found,) = differences(a, b, over_seeds=True)
    assert found.p > 0.05
    assert found.verdict == "no difference found"
    assert found.low < 0 < found.high
    assert found.test == ("Fisher" if right == (6, 6) else "t over seeds")


def test_an_interval_of_perplexities_is_that_of_resampled_windows():
    """21 and 1100: the error is nearly all the larger one's."""
    random = np.random.default_rng(0)
    losses = {"a": random.normal(3.0, 0.3, 150), "b": random.normal(7.0, 0.3, 150)}
    sides = []
    for name, items in losses.items():
        kept = {("m", name, 0, "t", "token_ppl_64"): ("asked", encode(items))}
        rows = [(name, 0, "t", math.exp(items.mean()), 1.0)]
        sides.append(made(name, rows, kept, metric="token_ppl_64", n=150))
    (found,) = differences(*sides, over_seeds=True)
    draws = random.integers(0, 150, (4000, 150))
    a, b = (np.exp(items[draws].mean(1)) for items in losses.values())
    assert found.high - found.low == pytest.approx(2 * 1.96 * (b - a).std(), rel=0.06)


def test_means_are_over_the_seeds_that_both_have():
    a = made("a", [("a", seed, "t", value, 0.1) for seed, value in enumerate((1.0, 3.0, 50.0))])
    b = made("b", [("b", 1, "t", 4.0, 0.1), ("b", 0, "t", 2.5, 0.1)])
    for one, other in ((a, b), (b, a)):
        (found,) = differences(one, other, over_seeds=True)
        assert (found.seed, {found.value_a, found.value_b}) == ("mean of 2", {2.0, 3.25})


def test_what_is_worse_stands_before_what_is_better():
    """Twelve lines are shown."""
    a = made("a", [("r", 0, f"task {i}", 1.0, 0.01) for i in range(15)])
    losses = [1.5, 2.0] + [0.5] * 13  # a little worse, much worse, better
    b = made("b", [("r", 0, f"task {i}", value, 0.1 if value > 1 else 0.01) for i, value in enumerate(losses)])
    lines = WRITERS["text"](differences(a, b), a, b).splitlines()
    assert [" ".join(line.split()[3:5]) for line in lines[4:7]] == ["task 1", "task 0", "task 2"]
    assert "and 3 more: --format csv has all" in lines


def test_other_task_versions_and_shots_are_not_compared(pair):
    a, b = pair
    accuracy(b, "rtn-g64", 276, 400, version="2")
    row = only(differences(side(a), side(b)), "rtn-g64")
    assert row.verdict == "not comparable"
    assert row.reason.startswith("task version: ")


def test_recipes_of_one_run(two, capsys):
    two[0].unit("mini-llama", "r2q-g64", shift=0.1)
    run = gathered(two)[0]
    compare(run, recipes=["rtn-g64", "r2q-g64"], format="json")
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["recipe_a"], row["recipe_b"]) for row in rows} == {("rtn-g64", "r2q-g64")}
    with pytest.raises(ValueError, match="has no recipe nothing; it has "):
        compare(run, recipes=["rtn-g64", "nothing"])


@pytest.mark.parametrize("format", ["csv", "json", "markdown", "html"])
def test_every_format_has_every_comparison(pair, tmp_path, format):
    compare(*pair, format=format, out=tmp_path / "c")
    assert (tmp_path / "c").read_text().count("word_perplexity") >= 4


def test_counts_of_items_are_whole_numbers(two, capsys):
    """Also where a number is of one run only."""
    two[1].fail("mini-llama", "rtn-g64", "weights are not finite")
    compare(*gathered(two), format="csv")
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["n_b"] for row in rows} > {""}
    assert not [row for row in rows if "." in row["n_a"] + row["n_b"]]


def test_rows_of_one_run_only(two, capsys):
    two[1].fail("mini-llama", "rtn-g64", "weights are not finite")
    assert compare(*gathered(two)) == 3
    printed = capsys.readouterr().out
    assert "numbers, only in" in printed


def test_provenance_differences(make_run, capsys):
    two = make_run("a", models=("mini-llama",)), make_run("b", models=("mini-llama",), limits={"items": 5})
    two[1].change("mini-llama", "rtn-g64", "evaluation.json", versions={"torch": "2.11.0", "lm_eval": "0.4.13"})
    compare(*gathered(two))
    printed = capsys.readouterr().out
    assert "  config.tasks.mini_facts.items: null -> 5\n" in printed  # of all units
    assert "  versions.evaluate.torch: 2.13.0 -> 2.11.0   (1 of 4 units, mini-llama rtn-g64 first)\n" in printed


def test_without_provenance_it_says_so(pair, capsys):
    a, b = pair
    (a / "provenance.json").unlink()
    compare(a, b)
    assert "whether code, config, data or versions differ is not known" in capsys.readouterr().out


def test_missing_file_and_column(pair, tmp_path):
    scores = pair[0] / "scores.csv"
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.csv"):
        compare(scores, tmp_path / "nowhere.csv")
    (tmp_path / "bad.csv").write_text("run,model\nx,y\n")
    with pytest.raises(ValueError, match=r"bad\.csv has no column family, recipe"):
        compare(scores, tmp_path / "bad.csv")


@pytest.mark.parametrize("values", [[1, 0, 0], [1], [0.5, 1], [10], [100], [11.0], [-1.25e-10], [10, 11]])
def test_items_come_back_from_their_field(values):
    assert decode(encode(values)).tolist() == values


@pytest.mark.parametrize("several", ["a", "b"])
def test_recipes_without_a_common_seed_are_compared_by_the_first_of_each(several):
    """The mean over two seeds had stood beside a test of the first alone, and the other way round beside none."""
    seeds = {"a": [(5, 0.5)], "b": [(7, 0.5)]} | {several: [(0, 0.5), (2, 0.9)]}
    sides = [made(name, [(name, s, "t", v, 0.05) for s, v in seeds[name]], n=100, **ACC) for name in "ab"]
    (found,) = differences(*sides, over_seeds=True)
    assert (found.value_a, found.value_b, found.p, found.test) == (0.5, 0.5, 1.0, "Fisher")
    assert found.seed == " and ".join(str(seeds[name][0][0]) for name in "ab")
