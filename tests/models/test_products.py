"""Products through oneDNN against torch's in float64."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from r2q.models.products import Linear, linear, speed_up
from tests.models.tiny import tiny_model


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("tokens", [(7,), (2, 5), (2, 1, 3), (0,)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_and_its_first_and_second_gradients(tokens: tuple[int, ...], bias: bool) -> None:
    found = []
    for dtype, product in ((torch.float32, linear), (torch.float64, nn.functional.linear)):
        x = drawn(*tokens, 16).to(dtype).requires_grad_()
        weight = drawn(16, 24).to(dtype).t().requires_grad_()  # rows of it are not next to each other in memory
        inputs = [x, weight, *([drawn(24).to(dtype).requires_grad_()] if bias else [])]
        y = product(*inputs)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        found.append([y, *first, *second])
    for ours, exact in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-2)


def test_other_types_are_torchs_own() -> None:
    x, weight = drawn(3, 8), drawn(4, 8)
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(linear(x.to(dtype), weight.to(dtype)), nn.functional.linear(x.to(dtype), weight.to(dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert linear(x[0], weight).shape == (4,)


def test_transforms_of_functions_go_through() -> None:
    """Gradients row by row, and derivatives along a direction, as a method may ask a block for."""
    x, weight, along = drawn(2, 3, 8), drawn(4, 8), drawn(8, 4).t()
    by_row = torch.vmap(torch.func.grad(lambda w, row: linear(row, w).square().sum()), (None, 0))(weight, x)
    torch.testing.assert_close(by_row, 2 * (x @ weight.t()).mT @ x)
    value, slope = torch.func.jvp(lambda w: linear(x, w), (weight,), (along,))
    torch.testing.assert_close(value, x @ weight.t())
    torch.testing.assert_close(slope, x @ along.t())


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_model_keeps_all_but_the_arithmetic_of_its_linear_layers(family: str) -> None:
    model = tiny_model(family).float()
    fast = speed_up(copy.deepcopy(model))
    tokens = torch.arange(3, 13)[None]
    assert sum(type(module) is Linear for module in fast.modules()) == sum(
        type(module) is nn.Linear for module in model.modules()
    )
    assert fast.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(copy.deepcopy(fast)(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)


def test_a_library_that_is_told_to_compute_in_fewer_bits_is_not_asked() -> None:
    told = os.environ | {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}
    code = "from r2q.models.products import AVAILABLE; print(AVAILABLE)"
    assert subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True).stdout == "False\n"
