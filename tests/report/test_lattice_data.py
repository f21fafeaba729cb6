"""The data of the lattice figure comes out of real packed files and is what the method's formula says."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
import yaml
from safetensors import safe_open

from r2q.config import parse
from r2q.kept import ROOT
from r2q.models.inspect import lattice
from r2q.models.load import load_packed
from r2q.records import Report, read_json, write_record
from r2q.report.figures import figure
from tests.units import quantize

MODEL = ROOT / "mini" / "models" / "mini-qwen"
LAYER = "model.layers.1.mlp.down_proj"
RECIPES = {
    "rtn-channel": {"method": "rtn", "granularity": "channel"},
    "rtn-clip-g64": {"method": "rtn", "granularity": "g64", "options": {"clip": "mse"}},
    "r2q-g64": {"method": "r2q", "granularity": "g64"},
    "rtn-g64": {"method": "rtn", "granularity": "g64"},
}


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """A folder with the packed units of the two recipes that the figure must choose, and a writer of configs."""
    root = tmp_path_factory.mktemp("units")

    def config(recipes=RECIPES, recipes_shown=(), **lattice):
        lattice |= {"recipes": list(recipes_shown)}
        path = root / "config.yaml"
        text = {"run": "x", "models": {"qwen": {"path": str(MODEL)}}, "recipes": recipes, "tasks": {"mini_facts": None}}
        resolved = parse(text | {"figures": {"lattice": lattice}}, "test").resolved()  # as the workflow writes it
        path.write_text(yaml.safe_dump(resolved, sort_keys=False))
        return path

    prepared = root / "qwen/prepared.json"
    prepared.parent.mkdir()
    prepared.write_text('{"models": {"qwen": {"fingerprint": "f", "family": "qwen3"}}}')
    quantize(config(), prepared, "qwen", ["rtn-g64", "r2q-g64"], root / "qwen")
    return root, config


def test_weights_and_levels_of_the_group_asked_for(units):
    root, config = units
    lattice(config(layer=LAYER, row=5, group=2), root, root / "lattice.csv")
    data = pd.read_csv(root / "lattice.csv")
    assert list(dict.fromkeys(data["recipe"])) == ["rtn-g64", "r2q-g64"]  # equal granularity, defaults, RTN first
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        source = file.get_tensor(f"{LAYER}.weight")[5, 128:192].float().numpy()
    for recipe, rows in data.groupby("recipe"):
        assert (rows["weight"].to_numpy() == source).all(), recipe
        levels = rows[[f"level_{j}" for j in range(4)]].to_numpy()
        assert (levels[range(64), rows["code"]] == rows["quantized"]).all()
        nearest = abs(levels[0] - source[:, None].astype(float)).min(1)
        assert abs(rows["quantized"] - rows["weight"]).to_numpy() == pytest.approx(nearest)
    # R2Q's error by its identity, from the source alone; its scales are stored in 16 bits
    first = abs(source).mean()
    second = abs(abs(source) - first).mean()
    r2q = data[data["recipe"] == "r2q-g64"]
    assert ((r2q["weight"] - r2q["quantized"]) ** 2).mean() == pytest.approx(
        (source**2).mean() - first**2 - second**2, rel=1e-3
    )


def test_without_a_choice_the_group_of_median_error_is_shown(units):
    """By brute force over every group of the layer, from the packed files' decoded weights."""
    root, config = units
    lattice(config(layer=LAYER), root, root / "median.csv")
    data = pd.read_csv(root / "median.csv")
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        source = file.get_tensor(f"{LAYER}.weight").float().unflatten(-1, (-1, 64))
    errors = {}
    for recipe in ("rtn-g64", "r2q-g64"):
        decoded = load_packed(root / "qwen" / recipe / "seed0").get_submodule(LAYER).dequantize(torch.float32)
        errors[recipe] = ((decoded.view_as(source) - source) ** 2).sum(-1) / (source**2).sum(-1)
    summed = sum(errors.values()).flatten()
    row, group = data["row"].iloc[0], data["group"].iloc[0]
    here = summed[row * source.shape[1] + group]
    assert (summed < here).sum() <= len(summed) // 2 <= (summed <= here).sum()
    for recipe, error in errors.items():
        percentile = 100 * (error <= error[row, group]).float().mean().item()
        assert data["percentile"][data["recipe"] == recipe].to_numpy() == pytest.approx(percentile)
    lattice(config(layer=LAYER, row=5), root, root / "row.csv")  # of one row
    chosen = pd.read_csv(root / "row.csv").iloc[0]
    assert chosen["row"] == 5
    of_row = sum(errors.values())[5]
    assert of_row[int(chosen["group"])] == of_row.sort().values[(len(of_row) - 1) // 2]


def test_recipes_are_chosen_by_name(units):
    root, config = units
    lattice(config(recipes_shown=["r2q-g64"]), root, root / "chosen.csv")
    assert set(pd.read_csv(root / "chosen.csv")["recipe"]) == {"r2q-g64"}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"layer": LAYER.replace("down", "dawn")}, rf"qwen has no layer .*; nearest valid: {LAYER}"),
        ({"layer": LAYER, "row": 128}, r"figures\.lattice\.row: .* has rows 0 to 127, not 128"),
        ({"layer": LAYER, "group": 6}, r"figures\.lattice\.group: .* has groups 0 to 5, not 6"),
    ],
)
def test_what_is_not_there_is_named(units, place, message):
    root, config = units
    with pytest.raises(ValueError, match=message):
        lattice(config(**place), root, root / "none.csv")
    assert not (root / "none.csv").exists()


def test_two_recipes_of_one_granularity_are_needed(units):
    root, config = units
    path = config(recipes={name: RECIPES[name] for name in ("rtn-channel", "rtn-clip-g64", "r2q-g64")})
    with pytest.raises(ValueError, match="needs a recipe rtn and a recipe r2q with default options"):
        lattice(path, root, root / "none.csv")


def test_a_missing_unit_is_named(units):
    root, config = units
    shutil.copytree(root / "qwen", root / "elsewhere/qwen", ignore=shutil.ignore_patterns("*-g64"))
    with pytest.raises(FileNotFoundError, match=r"elsewhere/qwen/rtn-g64/seed0/report\.json"):
        lattice(config(), root / "elsewhere", root / "none.csv")


def test_a_unit_that_failed_is_left_out_and_the_run_goes_on(units, tmp_path, capsys):
    root, config = units
    failed = shutil.copytree(root / "qwen", tmp_path / "qwen")
    for recipe, others in (("r2q-g64", {"rtn-g64"}), ("rtn-g64", set())):
        report = failed / recipe / "seed0" / "report.json"
        write_record(report, replace(read_json(report, Report), status="failed", reason="of weights", layers=[]))
        lattice(config(), tmp_path, tmp_path / "lattice.csv")
        assert f"lattice: without {recipe} of qwen, which failed: of weights" in capsys.readouterr().out
        assert set(pd.read_csv(tmp_path / "lattice.csv")["recipe"]) == others
        for name in ("lattice", "mechanism"):
            figure(name, tmp_path, tmp_path / name)
            assert set(pd.read_csv(tmp_path / f"{name}.csv").get("recipe", [])) == (
                others if name == "lattice" else set()
            )
