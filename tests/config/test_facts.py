"""What a recipe is follows from what it asks for: renaming all recipes changes nothing."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from r2q.config import describe_recipe, load, parse, read_yaml
from r2q.kept import ROOT
from tests.configs import config_of


def described(data: dict[str, Any]) -> list[Any]:
    config = parse(data, "x.yaml")
    return [dataclasses.asdict(describe_recipe(config, name)) for name in config.recipes]


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.stem)
def test_names_of_recipes_mean_nothing(path: Any) -> None:
    data = read_yaml(path)
    shuffled = random.Random(0).sample(list(data["recipes"]), len(data["recipes"]))
    pairs = zip(data["recipes"], shuffled, strict=True)
    # the name of another recipe, without the granularity that a name has to agree with
    new = {old: f"{other.rsplit('-', 1)[0]}-x" + str(i) for i, (old, other) in enumerate(pairs)}
    renamed = read_yaml(path)
    renamed["recipes"] = {new[name]: entry for name, entry in renamed["recipes"].items()}
    for entry in renamed["recipes"].values():
        if (entry.get("options") or {}).get("start") in new:
            entry["options"] = entry["options"] | {"start": new[entry["options"]["start"]]}
    for model in renamed["models"].values():
        if "recipes" in model:
            model["recipes"] = [new[name] for name in model["recipes"]]
    if "latency" in renamed:
        renamed["latency"]["recipes"] = [new[name] for name in renamed["latency"]["recipes"]]
    assert described(renamed) == described(data)


@pytest.mark.parametrize(
    ("recipe", "frame", "label", "control"),
    [
        ({"method": "full_precision"}, None, "full_precision", True),
        ({"method": "random_codes"}, None, "random_codes", True),
        ({"method": "rtn"}, None, "rtn", False),
        ({"method": "rtn", "options": {"clip": "none", "steps": 81}}, None, "rtn", False),
        ({"method": "rtn", "options": {"clip": "mse"}}, None, "rtn-clip", False),
        ({"method": "baselines.rtn.RTN", "options": {"clip": "mse"}}, None, "rtn-clip", False),
        ({"method": "r2q.quantization.residual.R2Q"}, None, "r2q", False),
        ({"method": "r2q", "options": {"refine": "optimal"}}, None, "r2q-optimal", False),
        ({"method": "awq", "options": {"clip": False}}, None, "awq-no-clip", False),
        ({"method": "gptq"}, "gptq", "rtn", False),
        ({"method": "gptq", "options": {"quantizer": "random_codes"}}, "gptq", "random_codes", True),
        ({"method": "bitdistiller"}, "bitdistiller", "rtn", False),
        ({"method": "bitdistiller", "options": {"start": "clip"}}, "bitdistiller", "rtn (clipped start)", False),
        ({"method": "qat_ce", "options": {"start": "search"}}, "qat_ce", "rtn (rtn-clip start)", False),
        (
            {"method": "bitdistiller", "options": {"quantizer": "r2q", "quantizer_options": {"refine": "alternating"}}},
            "bitdistiller",
            "r2q-alternating",
            False,
        ),
    ],
)
def test_labels(recipe: dict[str, Any], frame: str | None, label: str, control: bool) -> None:
    others = {
        "clip": {"method": "bitdistiller_clip", "granularity": "g64"},
        "search": {"method": "rtn", "granularity": "g64", "options": {"clip": "mse"}},
    }
    own = recipe if recipe["method"] == "full_precision" else recipe | {"granularity": "g64"}
    data = config_of({"r2q-anything": own, **others}, calibration={"path": "a.txt"})
    data |= {"training": {"texts": [{"path": "b.txt", "rows": 400}]}}
    facts = describe_recipe(parse(data, "x.yaml"), "r2q-anything")
    assert (facts.frame, facts.label, facts.control) == (frame, label, control)


def test_classes_of_the_same_name_have_labels_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of a method of yours: by one label, claims and figures had shown the first for both."""
    text = (ROOT / "baselines" / "random_codes.py").read_text()
    for module, name in {"version_one": "Mine", "version_two": "Mine", "version_three": "Other"}.items():
        (tmp_path / f"{module}.py").write_text(text.replace("RandomCodes", name))
    monkeypatch.syspath_prepend(tmp_path)
    entries = {
        "a": {"method": "version_one.Mine", "granularity": "g64"},
        "b": {"method": "gptq", "granularity": "g64", "options": {"quantizer": "version_two.Mine"}},
        "c": {"method": "version_three.Other", "granularity": "g64"},
    }
    config = parse(config_of(entries, calibration={"path": "a.txt"}), "x.yaml")
    labels = [describe_recipe(config, name).label for name in entries]
    assert labels == ["version_one.Mine", "version_two.Mine", "Other"]


def test_numbers_that_differ_are_settings_not_variants() -> None:
    config = load(ROOT / "config" / "embedded.yaml")
    facts = describe_recipe(config, "bitdistiller-r2q-alternating-g64")
    assert (facts.label, facts.settings) == ("r2q-alternating", {"rounds": 3})


def test_a_stochastic_quantizer_makes_gptq_stochastic() -> None:
    recipes = {
        name: {"method": "gptq", "granularity": "g64", "options": {"quantizer": name}}
        for name in ("rtn", "random_codes")
    }
    config = parse(config_of(recipes, seeds=[0, 1], calibration={"path": "a.txt"}), "x.yaml")
    assert config.units("tiny") == [("rtn", 0), ("random_codes", 0), ("random_codes", 1)]
    assert {info.path.name for info in config.methods_of("rtn")} == {"gptq.py", "rtn.py"}
