"""The quantizer's numbers in training, and the gradients that pass it."""

import re
import shutil
from typing import Any

import pytest
import torch
from torch import nn

from r2q.models.targets import Target, list_targets
from r2q.quantization.grid import SMALLEST_SCALE, AffineGrid, BinaryGrid, CodebookGrid, stored
from r2q.quantization.method import CHUNK, Recipe, WeightMethod, make_method
from r2q.training.fake_quant import FakeQuantizer, FrozenCodes, Latent, finest_step, inside, install
from r2q.training.fused import batches, compiles, one_pass
from tests.models.tiny import tiny_model, tokens


def method(name: str, granularity: str = "g8", **options: Any) -> Any:
    return make_method(Recipe(name, name, granularity, options=options))


def weight(rows: int = 6, columns: int = 32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


METHODS = [("rtn", {}), ("rtn", {"clip": "mse", "steps": 5}), ("r2q", {}), ("r2q", {"refine": "alternating"})]


@pytest.mark.parametrize("granularity", ["g8", "channel", "tensor"])
@pytest.mark.parametrize(("name", "options"), METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_pass_is_what_is_stored(name: str, options: dict, granularity: str, dtype: torch.dtype) -> None:
    quantizer = FakeQuantizer(method(name, granularity, **options), "layer")
    latent = weight().to(dtype)
    stored = quantizer.method.quantize_weight(latent)
    assert torch.equal(quantizer(latent), stored.dequantize().to(dtype))
    assert torch.equal(quantizer.run(latent).codes, stored.codes)


def levels_of(name: str, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(finest step, quantized) of float64 ``w [groups, n]``, written down anew: without 16-bit rounding."""
    if name == "rtn":
        low, high = w.amin(-1).clamp_max(0), w.amax(-1).clamp_min(0)
        step = ((high - low) / 3).clamp_min(SMALLEST_SCALE)
        zero = torch.round(-low / step).clamp(0, 3)[:, None]
        return step, ((torch.round(w / step[:, None]) + zero).clamp(0, 3) - zero) * step[:, None]
    first = w.abs().mean(-1, keepdim=True)
    step = (w.abs() - first).abs().mean(-1)
    r = w - first * torch.where(w >= 0, 1.0, -1.0)
    return step, w - r + step[:, None] * torch.where(r >= 0, 1.0, -1.0)


@pytest.mark.parametrize("name", ["rtn", "r2q"])
@pytest.mark.parametrize("rule", ["identity", "clipped", "through-scales"])
def test_gradients_are_finite_differences_of_the_surrogate(name: str, rule: str) -> None:
    """S(w) = w^0 + M0 (w - w0), or, through the scales, sigma(w) (w^0 / sigma0 + M0 (w / sigma(w) - w0 / sigma0))."""
    w0 = weight(2, 16)
    w0[0, :8] *= torch.linspace(0.2, 3, 8)  # some weights far outside
    w0[1, 8:] = w0[1, 8:].abs()  # no change of sign
    slope = torch.randn(w0.shape, generator=torch.Generator().manual_seed(2))
    latent = w0.clone().requires_grad_()
    quantizer = FakeQuantizer(method(name), "layer", rule)  # type: ignore[arg-type]
    quantizer(latent).backward(slope)
    assert latent.grad is not None

    base = w0.double().reshape(-1, 8)
    step0, quantized0 = levels_of(name, base)
    grid = quantizer.run(w0).grids[0]
    mask = inside(w0.reshape(2, 2, 8), grid).reshape(-1, 8).double()
    assert 0 < mask.sum() < mask.numel() or rule == "identity" or name == "rtn"

    def surrogate(w: torch.Tensor) -> torch.Tensor:
        if rule == "identity":
            return quantized0 + (w - base)
        if rule == "clipped":
            return quantized0 + mask * (w - base)
        step = levels_of(name, w)[0]
        ratio = quantized0 / step0[:, None] + mask * (w / step[:, None] - base / step0[:, None])
        return step[:, None] * ratio

    expected = torch.empty_like(base)
    for i in range(base.numel()):
        bump = torch.zeros(base.numel(), dtype=torch.float64)
        bump[i] = 1e-6
        bump = bump.reshape(base.shape)
        difference = (surrogate(base + bump) - surrogate(base - bump)) / 2e-6
        expected.view(-1)[i] = (difference * slope.double().reshape(-1, 8)).sum()
    torch.testing.assert_close(latent.grad.double().reshape(-1, 8), expected, rtol=2e-3, atol=2e-3)


def test_through_scales_is_the_autograd_of_bitdistillers_quantizer() -> None:
    """Its int2 min-max quantizer, with only the rounding of weights passed straight through."""

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.round()

        @staticmethod
        def backward(ctx: Any, *g: torch.Tensor) -> torch.Tensor:
            return g[0]

    w, slope = weight(4, 16), torch.randn(4, 16, generator=torch.Generator().manual_seed(3))
    w[:, ::8] = -w[:, ::8].abs()  # both signs in every group
    w[:, 1::8] = w[:, 1::8].abs()
    theirs = w.clone().requires_grad_()
    groups = theirs.reshape(-1, 8)
    high, low = groups.amax(1, keepdim=True), groups.amin(1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / 3
    zero = (-torch.round(low / scale)).clamp_(0, 3)
    (((Round.apply(groups / scale) + zero).clamp(0, 3) - zero) * scale).reshape(4, 16).backward(slope)
    ours = w.clone().requires_grad_()
    FakeQuantizer(method("rtn"), "layer", "through-scales")(ours).backward(slope)
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("name", ["rtn", "r2q"])
def test_along_the_weights_themselves_the_gradient_through_scales_is_the_true_one(name: str) -> None:
    """Levels grow with the weights, so the derivative of w^(t w) at t = 1 is w^; ``identity`` would give w."""
    w = weight().requires_grad_()
    slope = torch.randn(w.shape, generator=torch.Generator().manual_seed(4))
    quantized = FakeQuantizer(method(name), "layer", "through-scales")(w)
    quantized.backward(slope)
    assert w.grad is not None
    assert float((w.grad * w.detach()).sum()) == pytest.approx(float((slope * quantized.detach()).sum()), rel=2e-3)


@pytest.mark.parametrize(("name", "options"), [*METHODS, ("hqq", {}), ("llm_qat", {})])
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**30])
def test_gradients_through_the_scales_keep_their_digits_whatever_their_size(
    name: str, options: dict, factor: float
) -> None:
    """The rule is linear in the gradient; as 16-bit floats, those of a mean over many tokens would be zeros."""
    slope = torch.randn(6, 32, generator=torch.Generator().manual_seed(5))

    def gradient(scaled: torch.Tensor) -> torch.Tensor:
        latent = weight().requires_grad_()
        FakeQuantizer(method(name, **options), "layer", "through-scales")(latent).backward(scaled)
        assert latent.grad is not None
        return latent.grad

    torch.testing.assert_close(gradient(slope * factor) / factor, gradient(slope))


def test_the_finest_step_and_the_range_of_each_grid() -> None:
    affine = AffineGrid(torch.tensor([[0.5]]).half(), torch.tensor([[1]], dtype=torch.uint8), 2)  # -.5, 0, .5, 1
    book = CodebookGrid(torch.tensor([[[3.0, -1.0, 0.0, 2.0]]]).half())
    assert finest_step(affine).tolist() == [[0.5]]
    assert finest_step(book)[0, 0] == pytest.approx(4 / 3)
    values = torch.tensor([[[-1.6, -1.4, 0.0, 3.4, 3.6]]])
    assert inside(values, book).tolist() == [[[False, True, True, True, False]]]
    assert inside(torch.tensor([[[-0.8, -0.7, 1.2, 1.3]]]), affine).tolist() == [[[False, True, True, False]]]
    ternary = CodebookGrid(torch.tensor([[[-1.0, 0.0, 1.0, 1.0]]]).half())  # as far up as down
    assert inside(torch.tensor([[[-1.6, -1.4, 1.4, 1.6]]]), ternary).tolist() == [[[False, True, True, False]]]
    zero = CodebookGrid(torch.zeros(1, 1, 4).half())
    assert inside(torch.tensor([[[-1.0, 0.0, 1.0]]]), zero).tolist() == [[[False, True, False]]]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.parametrize(("name", "options"), [*METHODS[:3], ("llm_qat", {}), ("hqq", {"steps": 2})])
def test_a_method_compiles_as_it_is_and_gives_what_is_stored(name: str, options: dict) -> None:
    """A compiler may compute in float32 what is written as a conversion to 16 bits and back: not here."""
    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(6)) * 0.02
    values[0] = 0
    values[1, ::2] = 0
    stored = method(name, "g64", **options).quantize_weight(values)
    run = one_pass(method(name, "g64", **options), torch.float32)
    found, codes = torch.compile(run, fullgraph=True)(values)
    assert (codes == stored.codes).float().mean() > 0.999
    close = torch.isclose(found, stored.dequantize(), rtol=2e-3, atol=2e-5).all(-1)  # in all of a group
    assert close.sum() >= 63  # HQQ stops a group where its error no longer falls: a last digit may decide
    torch.testing.assert_close(run(values)[0], stored.dequantize())  # the same code, without a compiler


def test_random_codes_are_drawn_layer_by_layer() -> None:
    assert compiles(method("rtn"))
    assert not compiles(method("random_codes"))


@pytest.mark.parametrize("chunk", [1 << 19, 1000])  # all layers at once; 31 groups at a time
@pytest.mark.parametrize(("name", "options"), [*METHODS, ("random_codes", {})])
def test_layers_quantized_together_are_what_is_stored_of_each(
    name: str, options: dict, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK, "cpu", chunk)
    quantizer = method(name, "g32", **options)
    layers = [Latent(target, quantizer, "identity") for target in list_targets(tiny_model("llama"))]
    together = batches(layers, torch.float32, keep_codes=True)
    assert len(together) == (1 if chunk == 1 << 19 and name != "random_codes" else len(layers))
    for some in together:
        some.run()
        stored = [layer.quantized() for layer in some.layers]
        assert torch.equal(some.packed.flatten(), torch.cat([one.packed.flatten() for one in stored]))
        for layer, one in zip(some.layers, stored, strict=True):
            assert torch.equal(layer.weight(), one.dequantize())


def test_of_layers_quantized_together_the_wrong_one_is_named() -> None:
    layers = [Latent(target, method("r2q", "g32"), "identity") for target in list_targets(tiny_model("llama"))]
    (together,) = batches(layers, torch.float32, keep_codes=False)
    layers[3].target.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=f"layer {re.escape(layers[3].target.name)}: .*finite"):
        together.run()


def test_of_layers_quantized_together_the_one_with_a_fault_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = method("r2q", "g32")
    layers = [Latent(target, quantizer, "identity") for target in list_targets(tiny_model("llama"))]
    (together,) = batches(layers, torch.float32, keep_codes=False)
    layers[3].target.weight.data[0, 0] = 9.0
    fit = quantizer.fit_groups

    def fit_groups(values: torch.Tensor) -> Any:
        return {}["levels"] if (values == 9.0).any() else fit(values)

    monkeypatch.setattr(quantizer, "fit_groups", fit_groups)
    with pytest.raises(KeyError) as error:
        together.run()
    assert error.value.__notes__ == [f"recipe r2q, layer {layers[3].target.name}"]


@pytest.mark.parametrize("case", ["llama", "mixtral", "qwen2-moe"])
def test_a_model_with_fake_layers_computes_with_quantized_weights(case: str) -> None:
    """Its logits are those of the model whose weights were replaced, also where experts are stacked."""
    model, replaced = tiny_model(case), tiny_model(case)
    quantizer = method("r2q", "g32")
    targets = list_targets(model)
    for target in list_targets(replaced):
        target.weight.data = quantizer.quantize_weight(target.weight.data).dequantize()
    names = [name for name, _ in model.named_parameters()]
    install([Latent(target, quantizer, "identity") for target in targets])
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, replaced(tokens()).logits)
    model(tokens()).logits.sum().backward()
    assert [name for name, _ in model.named_parameters()] == names
    assert all(target.weight.grad is not None and target.weight.grad.abs().sum() > 0 for target in targets)


class ByProducts(WeightMethod):
    """Ranges whose mean is a matrix product."""

    def fit_groups(self, values: torch.Tensor) -> BinaryGrid:
        mean = values.abs() @ torch.full((values.shape[-1], 1), 1 / values.shape[-1])
        return BinaryGrid(stored(torch.cat([mean, mean / 2], -1)))


@pytest.mark.parametrize("name", ["rtn", "r2q", "by products"])
def test_layers_in_other_arithmetic_are_quantized_to_what_is_stored(name: str) -> None:
    """Autocast is for the layers' products: inside of a method it would give other levels, or none."""
    linear = nn.Linear(16, 3, bias=False)
    quantizer = ByProducts(Recipe(name, name, "g8")) if name == "by products" else method(name, "g8")
    target = Target("layer", linear, "weight", 0)
    weight = quantizer.quantize_weight(linear.weight.detach())
    with torch.autocast("cpu", torch.bfloat16):
        found = [Latent(target, quantizer, "identity").weight(), FrozenCodes(target, weight).weight()]
    assert all(torch.equal(values, weight.dequantize()) for values in found)


@pytest.mark.parametrize("name", ["rtn", "r2q"])
def test_trained_scales_have_exact_gradients(name: str) -> None:
    """With frozen codes the weight is linear in its scales: autograd against finite differences."""
    linear = nn.Linear(16, 3, bias=False)
    quantizer = method(name, "g8")
    layer = FrozenCodes(Target("layer", linear, "weight", 0), quantizer.quantize_weight(linear.weight.detach()))
    before = layer.weight()
    assert torch.equal(before, layer.quantized().dequantize())
    slope = torch.randn(3, 16)
    (before * slope).sum().backward()
    (scale,) = layer.parameters()
    assert scale.grad is not None
    with torch.no_grad():
        flat = scale.view(-1)
        start = float(flat[5].half())
        flat[5] = start + 2.0**-4
        bump = float(flat[5].half()) - start
    moved = float(((layer.weight() - before) * slope).detach().sum()) / bump
    assert moved == pytest.approx(float(scale.grad.view(-1)[5]), rel=1e-3, abs=1e-4)
    assert torch.equal(layer.quantized().codes, layer.start.codes)


def test_a_layer_that_is_not_finite_is_named() -> None:
    latent = weight()
    latent[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"layer up_proj: .*not finite"):
        FakeQuantizer(method("r2q"), "up_proj")(latent)
