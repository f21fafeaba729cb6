"""R2Q against its closed forms, brute force and published constants."""

import itertools
import math

import pytest
import torch

from r2q.quantization.grid import BinaryGrid
from r2q.quantization.method import QuantizedWeight, Recipe
from r2q.quantization.residual import R2Q, nearest_codes, optimal_scales, refit, residual_codes, residual_scales


def quantizer(granularity: str = "g64", bits: int = 2, **options: object) -> R2Q:
    return R2Q(Recipe("r", "r2q", granularity, bits, options=options))


def errors(values: torch.Tensor, alpha: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Mean squared error per group, in double precision."""
    signs = torch.stack([((codes >> i) & 1).double() * 2 - 1 for i in range(alpha.shape[-1])], -1)
    return (values.double() - (signs * alpha.double().unsqueeze(-2)).sum(-1)).square().mean(-1)


def heavy(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    normal = torch.randn(*shape, generator=g)
    return normal / torch.randn(*shape, generator=g).abs().clamp_min(0.05)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_error_is_mean_square_less_the_squared_scales(bits: int) -> None:
    """mean (w - w~)^2 = mean w^2 - sum alpha_i^2, exactly, for any weights."""
    for values in (torch.randn(4, 3, 64), heavy((4, 3, 64)), torch.rand(2, 2, 7), torch.full((1, 1, 5), -2.0)):
        values = values.double()
        alpha = residual_scales(values, bits, torch.float64)
        expected = values.square().mean(-1) - alpha.square().sum(-1)
        error = errors(values, alpha, residual_codes_double(values, alpha))
        torch.testing.assert_close(error, expected, rtol=1e-12, atol=1e-12)


def residual_codes_double(values: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """The definition, one sign at a time."""
    codes, rest = torch.zeros(values.shape, dtype=torch.uint8), values.clone()
    for i in range(alpha.shape[-1]):
        sign = torch.where(rest >= 0, 1.0, -1.0).to(values.dtype)
        codes |= (sign > 0).to(torch.uint8) << i
        rest = rest - alpha[..., i : i + 1] * sign
    return codes


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_codes_are_successive_signs(bits: int) -> None:
    values = torch.cat([heavy((3, 4, 61)), torch.zeros(3, 4, 2), -torch.zeros(3, 4, 1)], -1)  # the sign of 0 is plus
    alpha = residual_scales(values, bits, torch.float16)
    assert torch.equal(residual_codes(values, alpha), residual_codes_double(values, alpha.float()))


def test_constants_of_the_normal_distribution() -> None:
    """N(0, 1), from its quantiles, against the integrals: a1 = E|x|, a2 = E||x| - a1| = 4 (phi(a1) - a1 (1 - Phi(a1))).

    The constants printed for R2Q (0.79788, 0.48256, 0.13052) agree with the integrals to 1e-4.
    """
    n = 2_000_000
    values = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n).reshape(1, 1, n)
    alpha = residual_scales(values, 2, torch.float64)
    error = errors(values, alpha, residual_codes_double(values, alpha)).item()
    first = math.sqrt(2 / math.pi)
    density, tail = math.exp(-first * first / 2) / math.sqrt(2 * math.pi), math.erfc(first / math.sqrt(2)) / 2
    second = 4 * (density - first * tail)
    assert alpha.flatten().tolist() == pytest.approx([first, second], abs=1e-5)
    assert error == pytest.approx(1 - first**2 - second**2, abs=1e-5)
    assert [first, second, error] == pytest.approx([0.79788, 0.48256, 0.13052], abs=1e-4)


def test_a_zero_group_stays_zero() -> None:
    for options in ({}, {"refine": "refit"}, {"refine": "alternating"}, {"refine": "optimal"}):
        weight = torch.randn(4, 128)
        weight[:, :64] = 0
        assert quantizer(**options).quantize_weight(weight).dequantize()[:, :64].abs().max() == 0


def test_scales_are_rounded_before_the_codes_are_chosen() -> None:
    """Codes and the second scale follow from the stored first scale, not from the exact one."""
    values = heavy((64, 8, 32), seed=3)
    grid = quantizer("g32").fit_groups(values)
    first = values.abs().mean(-1).half().float()
    second = (values.abs() - first.unsqueeze(-1)).abs().mean(-1).half()
    assert torch.equal(grid.tensors()["alpha"], torch.stack([first.half(), second], -1))
    codes = quantizer("g32").encode_groups(values, grid)
    assert torch.equal(codes, residual_codes_double(values, grid.tensors()["alpha"].float()))


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_successive_signs_are_the_nearest_levels_of_sorted_scales(bits: int) -> None:
    g = torch.Generator().manual_seed(0)
    alpha = (torch.randint(1, 64, (6, 5, bits), generator=g) / 64).sort(-1, descending=True).values  # exact sums
    values = torch.cat([heavy((6, 5, 40)), alpha[..., :1], -alpha[..., :1], torch.zeros(6, 5, 1)], -1)  # ties, too
    grid = BinaryGrid(alpha)
    assert torch.equal(grid.decode(nearest_codes(values, alpha)), grid.decode(grid.encode(values)))


@pytest.mark.parametrize("bits", [2, 3])
def test_alternating_never_loses_and_refit_is_one_round(bits: int) -> None:
    values = heavy((16, 4, 64), seed=5)
    alpha = residual_scales(values, bits)
    codes = residual_codes(values, alpha)
    last = errors(values, alpha, codes)
    for _ in range(8):
        alpha = refit(values, alpha, codes)
        codes = BinaryGrid(alpha).encode(values)
        error = errors(values, alpha, codes)
        assert (error <= last * (1 + 1e-5)).all()
        last = error
    one = quantizer(bits=bits, refine="refit").fit_groups(values).tensors()["alpha"]
    same = quantizer(bits=bits, refine="alternating", rounds=1).fit_groups(values).tensors()["alpha"]
    assert torch.equal(one, same)


def test_refit_solves_least_squares() -> None:
    values = torch.randn(3, 2, 40)
    alpha = residual_scales(values, 2)
    codes = residual_codes(values, alpha)
    new = refit(values, alpha, codes)
    for row, group in itertools.product(range(3), range(2)):
        bits = torch.stack([((codes[row, group] >> i) & 1).float() * 2 - 1 for i in range(2)], -1)
        expected = torch.linalg.lstsq(bits, values[row, group].unsqueeze(-1)).solution.abs().flatten()
        torch.testing.assert_close(new[row, group], expected.sort(descending=True).values, rtol=1e-4, atol=1e-5)


def test_refit_keeps_the_scales_where_signs_depend_on_each_other() -> None:
    values = torch.full((1, 1, 8), 3.0)
    alpha = residual_scales(values, 2)
    assert refit(values, alpha, residual_codes(values, alpha)).tolist() == alpha.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_optimal_is_the_best_of_all_sign_patterns(seed: int) -> None:
    """Brute force: every assignment of four codes to five weights, with least-squares scales for each."""
    values = heavy((1, 1, 5), seed=seed)[0, 0].double()
    best = math.inf
    for pattern in itertools.product(range(4), repeat=5):
        signs = torch.tensor([[2 * (c & 1) - 1, 2 * (c >> 1) - 1] for c in pattern], dtype=torch.float64)
        scales = torch.linalg.lstsq(signs, values.unsqueeze(-1), driver="gelsd").solution
        best = min(best, (signs @ scales - values.unsqueeze(-1)).square().mean().item())
    alpha = optimal_scales(values.float().reshape(1, 1, 5))
    codes = BinaryGrid(alpha).encode(values.float().reshape(1, 1, 5))
    assert errors(values.reshape(1, 1, 5), alpha, codes).item() == pytest.approx(best, rel=1e-4, abs=1e-9)


def test_refinements_are_ordered() -> None:
    """Over many groups: greedy >= one refit >= alternating >= optimal, and optimal is Lloyd-Max for a normal."""
    values = torch.randn(24, 1, 4096, generator=torch.Generator().manual_seed(0))
    error = {}
    for refine in ("none", "refit", "alternating", "optimal"):
        method = quantizer("channel", refine=refine)
        grid = method.fit_groups(values)
        error[refine] = (grid.decode(method.encode_groups(values, grid)) - values).square().mean().item()
    assert error["none"] > error["refit"] > error["alternating"] >= error["optimal"] - 1e-6
    assert error["none"] == pytest.approx(0.1305, abs=0.001)
    assert error["optimal"] == pytest.approx(0.1175, abs=0.0015)


def test_it_is_not_idempotent() -> None:
    """Why a packed model is never quantized again: R2Q of its own output is another, worse weight."""
    weight = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
    once = quantizer("g128").quantize_weight(weight).dequantize()
    twice = quantizer("g128").quantize_weight(once).dequantize()
    first, second = (once - weight).square().mean().item(), (twice - weight).square().mean().item()
    assert first == pytest.approx(0.1286, abs=0.004)
    assert second == pytest.approx(0.1458, abs=0.004)


@pytest.mark.parametrize("granularity", ["g64", "channel", "tensor"])
def test_chunks_do_not_show(granularity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(48, 192, generator=torch.Generator().manual_seed(1))
    whole = quantizer(granularity).quantize_weight(weight)
    monkeypatch.setattr("r2q.quantization.method.CHUNK", {"cpu": 1000})
    parts = quantizer(granularity).quantize_weight(weight)
    assert torch.equal(whole.packed, parts.packed)
    assert torch.equal(whole.dequantize(), parts.dequantize())


def test_experts_are_quantized_one_by_one() -> None:
    stack = (
        torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(2))
        * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    )
    for granularity in ("g32", "channel", "tensor"):
        method = quantizer(granularity)
        together = method.quantize_weight(stack)
        assert isinstance(together, QuantizedWeight)
        apart = torch.stack([method.quantize_weight(expert).dequantize() for expert in stack])
        assert torch.equal(together.dequantize(), apart)
