"""HQQ against a literal transcription of its loop, its own objective, and round to nearest."""

import pytest
import torch

from baselines.hqq import HQQ, shrink
from baselines.rtn import RTN
from r2q.quantization.method import Recipe

P = 0.7


def weights(seed: int = 0, rows: int = 64, n: int = 64) -> torch.Tensor:
    return torch.randn(rows, 1, n, generator=torch.Generator().manual_seed(seed)) * 0.05


def method(**options: object) -> HQQ:
    return HQQ(Recipe("hqq-g64", "hqq", "g64", options=dict(options)))


def path_of(values: torch.Tensor, **options: object) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The scale (as stored, float32), and the zero points after every step."""
    scale = method(**options | {"steps": 0}).fit_groups(values).scale.float()
    return scale, method(**options).refine(values, scale, -values.amin(-1) / scale)


def test_no_step_raises_the_squared_error_of_any_group() -> None:
    """Each is the least-squares zero point for the codes at hand, and then the nearest codes."""
    values = weights()
    scale, path = path_of(values)
    errors = torch.stack([method().round(values, scale, zero)[0].square().mean(-1) for zero in path])
    assert (errors.diff(dim=0) <= 1e-9).all()
    assert (errors[-1] < errors[0]).float().mean() > 0.5  # and most groups gain


@pytest.mark.parametrize("degrees", [3.0, 30.0])
def test_its_error_is_that_of_the_published_loop_over_the_whole_matrix(degrees: float) -> None:
    """Which stops for all groups at once. Stopping for each had stood one percent higher."""
    torch.manual_seed(0)
    w = 0.03 * torch.distributions.StudentT(degrees).sample((4096, 64))
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    scale, beta, best = 3 / (high - low), 10.0, float("inf")
    zero = -low * scale
    for _ in range(20):
        quantized = torch.clamp(torch.round(w * scale + zero), 0, 3)
        off = w - (quantized - zero) / scale
        zero = torch.mean(quantized - (w - shrink(off, P, beta)) * scale, dim=1, keepdim=True)
        beta *= 1.01
        if float(off.abs().mean()) >= best:
            break
        best = float(off.abs().mean())
    published = (torch.clamp(torch.round(w * scale + zero), 0, 3) - zero) / scale
    ours = method().quantize_weight(w).dequantize()
    errors = [float((found - w).square().sum()) for found in (ours, published)]
    assert errors[0] == pytest.approx(errors[1], rel=2e-3)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("beta", [10.0, 1000.0])
def test_the_steps_are_those_of_the_published_loop(seed: int, beta: float) -> None:
    """For one group alone: the same zero points, as long as the published loop goes on."""
    values = weights(seed, rows=1)
    step, path = path_of(values, beta=beta)
    scale, zero = 1 / step, path[0]  # the published loop works with the inverse
    w, best, current, published = values[0], float("inf"), beta, []
    for _ in range(20):
        quantized = torch.clamp(torch.round(w * scale + zero), 0, 3)
        back = (quantized - zero) / scale
        if float((w - back).abs().mean()) >= best:
            break
        best = float((w - back).abs().mean())
        published.append(float(zero))
        shrunk = torch.sign(w - back) * torch.relu((w - back).abs() - (w - back).abs() ** (P - 1) / current)
        zero = torch.mean(quantized - (w - shrunk) * scale, dim=1, keepdim=True)
        current *= 1.01
    ours = [float(zero) for zero in path]
    assert ours[: len(published)] == pytest.approx(published, abs=1e-5)


@pytest.mark.parametrize("n", [32, 64, 256])
def test_its_error_is_below_round_to_nearest(n: int) -> None:
    values = weights(n, n=n)
    errors = []
    for quantizer in (method(), RTN(Recipe("rtn", "rtn", "g64"))):
        grid = quantizer.fit_groups(values)
        errors.append(float((grid.decode(grid.encode(values)) - values).abs().pow(P).sum()))
    assert errors[0] < errors[1]


def test_shrinking_by_hand() -> None:
    x = torch.tensor([-2.0, 0.05, 1.0])
    assert shrink(x, 1.0, 10.0).tolist() == pytest.approx([-1.9, 0.0, 0.9])
    assert shrink(x, P, 10.0)[0].item() == pytest.approx(-2 + 2**-0.3 / 10)
    assert shrink(torch.tensor([0.17]), P, 10.0).item() == 0  # what the module says of beta = 10
    assert shrink(torch.zeros(1), P, 10.0).item() == 0


def test_constant_and_one_sided_groups_survive() -> None:
    values = torch.stack([torch.full((1, 16), 0.5), torch.zeros(1, 16), torch.linspace(1, 2, 16).view(1, 16)])
    grid = method().fit_groups(values)
    back = grid.decode(grid.encode(values))
    assert (back[:2] - values[:2]).abs().max() < 1e-3
    assert (back[2] - values[2]).abs().max() < 0.25


@pytest.mark.parametrize("value", [10.0, -30000.0])
@pytest.mark.parametrize("spread", [0.0, 1e-7])
def test_large_groups_that_are_nearly_constant_keep_their_value(value: float, spread: float) -> None:
    """The published step, which is an absolute one, would ask for zero points beyond 16 bits."""
    values = value * (1 + spread * torch.arange(16.0)).expand(1, 1, -1)
    grid = method().fit_groups(values)
    assert grid.decode(grid.encode(values)) == pytest.approx(values, rel=2e-3)
