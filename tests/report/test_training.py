"""Gathered records of training, their figures, and the claims that are held against them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from r2q.report import claims as claims_module
from r2q.report import drift, training_curves
from r2q.report.claims import claims, judge, student
from r2q.report.scores import COLUMNS, write_csv
from r2q.report.training import STEP_COLUMNS as GATHERED
from r2q.report.training import gather_training, quantizer_label, read_drift, read_steps
from r2q.training.state import DRIFT_COLUMNS, STEP_COLUMNS

GRANULARITIES = ("g64", "channel")
LAYERS = [f"model.layers.{i}.mlp.up_proj" for i in range(5)]
FACTOR = {"r2q": 0.5, "rtn": 1.0}  # R2Q has half of everything
SEEDS = {"one": [0, 1, 2], "two": [0], "three": [0]}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three models, two quantizers at two granularities; model `one` with three seeds that differ a little."""
    recipes = {
        f"bitdistiller-{q}-{g}": {"method": "bitdistiller", "granularity": g, "options": {"quantizer": q}}
        for g in GRANULARITIES
        for q in FACTOR
    }
    config = {
        "run": "test",
        "models": {name: {"path": "a/b", "seeds": seeds} for name, seeds in SEEDS.items()},
        "recipes": {"rtn-g64": {"method": "rtn", "granularity": "g64"}} | recipes,
        "training": {"texts": [{"path": "a.txt", "rows": 9}]},
        "tasks": {"task": {}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    scores = []
    for model, seeds in SEEDS.items():
        for name, entry in recipes.items():
            quantizer, granularity = str(entry["options"]["quantizer"]), str(entry["granularity"])  # type: ignore[index]
            for seed in seeds:
                write_unit(tmp_path / model / name / f"seed{seed}", quantizer, granularity, 1 + 0.01 * seed)
                value = {"r2q": 0.75, "rtn": 0.5}[quantizer] - (0.25 if granularity == "channel" else 0.0)
                row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"run": "test", "model": model, "recipe": name}
                row |= {"seed": seed, "task": "task", "metric": "acc", "value": value + 0.01 * seed, "stderr": 0.03}
                row |= {"higher_is_better": True, "in_table": True, "status": "ok", "granularity": granularity}
                scores.append(row)
    write_csv(tmp_path / "scores.csv", COLUMNS, scores)
    return tmp_path


def write_unit(folder: Path, quantizer: str, granularity: str, scale: float) -> None:
    (folder / "training").mkdir(parents=True)
    report = {"method": "bitdistiller", "granularity": granularity, "options": {"quantizer": quantizer}}
    (folder / "report.json").write_text(json.dumps(report | {"status": "ok"}))
    factor = FACTOR[quantizer] * scale
    with (folder / "training" / "training.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, STEP_COLUMNS)
        writer.writeheader()
        writer.writerow({"step": 0, "tokens": 0, "held_out_loss": 4 * factor})
        for step in range(1, 9):
            norm = factor * (2.0 if step % 2 else 1.0)
            row = {"step": step, "loss": factor * 8 / step, "gradient_norm": norm, "tokens": step}
            writer.writerow(row | ({"held_out_loss": factor} if step == 8 else {}))
    with (folder / "training" / "drift.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, DRIFT_COLUMNS)
        writer.writeheader()
        for layer in [*LAYERS, "lm_head"]:
            row = {"layer": layer, "weights": 10, "power": 2.0, "latent_before": 0.0, "latent_after": 0.1 * factor}
            inside = {"quantized_before": 0.8 * factor, "quantized_after": 0.4 * factor}
            writer.writerow(row | (inside if layer != "lm_head" else {}))


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


def test_a_unit_that_diverged_keeps_its_steps(results: Path) -> None:
    folder = results / "two/bitdistiller-rtn-g64/seed0"
    report = json.loads((folder / "report.json").read_text()) | {"status": "failed", "error": "diverged at step 9"}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "training" / "drift.csv").unlink()
    gather_training(results / "config.yaml", results)
    steps, layers = read_steps(results / "training.csv"), read_drift(results / "drift.csv")
    chosen = {"model": "two", "recipe": "bitdistiller-rtn-g64"}
    assert len(steps[(steps[list(chosen)] == pd.Series(chosen)).all(axis=1)]) == 9
    assert not (layers[list(chosen)] == pd.Series(chosen)).all(axis=1).any()


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
    assert set(frame[frame["depth"] == "head"]["kind"]) == {"latent"}


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    write_csv(tmp_path / "training.csv", GATHERED, [])
    with pytest.raises(ValueError, match="no training steps"):
        training_curves.plot(tmp_path / "training.csv", tmp_path / "a")


def test_claims_have_differences_intervals_and_verdicts(results: Path) -> None:
    gather_training(results / "config.yaml", results)
    claims(results / "training.csv", results / "drift.csv", results / "scores.csv", results / "claims")
    rows = pd.read_csv(results / "claims.csv")
    overall = rows[(rows["model"] == "all") & (rows["granularity"] == "g64")].set_index("claim")
    for claim in (
        "lower mean gradient norm",
        "lower loss at equal steps",
        "smaller drift",
        "ends closer to the teacher",
    ):
        row = overall.loc[claim]
        assert row["difference"] == pytest.approx(0.5)
        assert (row["verdict"], row["n"], row["over"]) == ("supported", 3, "models")
    assert overall.loc["higher average score", "difference"] == pytest.approx(25)
    assert overall.loc["higher average score", "verdict"] == "supported"
    assert overall.loc["less fluctuation", "difference"] == pytest.approx(1.0)  # the same zigzag
    assert overall.loc["less fluctuation", "verdict"] == "undecided"
    one = rows[(rows["claim"] == "higher average score") & (rows["model"] == "two") & (rows["granularity"] == "g64")]
    assert one.iloc[0]["over"] == "items"
    assert one.iloc[0]["high"] - one.iloc[0]["low"] == pytest.approx(2 * 1.96 * 100 * 0.03 * math.sqrt(2))
    alone = rows[(rows["claim"] == "smaller drift") & (rows["model"] == "two")].iloc[0]
    assert (alone["verdict"], alone["n"]) == ("undecided", 1)
    lost = rows[(rows["claim"] == "less degradation from fine to coarse") & (rows["model"] == "all")].iloc[0]
    assert (lost["granularity"], lost["verdict"]) == ("g64 to channel", "undecided")
    page = (results / "claims.md").read_text()
    assert "## All models" in page
    assert "0.500×" in page


def test_a_claim_that_does_not_hold_is_not_supported(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "OURS", "rtn")
    monkeypatch.setattr(claims_module, "RIVAL", "r2q")
    gather_training(results / "config.yaml", results)
    steps, layers = read_steps(results / "training.csv"), read_drift(results / "drift.csv")
    claim = claims_module.Claim("lower loss", "loss", True, True, ("r2q",))
    units = claims_module._of(steps[steps["step"] > 0], claims_module._last_loss)
    rows = [row for row in claims_module._rows(claim, units, "r2q") if row["model"] == "all"]
    assert {row["verdict"] for row in rows} == {"not supported"}
    assert rows[0]["difference"] == pytest.approx(2.0)
    assert list(judge(steps, layers, claims_module.read_scores(results / "scores.csv")))


def test_students_interval() -> None:
    """1, 2, 3: mean 2, deviation 1, so 4.303 / sqrt(3) on each side."""
    assert student([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert student([1.0])[0] == 1.0
    assert math.isnan(student([1.0])[1])
