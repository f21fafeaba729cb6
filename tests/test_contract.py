"""What every method promises, checked for every recipe that a shipped config names, and at 3 and 4 bits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from r2q import config as configuration
from r2q.models.apply import apply
from r2q.models.load import load_full, load_packed
from r2q.models.save import save
from r2q.models.targets import list_targets
from r2q.quantization.method import Recipe, WeightMethod, make_method
from tests.baselines.calibrated import text
from tests.models.tiny import tiny_folder, tokens
from tests.training.rows import random_data

CONFIGS = sorted((Path(__file__).parent.parent / "config").glob("*.yaml"))


def shipped_recipes() -> list[Recipe]:
    """Every different recipe of the shipped configs, and the weight methods once more at 3 and 4 bits."""
    found: dict[str, Recipe] = {}
    for path in CONFIGS:
        for name, entry in configuration.load(path).recipes.items():
            granularity = "g32" if (entry.granularity or "").startswith("g") else entry.granularity
            for bits in {entry.bits, 3, 4} if configuration.method_info(entry.method).weight_method else {entry.bits}:
                label = f"{name.removesuffix(f'-{entry.granularity}')}-{granularity}-{bits}bit"
                options = dict(entry.options)
                if configuration.method_info(entry.method).needs == "training":
                    options |= {"steps": 2, "batch_rows": 4, "warmup_steps": 0, "start": None, "compiled": False}
                found[label] = Recipe(name, entry.method, granularity, bits, 0, options)
    return [found[label] for label in sorted(found)]


RECIPES = shipped_recipes()
QUANTIZING = [recipe for recipe in RECIPES if recipe.method != "full_precision"]
OF_ONE_WEIGHT = [r for r in QUANTIZING if r.bits == 2 and configuration.method_info(r.method).weight_method]


def label(recipe: Recipe) -> str:
    return f"{recipe.name}-{recipe.granularity}-{recipe.bits}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("full"))


def quantized(source: Path, recipe: Recipe) -> tuple[Any, list[dict[str, Any]]]:
    model = load_full(str(source))
    method = make_method(recipe)
    data = text() if method.needs == "calibration" else None
    rows = random_data() if method.needs == "training" else None
    layers, _ = apply(method, model, list_targets(model), torch.device("cpu"), data, rows)
    return model, layers


@pytest.mark.parametrize("recipe", QUANTIZING, ids=label)
def test_a_quantized_model(recipe: Recipe, source: Path, tmp_path: Path) -> None:
    """Few levels, exact size, bit-identical after a round trip; the same seed gives the same bits."""
    model, layers = quantized(source, recipe)
    assert {layer["name"] for layer in layers} == {t.name for t in list_targets(load_full(str(source)))}
    for layer in layers:
        weight = model.get_submodule(layer["name"]).quantized()
        values = replace(weight, in_scale=None).dequantize()
        for group in values.reshape(-1, values.numel() // math.prod(weight.grid.shape)):
            assert len(group.unique()) <= 2**recipe.bits
        rows, groups = weight.grid.shape
        packed_zero_rounding = 1 if "zero" in weight.grid.tensors() else 0
        formula = recipe.bits * values.numel() + rows * groups * weight.grid.side_bits
        formula += 0 if weight.in_scale is None else 16 * values.shape[-1]
        assert formula <= 8 * weight.nbytes <= formula + 7 * packed_zero_rounding
        assert layer["bits_per_weight"] == pytest.approx(formula / values.numel())
    save(model, None, tmp_path / "packed", dict(vars(recipe)))
    with torch.no_grad():
        expected = model(tokens()).logits
        assert torch.equal(load_packed(tmp_path / "packed")(tokens()).logits, expected)
    again, _ = quantized(source, recipe)
    state, other = model.state_dict(), again.state_dict()
    assert all(torch.equal(state[key], other[key]) for key in state)


@pytest.mark.parametrize("recipe", [r for r in QUANTIZING if r.bits == 2], ids=label)
def test_another_seed_changes_a_stochastic_method_only(recipe: Recipe, source: Path) -> None:
    one, _ = quantized(source, recipe)
    other, _ = quantized(source, Recipe(**dict(vars(recipe)) | {"seed": 1}))
    states = one.state_dict(), other.state_dict()
    same = all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert same != configuration.method_info(recipe.method).stochastic


@pytest.mark.parametrize("recipe", RECIPES, ids=label)
def test_the_source_is_the_class(recipe: Recipe) -> None:
    """What the config check reads from the file without running it is what the class says."""
    info, method = configuration.method_info(recipe.method), make_method(recipe)
    assert info.options.model_json_schema() == method.Options.model_json_schema()
    assert (info.needs, info.stochastic, info.version) == (method.needs, method.stochastic, method.version)
    assert info.weight_method == isinstance(method, WeightMethod)


@pytest.mark.parametrize("recipe", RECIPES, ids=label)
def test_an_unknown_option_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ValidationError, match="no_such_option"):
        make_method(Recipe(**dict(vars(recipe)) | {"options": {"no_such_option": 1}}))


@pytest.mark.parametrize("recipe", OF_ONE_WEIGHT, ids=label)
def test_weights_stay_untouched(recipe: Recipe, source: Path) -> None:
    method = make_method(recipe)
    assert isinstance(method, WeightMethod)
    weight = load_full(str(source)).model.layers[0].mlp.up_proj.weight.detach()
    before = weight.clone()
    method.quantize_weight(weight, "up_proj")
    assert torch.equal(weight, before)


@pytest.mark.parametrize("recipe", [r for r in QUANTIZING if r.bits == 2], ids=label)
def test_a_group_that_does_not_divide_is_refused_with_the_layer(recipe: Recipe, source: Path) -> None:
    odd = Recipe(**dict(vars(recipe)) | {"granularity": "g48"})
    with pytest.raises(ValueError, match=r"group size 48 does not divide the 64 input features of model\.layers\.0\."):
        quantized(source, odd)


@pytest.mark.parametrize("recipe", [r for r in QUANTIZING if r.bits == 2], ids=label)
def test_weights_that_are_not_finite_are_refused_with_the_layer(recipe: Recipe, source: Path) -> None:
    model = load_full(str(source))
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("nan")
    method = make_method(recipe)
    data = text() if method.needs == "calibration" else None
    rows = random_data() if method.needs == "training" else None
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj.*not finite"):
        apply(method, model, list_targets(model), torch.device("cpu"), data, rows)


@pytest.mark.parametrize("recipe", [r for r in OF_ONE_WEIGHT if r.method != "random_codes"], ids=label)
def test_more_bits_mean_less_error(recipe: Recipe, source: Path) -> None:
    errors = []
    for bits in (2, 3, 4):
        _, layers = quantized(source, Recipe(**dict(vars(recipe)) | {"bits": bits}))
        errors.append(sum(layer["relative_error"] for layer in layers))
    assert errors[0] > errors[1] > errors[2]


def test_full_precision_changes_nothing(source: Path, tmp_path: Path) -> None:
    model, layers = quantized(source, Recipe("full_precision", "full_precision"))
    assert layers == []
    save(model, None, tmp_path / "plain", {})
    original, copy = load_full(str(source)).state_dict(), load_packed(tmp_path / "plain").state_dict()
    assert all(torch.equal(original[key], copy[key]) for key in original)
