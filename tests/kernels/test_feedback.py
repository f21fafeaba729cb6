"""Rules for columns against the lattices that they stand for, and the kernel against its twin."""

from typing import Any

import pytest
import torch

from baselines._error_feedback import Asked, columns_of
from r2q.kernels.feedback import Ladder, Rule, Steps, feedback, feedback_plain
from r2q.models.moments import add_moment
from r2q.quantization.grid import AffineGrid
from r2q.quantization.method import Recipe, WeightMethod, make_method
from tests.models.tiny import needs_gpu

LATTICES = [
    ("rtn", {}, 2),
    ("rtn", {"clip": "mse"}, 3),
    ("r2q", {}, 2),
    ("r2q", {"refine": "refit"}, 2),
    ("r2q", {"refine": "alternating"}, 3),
    ("r2q", {"refine": "optimal"}, 2),
]


def lattice(method: str, options: dict[str, Any], bits: int = 2) -> WeightMethod:
    return make_method(Recipe("x", method, "g16", bits, options=options))  # type: ignore[return-value]


def weights(rows: int = 24, seed: int = 0) -> torch.Tensor:
    """``[rows, 4, 16]``: heavy tails, a group of zeros, an outlier that makes R2Q's second scale the larger one."""
    values = torch.randn(rows, 4, 16, generator=torch.Generator().manual_seed(seed)) ** 3
    values[0, 1] = 0
    values[1, 2] = 0
    values[1, 2, 3] = 8
    return values


@pytest.mark.parametrize(("method", "options", "bits"), LATTICES)
def test_a_rule_gives_the_codes_and_levels_of_its_lattice(method: str, options: dict[str, Any], bits: int) -> None:
    own = lattice(method, options, bits)
    values = weights()
    grid = own.fit_groups(values.clone())
    rule = columns_of(own, grid)
    assert rule is not None
    near = values + torch.randn(values.shape, generator=torch.Generator().manual_seed(1)) / 2
    ties = grid.levels()  # [rows, groups, k]: levels, and the middles between neighbours
    ties = torch.cat([ties, (ties[..., 1:] + ties[..., :-1]) / 2, torch.zeros_like(ties[..., :1])], -1)
    for columns in (near, ties):
        for group in range(4):
            for column in columns[:, group].unbind(-1):
                codes, levels = rule.column(column.clone(), group)
                wanted_codes, wanted_levels = Asked(own, grid).column(column.clone(), group)
                distinct = grid.levels()[:, group].sort(-1).values.diff(dim=-1).amin(-1) > 0  # else codes are free
                assert distinct.sum() > 10
                assert torch.equal(codes.to(torch.uint8)[distinct], wanted_codes[distinct])
                assert torch.equal(levels, wanted_levels)


def test_a_float_zero_is_added_before_rounding() -> None:
    grid = AffineGrid(torch.full((3, 1), 0.5).half(), torch.tensor([[0.25], [1.5], [2.75]]).half(), 2)
    own = lattice("rtn", {})
    rule = columns_of(own, grid)
    column = torch.tensor([0.1, -0.3, -0.4])
    codes, levels = rule.column(column.clone(), 0)  # type: ignore[union-attr]
    wanted = grid.encode(column[:, None, None])
    assert torch.equal(codes.to(torch.uint8), wanted[:, 0, 0])
    assert torch.equal(levels, grid.decode(wanted)[:, 0, 0])


def test_a_lattice_with_codes_of_its_own_is_asked() -> None:
    own = lattice("random_codes", {})
    own.begin("layer")
    assert columns_of(own, own.fit_groups(weights())) is None


def test_feedback_by_hand() -> None:
    """Two columns, levels 0 1 2 3: the error of the first, divided by U_00, moves the second by U_01 of it."""
    factor = torch.tensor([[2.0, 3.0], [0.0, 0.5]])
    rule = Steps(torch.ones(1, 1), torch.zeros(1, 1), 3)
    codes, errors = feedback_plain(torch.tensor([[1.4], [1.0]]), factor, rule, torch.zeros(2, dtype=torch.int32))
    # e_0 = 0.4 / 2 = 0.2; w_1 = 1 - 0.2 * 3 = 0.4 -> 0; e_1 = 0.4 / 0.5 = 0.8
    assert codes[:, 0].tolist() == [1, 0]
    assert errors[:, 0].tolist() == pytest.approx([0.2, 0.8])


def rules(rows: int, groups: int) -> list[Rule]:
    generator = torch.Generator().manual_seed(rows)
    scale = torch.rand(groups, rows, generator=generator) + 0.3
    zero = torch.randint(4, (groups, rows), generator=generator).float()
    found: list[Rule] = [Steps(scale, zero, 3), Steps(scale, zero + 0.3, 3, True)]
    for k in (4, 8):
        levels = torch.randn(groups, k, rows, generator=generator).sort(1).values
        order = torch.rand(groups, k, rows, generator=generator).argsort(1).float()
        found.append(Ladder((levels[:, 1:] + levels[:, :-1]) / 2, levels, order))
    return found


@needs_gpu
@pytest.mark.parametrize(("n", "rows"), [(128, 4096), (64, 1000), (32, 7), (96, 130), (1, 50)])
@pytest.mark.parametrize("number", range(4))
def test_the_kernel_gives_the_bits_of_its_twin(n: int, rows: int, number: int) -> None:
    rule = rules(rows, 3)[number]
    rule = type(rule)(*(x.cuda() if torch.is_tensor(x) else x for x in vars(rule).values()))
    values = torch.randn(n, rows, device="cuda")
    factor = (torch.randn(n, n, device="cuda") / 8 + torch.eye(n, device="cuda")).triu()
    groups = torch.randint(3, (n,), dtype=torch.int32, device="cuda")
    wanted = feedback_plain(values.clone(), factor, rule, groups)
    found = feedback(values.clone(), factor, rule, groups)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


@needs_gpu
def test_half_precision_moments_are_summed_in_float32() -> None:
    """Sums in bfloat16 or TF32 inputs would be off by 1e-3; sums on tensor cores are truncated to float32."""
    x = torch.randn(4096, 512, device="cuda").bfloat16()
    exact = x.double().t() @ x.double()
    for inputs, bound in ((x, 3e-5), (x.float(), 1e-6)):
        total = torch.zeros(512, 512, device="cuda")
        add_moment(total, inputs)
        assert float((total - exact).norm() / exact.norm()) < bound
