"""Gathered records of training and their figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from r2q.report.scores import write_csv

from r2q.report import drift, training_curves
from r2q.report.training import STEP_COLUMNS as GATHERED
from r2q.report.training import gather_training, quantizer_label, read_drift, read_steps
from tests.report.trained import diverge


def test_records_are_gathered_in_order(results: Path) -> None:
    gather_training(results / "config.yaml", results)
    steps, layers = read_steps(results / "training.csv"), read_drift(results / "drift.csv")
    assert len(steps) == 5 * 4 * 9
    assert list(dict.fromkeys(steps["quantizer"])) == ["r2q", "rtn"]
    first = steps.iloc[1]
    assert (first["model"], first["step"], first["loss"]) == ("one", 1, 4.0)
    assert steps["held_out_loss"].notna().sum() == 2 * 5 * 4
    assert list(layers["depth"][:6]) == ["0", "1", "2", "-2", "-1", "head"]
    (results / "one/bitdistiller-r2q-g64/seed1/training/training.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"seed1/training/training\.csv"):
        gather_training(results / "config.yaml", results)


def test_gradients_of_the_layers_are_gathered(results: Path) -> None:
    gather_training(results / "config.yaml", results)
    lines = (results / "gradients.csv").read_text().splitlines()
    assert lines[0] == "run,model,recipe,frame,quantizer,granularity,seed,step,layer,depth,gradient_norm"
    of_unit = [line.split(",") for line in lines if line.startswith("test,one,bitdistiller-r2q-channel,")]
    assert [line[6:8] for line in of_unit] == [[seed, step] for seed in "012" for step in "48" for _ in range(5)]
    assert [line[9] for line in of_unit[5:10]] == ["0", "1", "2", "-2", "-1"]
    assert of_unit[5][:6] == ["test", "one", "bitdistiller-r2q-channel", "bitdistiller", "r2q", "channel"]
    assert [float(line[10]) for line in of_unit[:6]] == [2.0] * 5 + [4.0]  # half of the step
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
    assert len(read_drift(results / "drift.csv")) == (5 * 4 - 2) * 6


@pytest.mark.parametrize(
    ("recipe", "quantizer", "label"),
    [
        ("bitdistiller-r2q-g64", "r2q", "r2q"),
        ("bitdistiller-rtn-clip-g64", "rtn", "rtn-clip"),
        ("mine", "r2q", "r2q"),
    ],
)
def test_the_quantizers_label_comes_from_the_recipes_name(recipe: str, quantizer: str, label: str) -> None:
    found = quantizer_label(recipe, {"granularity": "g64", "options": {"quantizer": quantizer}})
    assert found == label


def test_the_training_figure_draws_means_and_ranges(results: Path, tmp_path: Path) -> None:
    gather_training(results / "config.yaml", results)
    training_curves.plot(results / "training.csv", tmp_path / "a")
    frame = pd.read_csv(tmp_path / "a.csv")
    row = frame[(frame["model"] == "one") & (frame["quantizer"] == "rtn") & (frame["step"] == 2)].iloc[0]
    assert (row["measure"], row["seeds"]) == ("gradient_norm", 3)
    assert [row["low"], row["mean"], row["high"]] == pytest.approx([1.0, 1.01, 1.02])
    training_curves.plot(results / "training.csv", tmp_path / "b")
    for ending in ("png", "svg"):
        content = (tmp_path / f"a.{ending}").read_bytes()
        assert content == (tmp_path / f"b.{ending}").read_bytes()
        assert len(content) > 5000


def test_the_drift_figure_draws_relative_distances(results: Path, tmp_path: Path) -> None:
    gather_training(results / "config.yaml", results)
    drift.plot(results / "drift.csv", tmp_path / "a")
    frame = pd.read_csv(tmp_path / "a.csv", dtype={"depth": str})
    assert list(dict.fromkeys(frame["depth"])) == drift.DEPTHS  # the middle block is left out
    two = frame[(frame["model"] == "two") & (frame["quantizer"] == "rtn") & (frame["depth"] == "0")]
    quantized = two[two["kind"] == "quantized"].iloc[0]
    assert [quantized["before"], quantized["after"]] == pytest.approx([0.4, 0.2])
    moved = two[two["kind"] == "moved"].iloc[0]
    assert [moved["before"], moved["after"]] == pytest.approx([0, 0.05])
    assert set(frame[frame["depth"] == "head"]["kind"]) == {"latent", "moved"}


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    write_csv(tmp_path / "training.csv", GATHERED, [])
    with pytest.raises(ValueError, match="no training steps"):
        training_curves.plot(tmp_path / "training.csv", tmp_path / "a")
