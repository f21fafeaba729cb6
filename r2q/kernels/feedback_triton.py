"""The Triton twin of ``r2q.kernels.feedback.feedback_plain``: a block of columns in the registers of one kernel.

A program holds ``[columns, tile]`` values and goes through the columns in order. Column i is taken out of the
registers by a masked sum (exact: all other terms are zero), so nothing is exchanged through memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

if TYPE_CHECKING:
    from r2q.kernels.feedback import Rule

TILE, WARPS = 32, 1  # rows of a program; see benchmarks/NOTES.md


@triton.jit
def _feedback(  # type: ignore[no-untyped-def]
    values, factor, groups, first, second, third, codes, errors,
    n, rows, factor_stride,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, LEVELS: tl.constexpr, STEPS: tl.constexpr, FLOAT_ZERO: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)  # [tile]
    inside = row < rows
    column = tl.arange(0, COLUMNS)  # [columns]
    place = column[:, None] * rows + row[None, :]
    w = tl.load(values + place, mask=(column < n)[:, None] & inside[None, :], other=0.0)
    for i in range(n):
        x = tl.sum(tl.where(column[:, None] == i, w, 0.0), axis=0)  # [tile]
        group = tl.load(groups + i)
        if STEPS:
            scale = tl.load(first + group * rows + row, mask=inside, other=1.0)
            zero = tl.load(second + group * rows + row, mask=inside, other=0.0)
            code = tl.div_rn(x, scale)
            if FLOAT_ZERO:  # noqa: SIM108 (constant when compiled)
                code = libdevice.rint(code + zero)
            else:
                code = libdevice.rint(code) + zero
            code = tl.minimum(tl.maximum(code, 0.0), LEVELS - 1.0)
            level = (code - zero) * scale
        else:
            base = group * LEVELS * rows + row
            level = tl.load(second + base, mask=inside, other=0.0)
            code = tl.load(third + base, mask=inside, other=0.0)
            for j in tl.static_range(1, LEVELS):
                threshold = tl.load(first + (group * (LEVELS - 1) + j - 1) * rows + row, mask=inside, other=0.0)
                reached = x >= threshold
                level = tl.where(reached, tl.load(second + base + j * rows, mask=inside, other=0.0), level)
                code = tl.where(reached, tl.load(third + base + j * rows, mask=inside, other=0.0), code)
        weights = tl.load(factor + i * factor_stride + column, mask=(column > i) & (column < n), other=0.0)
        error = tl.div_rn(x - level, tl.load(factor + i * factor_stride + i))
        tl.store(codes + i * rows + row, code.to(tl.uint8), mask=inside)
        tl.store(errors + i * rows + row, error, mask=inside)
        w = w - weights[:, None] * error[None, :]


def feedback_triton(
    values: torch.Tensor, factor: torch.Tensor, rule: Rule, groups: torch.Tensor, tile: int = TILE, warps: int = WARPS
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`r2q.kernels.feedback.feedback`; ``values`` stay as they are."""
    n, rows = values.shape
    values, groups = values.contiguous(), groups.to(values.device, torch.int32)
    if factor.stride(1) != 1:
        factor = factor.contiguous()
    codes, errors = torch.empty_like(values, dtype=torch.uint8), torch.empty_like(values)
    first, second, *third = (table.contiguous() for table in rule.tables)
    with torch.cuda.device(values.device):
        _feedback[(triton.cdiv(rows, tile),)](
            values, factor, groups, first, second, *(third or [second]), codes, errors,
            n, rows, factor.stride(0),
            COLUMNS=triton.next_power_of_2(n), TILE=tile, LEVELS=rule.last + 1, STEPS=not third,
            FLOAT_ZERO=rule.float_zero, num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
    return codes, errors
