"""compare: differences with standard errors, rows of one run only, and what else differed."""

from __future__ import annotations

import math

import pytest

from r2q.report.collect import collect
from r2q.report.compare import compare


@pytest.fixture
def two(make_run):
    """Two equal runs, to be changed and then collected."""
    return make_run("a", models=("mini-llama",)), make_run("b", models=("mini-llama",))


def compared(two, capsys, out=None):
    for run in two:
        collect(run.config_path, run.results)
    rows = compare(two[0].results / "scores.csv", two[1].results / "scores.csv", out)
    return rows, capsys.readouterr().out


def test_identical_runs(two, capsys):
    rows, printed = compared(two, capsys)
    assert len(rows) == 16
    assert (rows["difference"] == 0).all()
    assert (rows["z"] == 0).all()
    assert (rows["p"] == 1).all()
    assert "16 numbers in both, 16 equal to the last digit, 0 differ." in printed
    assert "Code, config, data, weights, versions and device are the same." in printed


def test_known_difference(two, capsys, tmp_path):
    two[1].unit("mini-llama", "r2q-g64", shift=0.1)
    rows, printed = compared(two, capsys, tmp_path / "c.csv")
    moved = rows[rows["difference"] != 0]
    assert set(moved["recipe"]) == {"r2q-g64"}
    assert set(moved["task"]) == {"mini_facts", "mini_who"}
    assert moved["difference"].to_list() == pytest.approx([0.1] * 3)  # b - a
    assert moved["stderr"].to_list() == pytest.approx([math.sqrt(0.02**2 + 0.02**2)] * 3)
    assert moved["z"].to_list() == pytest.approx([3.5355339] * 3)
    assert moved["p"].to_list() == pytest.approx([4.0695e-4] * 3, rel=1e-4)  # two-sided, from a table
    assert set(moved["flag"]) == {">2 se"}
    assert "3 of 3 differences are above 2 stderr" in printed
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0].startswith(
        "model,recipe,seed,task,metric,where,value_a,value_b,difference,stderr_a,stderr_b,stderr,z"
    )
    assert len(lines) == 17


def test_small_difference_is_not_flagged(two, capsys):
    two[1].unit("mini-llama", "r2q-g64", shift=0.05)  # 1.8 standard errors
    rows, printed = compared(two, capsys)
    assert (rows["flag"] == "").all()
    assert "0 of 3 differences" in printed


def test_score_without_stderr_has_no_z(two, capsys):
    for run in two:
        collect(run.config_path, run.results)
        (run.results / "collected.sha256").unlink()
    for run, value in zip(two, ("10.0", "11.0"), strict=True):
        path = run.results / "scores.csv"
        path.write_text(
            path.read_text().replace("mini_text,word_perplexity,10.0,0.5,", f"mini_text,word_perplexity,{value},,")
        )
    rows = compare(two[0].results / "scores.csv", two[1].results / "scores.csv")
    row = rows[(rows["recipe"] == "full-precision") & (rows["task"] == "mini_text")].iloc[0]
    assert row["difference"] == 1.0
    assert math.isnan(row["z"])
    assert row["flag"] == "no stderr"


def test_rows_of_one_run_only(two, capsys):
    two[1].fail("mini-llama", "rtn-g64", "weights are not finite")
    rows, printed = compared(two, capsys)
    assert rows["where"].value_counts().to_dict() == {"both": 12, "only a": 4, "only b": 1}
    assert rows.loc[rows["where"] != "both", "difference"].isna().all()
    assert "only a, 4 rows:\n  mini-llama rtn-g64 seed0: mini_text word_perplexity, mini_facts acc" in printed
    assert "only b, 1 rows:\n  mini-llama rtn-g64 seed0: failed: weights are not finite" in printed


def test_provenance_differences(make_run, capsys):
    two = make_run("a", models=("mini-llama",)), make_run("b", models=("mini-llama",), limits={"items": 5})
    two[1].change("mini-llama", "rtn-g64", "evaluation.json", versions={"torch": "2.11.0", "lm_eval": "0.4.13"})
    printed = compared(two, capsys)[1]
    assert "  config.tasks.mini_facts.items: null -> 5\n" in printed  # of all units
    assert "  versions.evaluate.torch: 2.13.0 -> 2.11.0   (mini-llama rtn-g64)\n" in printed
    assert "lm_eval" not in printed.split("What else differs")[1]


def test_without_provenance_it_says_so(two, capsys):
    for run in two:
        collect(run.config_path, run.results)
    (two[0].results / "provenance.json").unlink()
    compare(two[0].results / "scores.csv", two[1].results / "scores.csv")
    assert "whether code, config, data or versions differ is not known" in capsys.readouterr().out


def test_missing_file_and_column(two, tmp_path):
    collect(two[0].config_path, two[0].results)
    (two[0].results / "collected.sha256").unlink()
    scores = two[0].results / "scores.csv"
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.csv"):
        compare(scores, tmp_path / "nowhere.csv")
    (tmp_path / "bad.csv").write_text("run,model\nx,y\n")
    with pytest.raises(ValueError, match=r"bad\.csv has no column family, recipe"):
        compare(scores, tmp_path / "bad.csv")


def test_a_number_given_twice_is_refused(two):
    collect(two[0].config_path, two[0].results)
    (two[0].results / "collected.sha256").unlink()
    scores = two[0].results / "scores.csv"
    scores.write_text(scores.read_text() + scores.read_text().splitlines()[1] + "\n")
    with pytest.raises(
        ValueError, match=r"two rows for model mini-llama, recipe full-precision, seed 0, task mini_text"
    ):
        compare(scores, scores)
