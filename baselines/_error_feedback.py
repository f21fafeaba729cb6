"""Rounding with error feedback, as GPTQ does it: the part that knows nothing of models. See ``baselines.gptq``."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any

import torch

from r2q.kernels.feedback import Ladder, Rule, Steps, feedback, feedback_plain
from r2q.models.moments import exact_float32
from r2q.quantization.grid import AffineGrid, BinaryGrid, CodebookGrid, Grid
from r2q.quantization.method import WeightMethod
from r2q.quantization.residual import R2Q

PROBED = 16  # weights of a group that are coded one by one as well, before the work
BLOCK = 128  # columns after which the rest of the weight is brought up to date
LADDER = (0.01, 0.03, 0.1, 0.3, 1.0)  # damping, as a share of the mean diagonal


@dataclass
class Factor:
    """The factor U of an inverse Hessian and how it was reached."""

    upper: torch.Tensor  # float32 ``[in, in]``, in the order of ``order``
    order: torch.Tensor | None  # int64 ``[in]``, columns in the order of rounding; None for the natural one
    dead: torch.Tensor  # bool ``[in]``, columns of which every input is zero, in their natural places
    steps: list[float] = field(default_factory=list)  # every damping that was tried; the last one was enough


def factorize(hessian: torch.Tensor, damping: float, act_order: bool = False) -> Factor:
    """U with ``U^T U = (H + damping)^-1``; the damping is raised step by step to 1 until that exists.

    With J reversing the order, J H J = L L^T gives H = R R^T for the upper triangular R = J L J, so U = R^-1.

    Raises:
        ValueError: not positive definite even at damping 1.
    """
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    order = None
    if act_order:
        order = diagonal.argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
    mean = float(hessian.diagonal().mean())
    identity = torch.eye(len(hessian), device=hessian.device, dtype=hessian.dtype)
    factor = Factor(hessian, order, dead)
    for share in [damping, *(step for step in LADDER if step > damping)]:
        factor.steps.append(share)
        reversed_ = hessian.flip(0, 1)
        reversed_.diagonal().add_(share * mean)
        lower, info = torch.linalg.cholesky_ex(reversed_)
        if int(info) == 0:
            with exact_float32():
                factor.upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            if torch.isfinite(factor.upper).all():
                return factor
    raise ValueError(f"its Hessian is not positive definite, even with damping 1 (tried {factor.steps})")


def columns_of(lattice: WeightMethod, grid: Grid) -> Rule | None:
    """The levels of a grid as a rule for one column at a time; None where only the lattice itself knows its codes."""
    encode = type(lattice).encode_groups
    if type(grid) is AffineGrid and encode is WeightMethod.encode_groups:
        zero = grid.zero.float().t().contiguous()
        return Steps(grid.scale.float().t().contiguous(), zero, 2**grid.bits - 1, grid.zero.dtype != torch.uint8)
    if type(grid) is BinaryGrid and encode is R2Q.encode_groups and lattice.options.refine == "none":
        thresholds, codes = _signs(grid.alpha.float())
        return _ladder(thresholds, grid.levels().gather(-1, codes), codes)
    if type(grid) in (BinaryGrid, CodebookGrid) and encode in (R2Q.encode_groups, WeightMethod.encode_groups):
        levels, codes = grid.levels().sort(dim=-1, stable=True)
        return _ladder((levels[..., 1:] + levels[..., :-1]) / 2, levels, codes)
    return None


def _signs(alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Signs of the residual, one after the other, as thresholds ``[..., 2^bits - 1]`` and codes in their order.

    Each sign cuts every interval at the sum of the scales so far. Beyond two bits that is not always the nearest level,
    and a cut may lie outside of its interval, of which one half is then empty.

    Args:
        alpha: float32 ``[rows, groups, bits]``.
    """
    none = torch.zeros_like(alpha[..., 0])
    sums, codes, cuts = [none], [0], [none - torch.inf, none + torch.inf]
    for i, scale in enumerate(alpha.unbind(-1)):
        inside = [at.clamp(*ends) for at, ends in zip(sums, pairwise(cuts), strict=True)]
        cuts = [*chain.from_iterable(zip(cuts[:-1], inside, strict=True)), cuts[-1]]
        sums = [part for s in sums for part in (s - scale, s + scale)]
        codes = [part for code in codes for part in (code, code | 1 << i)]
    return torch.stack(cuts[1:-1], -1), torch.tensor(codes, device=alpha.device).expand(*none.shape, -1)


def _ladder(thresholds: torch.Tensor, levels: torch.Tensor, codes: torch.Tensor) -> Ladder:
    """From ``[rows, groups, k]`` to columns first."""
    first, second, third = (x.float().permute(1, 2, 0).contiguous() for x in (thresholds, levels, codes))
    return Ladder(first, second, third)


@dataclass(frozen=True)
class Asked:
    """A rule that asks the lattice itself; slower, for any lattice."""

    lattice: WeightMethod
    grid: Grid

    def column(self, values: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and levels of one column ``[rows]``."""
        grid = part_of(self.grid, group)
        codes = self.lattice.encode_groups(values[:, None, None], grid)
        return codes[:, 0, 0], grid.decode(codes)[:, 0, 0]


def part_of(grid: Grid, group: int) -> Grid:
    """One group of every row."""
    return replace(grid, **{name: x[:, group : group + 1] for name, x in grid.parts().items()})


def split_rows(grid: Grid, rows: Sequence[int]) -> list[Grid]:
    """The inverse of ``Grid.cat``."""
    parts = zip(*(x.split(list(rows)) for x in grid.parts().values()), strict=True)
    return [replace(grid, **dict(zip(grid.parts(), tensors, strict=True))) for tensors in parts]


def blocks_of(width: int, size: int | None) -> list[tuple[int, int]]:
    """Blocks of at most 128 columns; with a ``size``, none of them cuts a group unless the group is larger."""
    if size is None or size <= BLOCK:
        size, step = width, BLOCK - (BLOCK % size if size else 0)
    else:
        step = BLOCK
    groups = [(start, min(start + size, width)) for start in range(0, width, size)]
    return [(first, min(first + step, end)) for start, end in groups for first in range(start, end, step)]


def runs_of(begin: int, end: int, size: int | None) -> list[tuple[int, int]]:
    """A block, cut where groups start."""
    starts = [begin, *(range(begin - begin % size + size, end, size) if size else ())]
    return list(zip(starts, [*starts[1:], end], strict=True))


@torch.no_grad()
def quantize_rows(
    weight: torch.Tensor,  # float32 ``[out, in]``
    factor: Factor,  # of the inverse Hessian of their input
    lattice: WeightMethod,  # fits levels and chooses codes
    size: int | None,  # columns of a group; None for one set of levels for the whole weight
    static: bool = False,  # fit all groups first
    stale: bool = False,  # fit groups from weights as they were at the start of the block of 128 columns
    left: torch.Tensor | None = None,  # is filled with the weights, each as it was just before it was rounded
) -> tuple[torch.Tensor, Grid]:
    """GPTQ of one weight, or of several that read the same input, rows below each other.

    Returns:
        Codes uint8 ``[out, in]`` and the grid, both in the natural order of the columns.
    """
    width = weight.shape[1]
    weight = weight.masked_fill(factor.dead, 0)
    whole = size is None or size == width
    grid = None
    if whole or static or factor.order is not None:
        groups = weight.reshape(1, 1, -1) if size is None else weight.reshape(len(weight), -1, size)
        grid = _fit(lattice, groups)
    group_of = torch.arange(width, device=weight.device) // (size or width)
    if factor.order is not None:
        weight, group_of = weight[:, factor.order], group_of[factor.order]
    if size is None and grid is not None:  # the same levels for every row
        expanded = {name: x.expand(len(weight), *x.shape[1:]) for name, x in grid.parts().items()}
        rule = _rule(lattice, replace(grid, **expanded))
    elif grid is not None:
        rule = _rule(lattice, grid)
    rest = weight.t().contiguous()  # [in, out]
    codes = torch.empty_like(rest, dtype=torch.uint8)
    fitted: list[Grid] = []
    dynamic = size if grid is None else None
    with exact_float32():
        for begin, end in blocks_of(width, None if stale else dynamic):
            block = rest[begin:end].clone()
            errors = torch.empty_like(block)
            for start, stop in runs_of(begin, end, dynamic):
                at = slice(start - begin, stop - begin)
                local = group_of[start:stop]
                if dynamic:
                    if start % dynamic == 0:
                        source = rest[start : start + dynamic] if stale or start == begin else block[at]
                        fitted.append(_fit(lattice, source.t().unsqueeze(1).contiguous(), not fitted))
                        rule = _rule(lattice, fitted[-1])
                    local = torch.zeros_like(local)
                codes[start:stop], errors[at] = _feed(block[at], factor.upper[start:stop, start:stop], rule, local)
                if left is not None:  # w - level = e U_ii
                    left[:, start:stop] = (factor.upper.diagonal()[start:stop, None] * errors[at]).t()
                if stop < end:
                    block[at.stop :].addmm_(factor.upper[start:stop, stop:end].t(), errors[at], alpha=-1)
            if end < width:
                rest[end:].addmm_(factor.upper[begin:end, end:].t(), errors, alpha=-1)
    result, levels = codes.t(), type(fitted[0]).cat(fitted, 1) if grid is None else grid
    if factor.order is not None:
        result = torch.empty_like(result).index_copy_(1, factor.order, result)
    result = result.contiguous()
    if left is not None:
        if factor.order is not None:
            left.copy_(torch.empty_like(left).index_copy_(1, factor.order, left))
        left += levels.decode(result.reshape(*levels.shape, -1)).reshape(left.shape)
    return result, levels


def _rule(lattice: WeightMethod, grid: Grid) -> Any:
    return columns_of(lattice, grid) or Asked(lattice, grid)


def _fit(lattice: WeightMethod, values: torch.Tensor, first: bool = True) -> Grid:
    """Levels for ``values [rows, groups, n]``; the ``first`` ones are tried out, see :func:`refuse_together`."""
    values = values.float()
    grid = lattice.fit_groups(values)
    if first:
        refuse_together(lattice, grid, values)
    return grid


def refuse_together(lattice: WeightMethod, grid: Grid, values: torch.Tensor) -> None:
    """Whether single weights of ``values [rows, groups, n]`` get the codes of a group.

    Raises:
        ValueError: the lattice codes the weights of a group together: column by column it would be another one.
    """
    if type(lattice).begin is not WeightMethod.begin or columns_of(lattice, grid) is not None:
        return  # random codes are others each time
    some, levels, cause = values[:, :1, :PROBED], part_of(grid, 0), None
    together = lattice.encode_groups(some, levels)
    try:
        same = torch.equal(torch.cat([lattice.encode_groups(x, levels) for x in some.split(1, -1)], -1), together)
    except Exception as error:
        same, cause = False, error
    if not same:
        name = lattice.recipe.method
        raise ValueError(f"{name} codes the weights of a group together, and error feedback one by one") from cause


def _feed(values: torch.Tensor, factor: torch.Tensor, rule: Any, groups: torch.Tensor) -> Any:
    return (feedback_plain if isinstance(rule, Asked) else feedback)(values, factor, rule, groups)
