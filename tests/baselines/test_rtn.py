"""Round to nearest against a loop over single weights, and its range search against brute force."""

import pytest
import torch

from baselines.random_codes import RandomCodes
from baselines.rtn import RTN, affine_grid
from r2q.quantization.method import Recipe


def rtn(bits: int = 2, **options: object) -> RTN:
    return RTN(Recipe("rtn", "rtn", "g16", bits, options=options))


def by_hand(group: list[float], bits: int) -> list[float]:
    """The rule of the module's docstring, one weight at a time in Python floats (scale rounded to 16 bits)."""
    steps = 2**bits - 1
    low, high = min(0.0, *group), max(0.0, *group)
    scale = float(torch.tensor(max((high - low) / steps, 2.0**-24)).half())
    zero = min(max(round(-low / scale), 0), steps)
    return [(min(max(round(w / scale) + zero, 0), steps) - zero) * scale for w in group]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_against_the_rule_by_hand(bits: int) -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(bits))
    weight[1] = weight[1].abs()  # no sign change: the range still holds zero
    weight[2] = -weight[2].abs()
    weight[3, :16] = 0
    weight[4, ::3] = 0
    ours = rtn(bits).quantize_weight(weight).dequantize()
    expected = [by_hand(group, bits) for group in weight.reshape(-1, 16).tolist()]
    torch.testing.assert_close(ours.reshape(-1, 16), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_the_range_search_finds_the_best_factor_of_its_grid() -> None:
    values = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))
    options = {"clip": "mse", "steps": 17, "smallest": 0.2}
    grid = rtn(**options).fit_groups(values)
    ours = (grid.decode(grid.encode(values)) - values).square().sum(-1)
    best = torch.full_like(ours, float("inf"))
    low, high = values.amin(-1).clamp_max(0), values.amax(-1).clamp_min(0)
    for factor in [1 - 0.05 * i for i in range(17)]:
        candidate = affine_grid(low * factor, high * factor, 2)
        error = (candidate.decode(candidate.encode(values)) - values).square().sum(-1)
        best = torch.minimum(best, error)
    torch.testing.assert_close(ours, best, rtol=1e-4, atol=1e-6)
    plain = rtn().fit_groups(values)
    assert (ours <= (plain.decode(plain.encode(values)) - values).square().sum(-1)).all()


@pytest.mark.parametrize(
    ("distribution", "plain", "clipped"), [("normal", 0.2530, 0.1360), ("laplace", 0.3208, 0.1794)]
)
def test_relative_errors_in_groups_of_128(distribution: str, plain: float, clipped: float) -> None:
    """Squared error over variance, as computed independently for these distributions."""
    g = torch.Generator().manual_seed(0)
    values = torch.randn(2000, 1, 128, generator=g)
    if distribution == "laplace":
        uniform = torch.rand(2000, 1, 128, generator=g) - 0.5
        values = -uniform.sign() * torch.log1p(-2 * uniform.abs())
    for options, expected in [({}, plain), ({"clip": "mse"}, clipped)]:
        grid = rtn(**options).fit_groups(values)
        error = (grid.decode(grid.encode(values)) - values).square().mean() / values.square().mean()
        assert error.item() == pytest.approx(expected, rel=0.03)


def test_random_codes_are_even_and_on_the_rtn_grid() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    control = RandomCodes(Recipe("random_codes-g64", "random_codes", "g64")).quantize_weight(weight, "a")
    reference = RTN(Recipe("rtn-g64", "rtn", "g64")).quantize_weight(weight, "a")
    assert torch.equal(control.grid.levels(), reference.grid.levels())
    share = control.codes.flatten().bincount(minlength=4) / weight.numel()
    assert share.tolist() == pytest.approx([0.25] * 4, abs=0.02)
    agreement = (control.codes == reference.codes).float().mean().item()
    assert agreement == pytest.approx(0.25, abs=0.02)


def test_random_codes_differ_between_layers_and_seeds() -> None:
    weight = torch.randn(16, 64)
    codes = {
        (seed, name): RandomCodes(Recipe("r", "random_codes", "g64", seed=seed)).quantize_weight(weight, name).codes
        for seed in (0, 1)
        for name in ("a", "b")
    }
    assert len({tuple(c.flatten().tolist()) for c in codes.values()}) == 4
