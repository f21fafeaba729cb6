"""Gathered records of training and their figures."""

from pathlib import Path

import pytest

from r2q.records import Drift, Gradient, Step, columns, read_csv
from r2q.report.claims import claims
from r2q.report.collect import collect
from r2q.report.figures import figure
from r2q.report.run import Run
from r2q.report.tables import table
from r2q.report.training import gather_training
from tests.report.conftest import Run as Made
from tests.report.trained import diverge


def test_records_are_gathered_in_order(results: Path) -> None:
    gather_training(results / "config.yaml", results)
    steps, layers = Run(results).steps, Run(results).drift
    assert len(steps) == 5 * 4 * 9
    assert list(dict.fromkeys(steps["quantizer"])) == ["r2q", "rtn"]
    first = steps.iloc[1]
    assert (first["model"], first["step"], first["loss"]) == ("one", 1, 4.0)
    assert steps["held_out_loss"].notna().sum() == 2 * 5 * 4
    assert list(layers["block"][:5]) == [0, 1, 2, 3, 4]
    assert layers["block"].isna()[5]  # the head
    (results / "one/bitdistiller-r2q-g64/seed1/training/training.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"seed1/training/training\.csv"):
        gather_training(results / "config.yaml", results)


def test_gradients_of_the_layers_are_gathered(results: Path) -> None:
    gather_training(results / "config.yaml", results)
    lines = (results / "gradients.csv").read_text().splitlines()
    assert lines[0] == "run,model,recipe,frame,quantizer,granularity,seed,steps,step,layer,block,kind,gradient_norm"
    of_unit = [line.split(",") for line in lines if line.startswith("test,one,bitdistiller-r2q-channel,")]
    assert [[line[6], line[8]] for line in of_unit] == [
        [seed, step] for seed in "012" for step in "48" for _ in range(5)
    ]
    assert [line[10:12] for line in of_unit[5:10]] == [[block, "up_proj"] for block in "01234"]
    assert of_unit[5][:6] == ["test", "one", "bitdistiller-r2q-channel", "bitdistiller", "r2q", "channel"]
    assert [float(line[12]) for line in of_unit[:6]] == [2.0] * 5 + [4.0]  # half of the step
    assert len(lines) == 1 + 5 * 4 * 2 * 5
    (results / "one/bitdistiller-r2q-g64/seed1/training/gradients.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"seed1/training/gradients\.csv"):
        gather_training(results / "config.yaml", results)


def test_a_unit_that_diverged_keeps_its_steps(results: Path) -> None:
    diverge(results, "two", "bitdistiller-rtn-g64", steps=5)
    diverge(results, "three", "bitdistiller-rtn-g64", steps=-1)
    gather_training(results / "config.yaml", results)
    unit = "test,two,bitdistiller-rtn-g64,"
    assert (results / "training.csv").read_text().count(unit) == 6
    assert (results / "gradients.csv").read_text().count(unit) == 5  # of step 4
    assert unit not in (results / "drift.csv").read_text()
    assert "test,three,bitdistiller-rtn-g64," not in (results / "training.csv").read_text()
    assert len(Run(results).drift) == (5 * 4 - 2) * 6


def test_a_run_that_trains_nothing_has_records_without_rows_that_all_readers_take(run: Made, tmp_path: Path) -> None:
    collect(run.config_path, run.results)
    gather_training(run.config_path, run.results)
    for name, kind in (("training", Step), ("gradients", Gradient), ("drift", Drift)):
        assert list(read_csv(run.results / f"{name}.csv", kind)) == columns(kind)
        assert read_csv(run.results / f"{name}.csv", kind).empty
    table(run.results, tmp_path)
    claims(run.results, tmp_path / "claims")
    assert "trained no model" in (tmp_path / "claims.md").read_text()
    for name in ("training-paper", "training-all", "drift"):
        figure(name, run.results, tmp_path / name)
