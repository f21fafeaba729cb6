"""The data of the lattice figure comes out of real packed files and is what the method's formula says."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
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
    from r2q.config import parse
    from tests.units import quantize

    root = tmp_path_factory.mktemp("units")

    def config(recipes=RECIPES, **lattice):
        path = root / "config.yaml"
        text = {"run": "x", "models": {"qwen": {"path": str(MODEL)}}, "recipes": recipes, "tasks": {"mini_facts": None}}
        resolved = parse(text | {"figures": {"lattice": lattice}}, "test").resolved()  # as the workflow writes it
        path.write_text(yaml.safe_dump(resolved, sort_keys=False))
        return path

    prepared = root / "prepared.json"
    prepared.write_text('{"models": {"qwen": {"fingerprint": "f", "family": "qwen3"}}}')
    quantize(config(), prepared, "qwen", ["rtn-g64", "r2q-g64"], root / "qwen")
    return root, config


def test_weights_and_levels_of_the_group_asked_for(units):
    from safetensors import safe_open

    from r2q.models.inspect import lattice

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


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"layer": LAYER.replace("down", "dawn")}, rf"qwen has no layer .*; nearest valid: {LAYER}"),
        ({"layer": LAYER, "row": 128}, "rows 0 to 127 and groups 0 to 5, not row 128, group 0"),
        ({"layer": LAYER, "group": 6}, "rows 0 to 127 and groups 0 to 5, not row 0, group 6"),
    ],
)
def test_what_is_not_there_is_named(units, place, message):
    from r2q.models.inspect import lattice

    root, config = units
    with pytest.raises(ValueError, match=message):
        lattice(config(**place), root, root / "none.csv")
    assert not (root / "none.csv").exists()


def test_two_recipes_of_one_granularity_are_needed(units):
    from r2q.models.inspect import lattice

    root, config = units
    path = config(recipes={name: RECIPES[name] for name in ("rtn-channel", "rtn-clip-g64", "r2q-g64")})
    with pytest.raises(ValueError, match="needs for qwen a recipe rtn and a recipe r2q with default options"):
        lattice(path, root, root / "none.csv")


def test_a_missing_unit_is_named(units):
    from r2q.models.inspect import lattice

    root, config = units
    with pytest.raises(FileNotFoundError, match=r"elsewhere/qwen/rtn-g64/seed0/report\.json"):
        lattice(config(), root / "elsewhere", root / "none.csv")
