"""Training that starts from the weights that another recipe rounded."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import r2q.quantize as verb
from baselines._error_feedback import factorize, quantize_rows
from r2q import config as configuration
from r2q.models.apply import apply
from r2q.models.calibration import calibrate
from r2q.models.load import load_full
from r2q.models.save import save
from r2q.models.targets import list_targets
from r2q.quantization.method import Recipe, make_method
from r2q.quantize import quantize
from r2q.training.fake_quant import FakeQuantizer
from r2q.training.start import LATENT, Ranges, Weights, write_latent
from r2q.training.teacher_data import teacher_data
from tests.baselines.calibrated import SHORT, text
from tests.configs import config_of
from tests.models.tiny import tiny_folder, tiny_model
from tests.training.rows import random_data
from tests.training.teacher import lines_of, teacher_folder

CPU = torch.device("cpu")


def packed(folder: Path, method: str, **options: Any) -> dict[str, torch.Tensor]:
    """A packed folder beside the full model, with the weights that were rounded."""
    model = load_full(str(tiny_folder("llama", folder / "full")))
    latent: dict[str, torch.Tensor] = {}
    recipe = Recipe(method, method, "g32", options=SHORT.get(method, {}) | options)
    apply(make_method(recipe), model, list_targets(model), CPU, text(), latent=latent)
    save(model, None, folder / "packed", {})
    write_latent(folder / "packed", latent)
    return latent


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("size", [16, 48, None])
def test_error_feedback_leaves_each_weight_as_it_was_rounded(size: int | None, act_order: bool) -> None:
    """Column j, when it is reached, is w_j less e_i U_ij for all earlier i, with e_i = (w_i - level_i) / U_ii."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(5, 48, generator=generator), torch.randn(200, 48, generator=generator)
    inputs[:, 3] *= 4
    factor = factorize(inputs.t() @ inputs / 100, 0.01, act_order)
    left = torch.empty_like(weight)
    lattice = make_method(Recipe("rtn", "rtn", "tensor" if size is None else f"g{size}"))
    codes, grid = quantize_rows(weight, factor, lattice, size, left=left)
    assert torch.equal(codes, quantize_rows(weight, factor, lattice, size)[0])
    levels = grid.decode(codes.reshape(*grid.shape, -1)).reshape(weight.shape)
    order = torch.arange(48) if factor.order is None else factor.order
    expected = torch.empty_like(weight)
    errors: list[torch.Tensor] = []
    for j, column in enumerate(order.tolist()):
        at = weight[:, column] - sum(e * factor.upper[i, j] for i, e in enumerate(errors))
        expected[:, column] = at
        errors.append((at - levels[:, column]) / factor.upper[j, j])
    torch.testing.assert_close(left, expected, rtol=1e-4, atol=1e-4)
    assert (grid.encode(left.reshape(*grid.shape, -1)).reshape(codes.shape) == codes).float().mean() > 0.999


@pytest.mark.parametrize(
    ("method", "options", "quantizer", "least"),
    [("gptq", {}, "rtn", 0.75), ("gptq", {"quantizer": "r2q"}, "r2q", 0.9), ("efficientqat_block", {}, "rtn", 0.85)],
)
def test_training_starts_from_the_weights_that_were_rounded(
    method: str, options: dict[str, Any], quantizer: str, least: float, tmp_path: Path
) -> None:
    latent = packed(tmp_path, method, **options)
    model = load_full(str(tmp_path / "full"))
    targets = list_targets(model)
    assert latent.keys() == {target.name for target in targets}
    start = {"quantizer": quantizer, "start": "x", "start_from": "weights"}
    steps = {"steps": 1, "batch_rows": 4, "learning_rate": 1e-12}
    recipe = Recipe("recipe", "bitdistiller", "g32", options=start | steps)
    result = make_method(recipe).quantize(model, targets, replace(random_data(), start=tmp_path / "packed"))
    own = make_method(Recipe(quantizer, quantizer, "g32"))
    there = Weights(tmp_path / "packed").packed
    same = total = 0
    for name, weight in latent.items():
        expected = own.quantize_weight(weight)
        assert (result.layers[name].codes == expected.codes).float().mean() > 0.999
        same += int((expected.codes == there[name].quantized().codes).sum())
        total += weight.numel()
    assert result.notes["training"]["start_agreement"] == pytest.approx(same / total, abs=1e-3)
    assert same / total > least
    trained_norms = load_norm(tmp_path / "packed")
    moved = not torch.equal(trained_norms, model.model.layers[0].input_layernorm.weight)
    assert moved == (method == "efficientqat_block")
    torch.testing.assert_close(result.other["model.layers.0.input_layernorm.weight"], trained_norms)


def test_where_only_layers_learn_the_other_parameters_are_still_those_of_the_start(tmp_path: Path) -> None:
    """Layers learn beside the norms that the start trained: with the full model's they would be another model's."""
    packed(tmp_path, "efficientqat_block", weight_rate=1e-2)
    model = load_full(str(tmp_path / "full"))
    start = {"start": "x", "start_from": "weights", "train": "layers", "steps": 1, "batch_rows": 4}
    recipe = Recipe("recipe", "bitdistiller", "g32", options=start)
    result = make_method(recipe).quantize(model, list_targets(model), replace(random_data(), start=tmp_path / "packed"))
    norm = result.other["model.layers.0.input_layernorm.weight"]
    assert torch.equal(norm, load_norm(tmp_path / "packed"))
    assert not torch.equal(norm, model.model.layers[0].input_layernorm.weight)


def load_norm(folder: Path) -> torch.Tensor:
    return Weights(folder).others["model.layers.0.input_layernorm.weight"]


def test_weights_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    packed(tmp_path, "gptq")
    path = tmp_path / "packed" / LATENT
    content = bytearray(path.read_bytes())
    assert path.stat().st_mode == (path.parents[1] / "config.json").stat().st_mode  # safetensors makes it private
    quantizer = FakeQuantizer(make_method(Recipe("rtn", "rtn", "channel")), "model.layers.0.self_attn.q_proj")
    with pytest.raises(ValueError, match="has other groups"):
        Weights(tmp_path / "packed").latent(quantizer, torch.zeros(64, 64))
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"truncated \(content and hash differ\); `quantize` makes it again"):
        Weights(tmp_path / "packed")
    path.write_bytes(content[:40])
    with pytest.raises(ValueError, match="damaged or truncated"):
        Weights(tmp_path / "packed")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="`quantize` makes it"):
        Weights(tmp_path / "packed")


def test_a_recipe_that_leaves_no_weights_is_refused_before_work() -> None:
    options = {"start": "rtn-g64", "start_from": "weights"}
    recipes = {
        "a-g64": {"method": "bitdistiller", "granularity": "g64", "options": options},
        "rtn-g64": {"method": "rtn", "granularity": "g64"},
    }
    with pytest.raises(configuration.ConfigError, match="leaves no weights to start from"):
        configuration.parse(config_of(recipes, training={"texts": [{"path": "a.txt", "rows": 1}]}), "x.yaml")


def test_levels_of_scaled_inputs_are_no_start(tmp_path: Path) -> None:
    packed(tmp_path, "awq")
    ranges = Ranges(tmp_path / "packed")
    name, layer = next((name, layer) for name, layer in ranges.packed.items() if layer.spec["in_scale"])
    quantizer = FakeQuantizer(make_method(Recipe("rtn", "rtn", "g32")), name)
    with pytest.raises(ValueError, match=f"scales the input channels of layer {name}: its levels are no start"):
        ranges.latent(quantizer, torch.zeros(layer.shape))


class Run:
    """A run folder, by the verbs: calibration tokens, rows, a post-training recipe, and one that starts from it."""

    def __init__(self, folder: Path, start_from: str) -> None:
        self.folder, source = folder, teacher_folder(folder / "full")
        (folder / "text.txt").write_text("one line of text after the other. " * 40)
        options = {"quantizer": "rtn", "start": "gptq-g32", "start_from": start_from, "steps": 1, "batch_rows": 4}
        recipes = {
            "gptq-g32": {"method": "gptq", "granularity": "g32"},
            "trained-g32": {"method": "bitdistiller", "granularity": "g32", "options": options},
        }
        calibration = {"source": str(folder / "text.txt"), "windows": 9, "window": 16}
        training = {"texts": [lines_of(source)], "kind": "text", "length": 16, "held_out": 2}
        config = config_of(recipes, source, calibration=calibration, training=training, device="cpu")
        self.files = [folder / name for name in ("config.yaml", "prepared.json", "calibration.st", "rows.st")]
        self.files[0].write_text(yaml.safe_dump(config))
        facts = {"commit": None, "fingerprint": "f1", "family": "llama"}
        self.files[1].write_text(json.dumps({"models": {"tiny": facts}}))
        calibrate(self.files[0], "tiny", self.files[2])
        teacher_data(*self.files[:2], "tiny", self.files[3])
        self.latent = folder / "out" / "gptq-g32" / "seed0" / LATENT

    def quantize(self, recipe: str) -> dict[str, Any]:
        out, start = (self.folder / "out" / name / "seed0" for name in (recipe, "gptq-g32"))
        quantize(*self.files[:2], "tiny", recipe, 0, out, *self.files[2:], start)
        return json.loads((out / "report.json").read_text())


def test_weights_are_left_where_a_recipe_starts_from_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "weights", "weights")
    run.quantize("gptq-g32")
    assert run.latent.is_file()
    assert 0.5 < run.quantize("trained-g32")["notes"]["training"]["start_agreement"] < 1
    run.latent.unlink()
    with pytest.raises(FileNotFoundError, match="is not there"):
        run.quantize("trained-g32")
    run.quantize("gptq-g32")  # not kept: a file of it is missing
    assert run.latent.is_file()
    capsys.readouterr()
    run.quantize("trained-g32")
    assert "kept" in capsys.readouterr().out
    other = Run(tmp_path / "levels", "levels")
    other.quantize("gptq-g32")
    assert not other.latent.parent.exists()


@pytest.mark.parametrize("start_from", ["levels", "weights"])
def test_what_starts_from_a_recipe_that_failed_is_a_failed_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_from: str
) -> None:
    run = Run(tmp_path, start_from)
    with pytest.raises(FileNotFoundError, match="has no packed weights; quantize that recipe first"):
        run.quantize("trained-g32")

    def fail(*_: Any) -> None:
        raise ValueError("no solution")

    with monkeypatch.context() as patch:
        patch.setattr(verb, "apply", fail)
        assert run.quantize("gptq-g32")["status"] == "failed"
    failed = run.quantize("trained-g32")
    assert (failed["status"], failed["reason"]) == ("failed", "start: gptq-g32 failed: no solution")
    run.quantize("gptq-g32")
    assert run.quantize("trained-g32")["status"] == "ok"


LEAVING = """
from baselines.rtn import RTN
from r2q.quantization.method import Method, Quantized

class Mine(Method):
    leaves_latent = True

    def quantize(self, model, targets, data):
        layers = RTN(self.recipe).quantize(model, targets, data).layers
        return Quantized(layers, latent={LATENT})
"""


@pytest.mark.parametrize(
    "latent",
    [
        "{}",
        "{t.name: t.weight.detach()[:1] for t in targets}",
        "{t.name: t.weight.detach().double() for t in targets}",
        "{t.name: t.weight.detach() * float('nan') for t in targets}",
    ],
)
def test_a_method_that_does_not_leave_the_weights_that_it_promised_fails_itself(
    latent: str, module: Callable[[str], str]
) -> None:
    """Not the training that starts from it, or one row of weights would start all others."""
    model = tiny_model("llama")
    method = make_method(Recipe("mine", f"{module(LEAVING.replace('{LATENT}', latent))}.Mine", "g32"))
    said = r"recipe mine: latent\['model.layers.0.self_attn.q_proj'\] is finite torch.fl"
    with pytest.raises(ValueError, match=said):
        apply(method, model, list_targets(model), CPU, latent={})
