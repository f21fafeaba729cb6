"""Claims held against numbers that were worked out by hand: intervals, verdicts, and the page."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from r2q.kept import write_json
from r2q.report.claims import Claim, _rows, claims, judge
from r2q.report.claims import markdown as claims_page
from r2q.report.claims.measures import divergences, measure, trained_units
from r2q.report.run import Run
from r2q.report.training import gather_training
from tests.report.trained import diverge, unit

LOWER = Claim("lower", "number", ratio=True, below=True)
HIGHER = Claim("higher", "points", ratio=False, below=False)


def judged(results: Path) -> pd.DataFrame:
    gather_training(results / "config.yaml", results)
    claims(results, results / "claims")
    return pd.read_csv(results / "claims.csv")


def page(results: Path) -> str:
    return (results / "claims.md").read_text()


def over_all(claim: Claim, changes: dict[str, list[float]]) -> dict[str, Any]:
    """The row over all models where R2Q has exp(change) times, or change points more than, the other's number."""
    units = []
    for model, of_seeds in changes.items():
        for seed, change in enumerate(of_seeds):
            units += [unit("rtn", 10.0, model, seed), unit("r2q", 10 + change, model, seed)]
            if claim.ratio:
                units[-1] = unit("r2q", 10 * math.exp(change), model, seed)
    return next(row for row in _rows(claim, units, "r2q", "rtn") if row["model"] == "all")


def test_a_ratio_is_the_mean_of_logarithms_over_models() -> None:
    """-0.1, -0.2, -0.6: mean -0.3, deviation sqrt(0.07), so 4.303 sqrt(0.07 / 3) = 0.6573 on each side."""
    row = over_all(LOWER, {"a": [-0.1], "b": [-0.2], "c": [-0.6]})
    assert [row["difference"], row["low"], row["high"]] == pytest.approx([0.7408, 0.3839, 1.4294], abs=1e-4)
    assert (row["verdict"], row["n"], row["over"], row["claimed"]) == ("undecided", 3, "models", "below 1")


def test_each_model_counts_once_however_many_seeds_it_has() -> None:
    """Model a: -0.3 ± 0.1 over three seeds; b: -0.5. Mean -0.4, deviation 0.1414, so 12.706 * 0.1 on each side."""
    row = over_all(HIGHER, {"a": [-0.2, -0.3, -0.4], "b": [-0.5]})
    assert [row["difference"], row["low"], row["high"]] == pytest.approx([-0.4, -1.6706, 0.8706], abs=1e-4)
    assert row["n"] == 2


@pytest.mark.parametrize(
    ("claim", "changes", "verdict"),
    [
        (LOWER, (-1.0, -1.1, -1.2), "supported"),
        (LOWER, (1.0, 1.1, 1.2), "not supported"),
        (LOWER, (-1.0, 1.1, -1.2), "undecided"),
        (HIGHER, (5.0, 5.1, 5.2), "supported"),
        (HIGHER, (-5.0, -5.1, -5.2), "not supported"),
        (LOWER, (1e-14, 1e-14, 1e-14), "undecided"),  # equal but for the rounding of floats
        (HIGHER, (1e-13, 1e-13, 1e-13), "undecided"),
    ],
)
def test_verdicts(claim: Claim, changes: tuple[float, ...], verdict: str) -> None:
    assert over_all(claim, {str(i): [change] for i, change in enumerate(changes)})["verdict"] == verdict


def test_units_are_paired_by_seed_and_a_lost_one_is_named() -> None:
    """Seeds 0 and 2 of R2Q have partners; the one of seed 1 diverged, and of seed 3 there is none."""
    ours = [unit("r2q", value, seed=seed) for seed, value in enumerate([1.0, 100.0, 3.0, 100.0])]
    theirs = [unit("rtn", 3.0, seed=2), unit("rtn", math.nan, seed=1), unit("rtn", 1.0, seed=0)]
    (row,) = _rows(LOWER, [*ours, *theirs], "r2q", "rtn")
    assert (row["difference"], row["n"], row["missing"]) == (pytest.approx(1.0), 2, "m seed 1")
    (lonely,) = _rows(LOWER, [unit("r2q", 1.0), unit("rtn", math.nan)], "r2q", "rtn")
    assert (lonely["difference"], lonely["n"], lonely["verdict"], lonely["missing"]) == (None, 0, "undecided", "m")
    (zero,) = _rows(LOWER, [unit("r2q", 1.0), unit("rtn", 0.0)], "r2q", "rtn")
    assert (zero["difference"], zero["missing"]) == (None, "m")
    assert not list(_rows(LOWER, ours, "r2q", "rtn"))


def test_a_single_seed_has_an_interval_over_items() -> None:
    (row,) = _rows(HIGHER, [unit("r2q", 60.0, error=3.0), unit("rtn", 50.0, error=4.0)], "r2q", "rtn")
    assert [row["low"], row["high"]] == pytest.approx([10 - 9.8, 10 + 9.8], abs=1e-3)  # 1.96 * 5
    assert (row["over"], row["verdict"]) == ("items", "supported")
    (alone,) = _rows(HIGHER, [unit("r2q", 60.0), unit("rtn", 50.0)], "r2q", "rtn")
    assert (alone["over"], alone["low"], alone["verdict"]) == ("seeds", None, "undecided")


@pytest.mark.parametrize(("models", "seeds", "error"), [(1, 2, 30.0), (2, 1, 21.2132), (2, 2, 21.2132)])
def test_seeds_or_models_that_moved_alike_have_an_interval_over_items(models: int, seeds: int, error: float) -> None:
    """Ten points each, which items of a standard error of 30 cannot tell from none; a point of no width could.

    Seeds answer the same items, models each their own. Nor have they a spread to say what would be found.
    """
    units = [
        unit(name, value, f"model {model}", seed, error=e)
        for model in range(models) for seed in range(seeds)
        for name, value, e in (("r2q", 60.0, 18.0), ("rtn", 50.0, 24.0))
    ]  # fmt: skip
    *_, row = _rows(HIGHER, units, "r2q", "rtn")
    assert row["model"] == ("all" if models > 1 else "model 0")
    half = 1.959964 * error
    assert [row["low"], row["high"]] == pytest.approx([10 - half, 10 + half], abs=1e-3)
    assert (row["n"], row["over"], row["verdict"], row["detectable"]) == (2, "items", "undecided", None)
    assert claims_page._source(row) == ("2 models" if models > 1 else "2 seeds")


def test_a_single_seed_has_an_interval_over_windows() -> None:
    """KL of 2 and 1 nats with standard errors of 0.06 and 0.04: 0.03 and 0.04 of their logarithms, 0.05 together.

    Of three windows Student's factor is 4.303.
    """
    scores = pd.DataFrame(
        [
            {"model": "m", "recipe": name, "seed": 0, "task": task, "metric": "kl", "status": "ok", "value": value,
             "stderr": error, "n": 3}
            for name, task, value, error in (
                ("ours", "fidelity", 2.0, 0.06), ("theirs", "fidelity", 1.0, 0.04), ("theirs", "other", 9.0, 0.1))
        ]
    )  # fmt: skip
    units = {("m", "ours", 0): unit("r2q", 0.0).key, ("m", "theirs", 0): unit("rtn", 0.0).key}
    (row,) = _rows(LOWER, divergences(units, scores), "r2q", "rtn")
    ends = [2.0, 2 * math.exp(-0.21513), 2 * math.exp(0.21513)]
    assert [row["difference"], row["low"], row["high"]] == pytest.approx(ends, rel=1e-3)
    assert row["verdict"] == "not supported"
    assert divergences(units, scores[scores["task"] == "other"]) == []


def test_every_claim_is_judged_over_all_models(results: Path) -> None:
    rows = judged(results)
    overall = rows[(rows["model"] == "all") & (rows["granularity"] == "g64")].set_index("claim")
    halved = ["lower mean gradient norm", "lower loss at equal steps", "smaller drift", "starts closer to the teacher",
              "closer to full precision after training", "ends closer to the teacher"]  # fmt: skip
    for claim in halved:
        row = overall.loc[claim]
        assert row["difference"] == pytest.approx(0.5)
        assert (row["verdict"], row["n"], row["over"]) == ("supported", 3, "models")
    assert overall.loc["higher average score", "difference"] == pytest.approx(25)
    for claim in ("less fluctuation", "gains more from training"):  # the same zigzag, the same quarter of the start
        assert overall.loc[claim, "difference"] == pytest.approx(1.0)
        assert overall.loc[claim, "verdict"] == "undecided"
    lost = rows[(rows["claim"] == "less degradation from fine to coarse") & (rows["model"] == "all")].iloc[0]
    assert (lost["granularity"], lost["difference"], lost["verdict"]) == ("g64 to channel", 0.0, "undecided")
    assert rows["missing"].isna().all()


def test_a_unit_that_diverged_is_missed_and_said(results: Path) -> None:
    diverge(results, "two", "bitdistiller-rtn-g64", steps=5)
    diverge(results, "one", "bitdistiller-r2q-channel", seed=1, steps=0)
    diverge(results, "three", "bitdistiller-rtn-channel", steps=-1)  # before its first record
    rows = judged(results)
    overall = rows[rows["model"] == "all"].set_index(["claim", "granularity"])
    for claim in ("lower mean gradient norm", "smaller drift", "higher average score", "starts closer to the teacher"):
        fine, coarse = overall.loc[(claim, "g64")], overall.loc[(claim, "channel")]
        assert (fine["n"], fine["missing"]) == (2, "two")
        assert (coarse["n"], coarse["missing"]) == (2, "one seed 1; three")
    assert overall.loc[("lower mean gradient norm", "g64"), "difference"] == pytest.approx(0.5)
    gone = overall.loc[("less degradation from fine to coarse", "g64 to channel")]
    assert (gone["n"], gone["missing"]) == (1, "one seed 1; two; three")
    text = page(results)
    assert "- 3 of 20 trained units diverged, failed or lack a number; they stand at the end" in text
    end = text.split("## Units that diverged, failed or lack a number")[1]
    assert "| two   | bitdistiller-rtn-g64     | 0    | diverged: step 6, loss nan |" in end
    assert "| one   | bitdistiller-r2q-channel | 1    | diverged: step 1, loss nan |" in end
    assert "| three | bitdistiller-rtn-channel | 0    | diverged: step 0, loss nan |" in end
    assert "2 models, without one seed 1; three" in text


def test_a_rival_that_always_diverged_leaves_the_claim_in_sight(results: Path) -> None:
    for model, seeds in (("one", (0, 1, 2)), ("two", (0,)), ("three", (0,))):
        for seed in seeds:
            diverge(results, model, "bitdistiller-rtn-channel", seed, steps=5)
    rows = judged(results)
    row = rows[(rows["claim"] == "lower loss at equal steps") & (rows["granularity"] == "channel")]
    assert list(row["verdict"]) == ["undecided"] * 4
    assert row["difference"].isna().all()
    shown = next(line for line in page(results).splitlines() if line.startswith("| lower loss at equal steps") and
                 "| channel" in line)  # fmt: skip
    assert [cell.strip() for cell in shown.split("|")[3:7]] == [
        "undecided", "–", "–", "0 models, without one seed 0; one seed 1; one seed 2; two; three",
    ]  # fmt: skip


def test_a_unit_whose_evaluation_failed_has_its_training_compared(results: Path) -> None:
    text = (results / "scores.csv").read_text().splitlines()
    place = next(i for i, line in enumerate(text) if ",two," in line and "bitdistiller-r2q-g64" in line)
    fields = dict(zip(text[0].split(","), text[place].split(","), strict=True))
    fields |= {"task": "", "metric": "", "value": "", "stderr": "", "in_table": "", "status": "failed", "reason": "NaN"}
    text[place] = ",".join(fields.values())
    (results / "scores.csv").write_text("\n".join(text) + "\n")
    rows = judged(results)
    overall = rows[(rows["model"] == "all") & (rows["granularity"] == "g64")].set_index("claim")
    assert overall.loc["lower loss at equal steps", "n"] == 3
    assert (overall.loc["higher average score", "n"], overall.loc["higher average score", "missing"]) == (2, "two")
    assert "| failed: NaN" in page(results)


def test_two_recipes_with_one_name_for_the_quantizer_are_not_mixed(results: Path) -> None:
    gather_training(results / "config.yaml", results)
    steps = Run(results).steps
    again = steps[steps["recipe"] == "bitdistiller-r2q-g64"].assign(recipe="faster", gradient_norm=1000.0)
    both, drift, scores = pd.concat([steps, again]), Run(results).drift, Run(results).scores
    assert list(judge(both, drift, scores, "r2q", ["rtn"])) == list(judge(steps, drift, scores, "r2q", ["rtn"]))
    units, twice = trained_units(both, scores)
    assert (len(units), twice) == (20, ["faster"])
    assert len(measure(units, both, len)) == 20


def test_codes_of_other_widths_are_not_held_against_each_other(results: Path) -> None:
    """Round to nearest of three bits at g64: R2Q of two has no rival there, and one where both have two."""
    for path in results.glob("*/bitdistiller-rtn-g64/seed*/report.json"):
        write_json(path, json.loads(path.read_text()) | {"bits": 3})
    rows = judged(results)
    equal = rows[rows["pairing"] == "granularity"]
    assert len(equal) > 0
    assert set(equal["granularity"]) == {"channel"}
    assert set(Run(results).steps["frame"]) == {"bitdistiller", "bitdistiller, 3 bits"}


@pytest.mark.parametrize(
    ("start", "end", "gain", "expected"),
    [
        ((0.5, 0.7), (0.6, 0.8), (1.0, 1.3), "kept: r2q ahead"),
        ((1.2, 1.7), (1.1, 1.5), (0.8, 1.0), "kept: r2q behind"),
        ((0.5, 0.7), (1.1, 1.5), (1.5, 3.0), "reversed: r2q behind"),
        ((1.2, 1.7), (0.5, 0.7), (0.2, 0.6), "reversed: r2q ahead"),
        ((0.5, 0.7), (0.9, 1.1), (1.2, 2.0), "lost"),
        ((1.2, 1.7), (0.9, 1.1), (0.5, 0.9), "lost"),
        ((0.5, 0.7), (0.4, 1.1), (0.8, 2.0), "undecided"),  # as much as before, for all one knows
        ((0.5, 0.7), (0.4, 1.1), (0.3, 0.9), "undecided"),  # further ahead, but less surely
        ((0.5, 1.1), (0.5, 0.7), (0.5, 0.9), "undecided"),  # no start to survive
        ((0.5, 0.7), (None, None), (None, None), "undecided"),
        ((None, None), (0.5, 0.7), (None, None), "undecided"),
    ],
)
def test_what_became_of_the_start(start: tuple, end: tuple, gain: tuple, expected: str) -> None:
    assert claims_page.survival(*({"low": low, "high": high} for low, high in (start, end, gain)), "r2q") == expected


def test_the_page_says_first_what_came_out(results: Path) -> None:
    judged(results)
    lines = page(results).splitlines()
    assert lines[0] == "# Claims of the R2Q paper about training, held against the run test"
    assert lines[2:7] == [
        "- supported 5, not supported 0, undecided 1 of 6 claims against rtn at g64",
        "- supported 5, not supported 0, undecided 1 of 6 claims against rtn at channel",
        "- supported 0, not supported 0, undecided 1 of 1 claims against rtn from g64 to channel",
        "- start against rtn at g64: kept: r2q ahead (0.500 × before and 0.500 × after training)",
        "- start against rtn at channel: kept: r2q ahead (0.500 × before and 0.500 × after training)",
    ]
    tables = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert ["claim", "granularity", "verdict", "measured", "95 % interval", "from"] in tables  # one frame: not shown
    assert ["smaller drift", "g64", "supported", "0.500 ×", "0.500 to 0.500", "3 models"] in tables
    assert ["less fluctuation", "g64", "undecided", "1.00 ×", "1.00 to 1.00", "3 models"] in tables
    assert ["higher average score", "g64", "supported", "+25.0 points", "+20.2 to +29.8", "3 models"] in tables
    head = ["against", "granularity", "verdict", "before training", "after training", "after / before",
            "average score after training", "from"]  # fmt: skip
    row = tables[tables.index(head) + 2]
    assert row[:4] == ["rtn", "g64", "kept: r2q ahead", "0.500 × (0.500 to 0.500)"]
    assert row[5:7] == ["1.00 × (1.00 to 1.00)", "+25.0 points (+20.2 to +29.8)"]
    assert ["claim", "granularity", "one", "two", "three"] in tables
    single = next(row for row in tables if row[0] == "smaller drift" and len(row) == 5)
    assert single[2:] == ["0.500 × (0.500 to 0.500), supported", "0.500 ×", "0.500 ×"]
    assert "Units that diverged" not in page(results)


def test_numbers_are_rounded_for_reading() -> None:
    def shown(claim: Claim, ours: float, theirs: float) -> str:
        (row,) = _rows(claim, [unit("r2q", ours), unit("rtn", theirs)], "r2q", "rtn")
        return claims_page.page("test", "r2q", "rtn", [row], 2, {}, [])

    for ours, text in ((0.0123456, "0.0123 ×"), (0.5, "0.500 ×"), (1.0, "1.00 ×"), (123.456, "123 ×")):
        assert f"| {text} " in shown(LOWER, ours, 1.0)
    for ours, text in ((49.96, "+0.0 points"), (48.76, "-1.2 points"), (60.0, "+10.0 points")):
        assert f"| {text} " in shown(HIGHER, ours, 50.0)


def test_a_subject_of_which_no_training_began_is_no_misspelt_one(results: Path) -> None:
    for model in ("one", "two", "three"):
        for granularity in ("g64", "channel"):
            for folder in (results / model / f"bitdistiller-rtn-{granularity}").iterdir():
                diverge(results, model, folder.parent.name, int(folder.name.removeprefix("seed")), -1)
    gather_training(results / "config.yaml", results)
    claims(results, results / "claims", "rtn", ["r2q"])
    assert "The run trained no model with both rtn and another quantizer." in page(results)
    assert page(results).count("| diverged") == 10
    with pytest.raises(ValueError, match="no recipe of the run trained with quantizer hqq; there are r2q, rtn"):
        claims(results, results / "claims", "hqq")


def test_a_run_without_rivals_says_so(results: Path) -> None:
    gather_training(results / "config.yaml", results)
    (results / "trained.sha256").unlink()  # what follows is no edit of a run's numbers, but another run
    for name in ("training", "drift", "scores"):
        path = results / f"{name}.csv"
        path.write_text("".join(line for line in path.open() if "-rtn-" not in line))
    claims(results, results / "claims")
    assert "The run trained no model with both r2q and another quantizer." in page(results)
    assert (results / "claims.csv").read_text().count("\n") == 1
