"""Block reconstruction: OmniQuant's clipping and EfficientQAT's block phase."""

from typing import Any

import pytest
import torch

from baselines._reconstruct import block_mse, fit, pairs
from baselines.efficientqat_block import Trained, cosine
from baselines.omniquant_lwc import Range
from r2q.models.targets import list_targets
from tests.baselines.calibrated import SHORT, quantize, text
from tests.models.tiny import inputs_of, tiny_model

METHODS = {
    "omniquant_lwc": {"epochs": 20, "batch": 2, "rate": 0.05},
    "efficientqat_block": {"epochs": 5, "rate": 1e-3, "weight_rate": 5e-4},
}


@pytest.mark.parametrize("case", ["llama", "opt", "mixtral"])
@pytest.mark.parametrize("name", METHODS)
def test_it_lowers_the_error_of_every_block(name: str, case: str) -> None:
    result = quantize(name, tiny_model(case), **METHODS[name])
    errors = {(note["block_mse_start"], note["block_mse"]) for note in result.notes["layers"].values()}
    assert len(errors) == 2  # one pair a block
    assert all(after < 0.98 * before for before, after in errors)


@pytest.mark.parametrize("name", METHODS)
def test_the_last_block_s_error_is_the_model_s(name: str) -> None:
    """The noted error, measured once more in the two whole models: inputs really come from quantized blocks."""
    model = tiny_model("llama")
    result = quantize(name, model, **SHORT[name])
    with torch.no_grad():
        wanted = last_hidden(model, text().tokens)
        for target in list_targets(model):
            target.weight.data.copy_(result.layers[target.name].dequantize())
        for key, tensor in result.other.items():
            model.get_parameter(key).copy_(tensor)
        got = last_hidden(model, text().tokens)
    noted = result.notes["layers"]["model.layers.1.mlp.up_proj"]["block_mse"]
    assert float((got - wanted).square().mean()) == pytest.approx(noted, rel=1e-3)


def last_hidden(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What the last block gives, before the final norm."""
    ((found,),) = inputs_of(model.model.norm, lambda: model(tokens))
    return found


def weight() -> torch.Tensor:
    return torch.randn(8, 32, generator=torch.Generator().manual_seed(0)) * 0.05


@pytest.mark.parametrize("bits", [2, 3])
def test_learnable_clipping_is_the_published_formula(bits: int) -> None:
    w, q = weight(), 2**bits - 1
    ours = Range(w, 16, 4.0)
    generator = torch.Generator().manual_seed(1)
    for factor in (ours.low_factor, ours.high_factor):
        factor.data.copy_(torch.randn(8, 2, generator=generator))
    x = w.reshape(-1, 16)
    xmax = torch.sigmoid(ours.high_factor.reshape(-1, 1)) * x.amax(-1, keepdim=True)
    xmin = torch.sigmoid(ours.low_factor.reshape(-1, 1)) * x.amin(-1, keepdim=True)
    scale = ((xmax - xmin) / q).clamp(1e-5, 1e4)
    zero = (-xmin / scale).clamp(-1e4, 1e4).round().detach()
    rounded = x / scale + ((x / scale).round() - x / scale).detach()
    expected = (((rounded + zero).clamp(0, q) - zero) * scale).reshape(8, 32)
    torch.testing.assert_close(ours.fake_quantized(bits), expected)
    target = torch.randn(8, 32, generator=generator)
    for factor in (ours.low_factor, ours.high_factor):
        (published,) = torch.autograd.grad((expected * target).sum(), factor, retain_graph=True)
        (mine,) = torch.autograd.grad((ours.fake_quantized(bits) * target).sum(), factor)
        torch.testing.assert_close(mine, published)
    stored = ours.encoded(bits).dequantize()
    assert ((stored - expected).abs() < 2e-3 * expected.abs().max()).float().mean() > 0.97  # 16-bit scales


@pytest.mark.parametrize("bits", [2, 3])
def test_block_ap_is_the_published_formula(bits: int) -> None:
    w, q = weight(), 2**bits - 1
    ours = Trained(w, 16, bits)
    x = w.reshape(-1, 16)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    torch.testing.assert_close(ours.scale.reshape(-1, 1), (high - low) / q)
    assert torch.equal(ours.zero.reshape(-1, 1), (-(low / ((high - low) / q))).round())
    ours.zero.data += torch.linspace(-2.5, 2.5, 16).reshape(ours.zero.shape)  # also out of range
    scale, point = ours.scale.reshape(-1, 1), ours.zero.reshape(-1, 1)
    point = point + (point.round() - point).detach()
    zero = point + (point.clamp(0, q) - point).detach()
    values = ours.values.reshape(-1, 16)
    rounded = values / scale + ((values / scale).round() - values / scale).detach()
    expected = (((rounded + zero).clamp(0, q) - zero) * scale).reshape(8, 32)
    torch.testing.assert_close(ours.fake_quantized(), expected)
    target = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    for leaf in (ours.values, ours.scale, ours.zero):
        (published,) = torch.autograd.grad((expected * target).sum(), leaf, retain_graph=True)
        (mine,) = torch.autograd.grad((ours.fake_quantized() * target).sum(), leaf)
        torch.testing.assert_close(mine, published)


def test_block_ap_trains_norms_and_stores_them() -> None:
    model = tiny_model("llama", torch.bfloat16)
    result = quantize("efficientqat_block", model, epochs=2, weight_rate=0.05)
    names = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    assert {key.split(".", 3)[3] for key in result.other} == names
    for key, tensor in result.other.items():
        assert tensor.dtype == torch.bfloat16
        assert not torch.equal(tensor, model.get_parameter(key))


def test_the_rate_falls_along_a_cosine() -> None:
    assert [cosine(x, 0.05) for x in (0, 0.5, 1)] == pytest.approx([1, 0.525, 0.05])


def test_a_loss_that_is_not_finite_stops_with_the_layer() -> None:
    model = tiny_model("llama")
    block, _, outputs = next(pairs(model, list_targets(model), text(), 2))
    broken = [torch.full_like(output, float("nan")) for output in outputs]
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    said = r"layer model\.layers\.0\..*: its block's loss is not finite in epoch 0, batch 0"
    with pytest.raises(ValueError, match=said):
        fit(block, dict, [broken], optimizer, 1)
    assert block_mse(block, {}, outputs) == 0
