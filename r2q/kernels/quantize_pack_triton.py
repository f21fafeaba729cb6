"""The Triton twin of ``r2q.kernels.quantize_pack.quantize_plain``: a program holds a few groups in its registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from r2q.quantization.grid import SMALLEST_SCALE

VALUES = 4096  # weights of a program, where a group is not larger; see benchmarks/NOTES.md
_SMALLEST = tl.constexpr(SMALLEST_SCALE)


@triton.jit
def _nearest(x):  # type: ignore[no-untyped-def]
    """The nearest integer, half to even, of a float32 below 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _quantize(  # type: ignore[no-untyped-def]
    weight, codes, first, zeros, total,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    k = tl.arange(0, WIDTH)
    inside = (group < total)[:, None] & (k < GROUP)[None, :]
    w = tl.load(weight + group[:, None] * GROUP + k[None, :], mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        size = tl.abs(w)
        a0 = tl.div_rn(tl.sum(size, axis=1), GROUP * 1.0).to(tl.float16)
        outer = a0.to(tl.float32)[:, None]
        rest = tl.where(inside, tl.abs(size - outer), 0.0)
        a1 = tl.div_rn(tl.sum(rest, axis=1), GROUP * 1.0).to(tl.float16)
        tl.store(first + group * 2, a0, mask=group < total)
        tl.store(first + group * 2 + 1, a1, mask=group < total)
        left = tl.where(w >= 0, w - outer, w + outer)
        q = (w >= 0).to(tl.int32) + 2 * (left >= 0).to(tl.int32)
    else:
        low, high = tl.min(w, axis=1), tl.max(w, axis=1)  # zeros outside: the range holds zero
        low, high = tl.minimum(low, 0.0), tl.maximum(high, 0.0)
        scale = tl.maximum(tl.div_rn(high - low, 3.0 + 0 * low), _SMALLEST)
        broken = tl.sum((w != w).to(tl.int32), axis=1) > 0  # a minimum passes over NaN
        scale = tl.where(broken, float("nan"), scale).to(tl.float16)
        step = scale.to(tl.float32)
        zero = tl.minimum(tl.maximum(_nearest(tl.div_rn(-low, step)), 0.0), 3.0)
        tl.store(first + group, scale, mask=group < total)
        tl.store(zeros + group, zero.to(tl.uint8), mask=group < total)
        level = _nearest(tl.div_rn(w, step[:, None] + 0 * w)) + zero[:, None]
        q = tl.minimum(tl.maximum(level, 0.0), 3.0).to(tl.int32)
    q = tl.reshape(q, [GROUPS, WIDTH // 16, 16]) << (2 * tl.arange(0, 16))[None, None, :]
    word = tl.arange(0, WIDTH // 16)
    place = group[:, None] * (GROUP // 16) + word[None, :]
    tl.store(codes + place, tl.sum(q, axis=2), mask=(group < total)[:, None] & (word < GROUP // 16)[None, :])


def quantize_triton(
    weight: torch.Tensor, group: int, kind: str, values: int = VALUES, warps: int = 4
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """For :func:`r2q.kernels.quantize_pack.quantize_pack`, unchecked: int32 codes, 16-bit scales, uint8 zero points."""
    rows, columns = weight.shape
    weight = weight.contiguous()
    groups = columns // group
    residual = kind == "r2q"
    device = weight.device
    codes = torch.empty(rows, columns // 16, dtype=torch.int32, device=device)
    first = torch.empty((rows, groups, 2) if residual else (rows, groups), dtype=torch.float16, device=device)
    zero = None if residual else torch.empty(rows, groups, dtype=torch.uint8, device=device)
    width = triton.next_power_of_2(group)
    at_once = max(1, values // width)
    _quantize[(triton.cdiv(rows * groups, at_once),)](
        weight, codes, first, first if zero is None else zero, rows * groups,
        GROUP=group, GROUPS=at_once, WIDTH=width, RESIDUAL=residual, num_warps=max(warps, width // 2048),
    )  # fmt: skip
    return codes, first, zero
