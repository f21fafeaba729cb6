"""The Triton twin of ``r2q.kernels.quantize_pack.quantize_plain``: a program holds a few groups in its registers.

A GPU issues about ten instructions in the time in which it reads one 16-bit weight, so each of them counts. A thread
holds whole words of 16 weights, in pieces of eight (16 bytes, one load). The bits of a code are the signs of two
numbers: one instruction each shifts them into the word. A weight is never divided, see :func:`_threshold`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from r2q.kernels.planes_triton import eight
from r2q.quantization.grid import SMALLEST_SCALE

VALUES, WARPS, PIECES = 4096, 4, 2  # weights and warps of a program, pieces of a thread; see benchmarks/NOTES.md
_SMALLEST = tl.constexpr(SMALLEST_SCALE)
_ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _bits(x):  # type: ignore[no-untyped-def]
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _floats(x):  # type: ignore[no-untyped-def]
    return x.to(tl.float32, bitcast=True)


@triton.jit
def _sum(x):  # type: ignore[no-untyped-def]
    """Over all but the groups of ``x [CHUNKS, GROUPS, PIECES, 8]``: within a thread first."""
    return tl.sum(tl.sum(tl.sum(x, axis=3), axis=2), axis=0)


@triton.jit
def _mean(x, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """:func:`_sum` divided by N, correctly rounded."""
    return _sum(x) * (1.0 / N) if N & (N - 1) == 0 else tl.div_rn(_sum(x), N * 1.0)


@triton.jit
def _larger(a, b):  # type: ignore[no-untyped-def]
    return tl.maximum(a, b, _ALL)


@triton.jit
def _max(x):  # type: ignore[no-untyped-def]
    """The largest of each group as in :func:`_sum`, or NaN where there is one; 0 at least."""
    return _larger(tl.reduce(tl.reduce(tl.reduce(x, 3, _larger), 2, _larger), 0, _larger), 0.0)


@triton.jit
def _threshold(step, n):  # type: ignore[no-untyped-def]
    """The least w of which ``round(w / step)``, half to even, is above the integer n (float32, broadcast to weights).

    That is ``t = (n + 1/2) step``, or the next number where half goes down to an even n. t is exact: step has 11 bits.
    No quotient of another w is rounded to n + 1/2: the next numbers are at least 2^-24 t away (more, on the far
    side), so their quotients are 2^-24 (n + 1/2) away, which is more than half of the last place there.
    """
    t = _bits(step * (n + 0.5))
    return _floats(t + (((t >> 31) | 1) & ((n & 1) - 1)))[None, :, None, None]


@triton.jit
def _below(word, sign):  # type: ignore[no-untyped-def]
    """``word`` with the top bit of ``sign`` shifted in at the bottom: one instruction."""
    return (word << 1) | ((sign >> 31) & 1)


@triton.jit
def _pack(high, low):  # type: ignore[no-untyped-def]
    """Codes of eight weights (the last axis), 16 bits: a bit is set where ``high`` or ``low`` has no minus."""
    h0, h1, h2, h3, h4, h5, h6, h7 = eight(_bits(high))
    l0, l1, l2, l3, l4, l5, l6, l7 = eight(_bits(low))
    word = _below(_below(_below(h7 >> 31, l7), h6), l6)
    word = _below(_below(_below(_below(word, h5), l5), h4), l4)
    word = _below(_below(_below(_below(word, h3), l3), h2), l2)
    return (~_below(_below(_below(_below(word, h1), l1), h0), l0)).to(tl.int16)


@triton.jit
def _quantize(  # type: ignore[no-untyped-def]
    weight, codes, first, zeros, total,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, CHUNKS: tl.constexpr, PIECES: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * GROUPS
    group = tl.arange(0, GROUPS)
    known = group < total - begin
    piece = tl.arange(0, CHUNKS)[:, None, None] * PIECES + tl.arange(0, PIECES)[None, None, :]
    inside = known[None, :, None] & (piece < GROUP // 8)  # [CHUNKS, GROUPS, PIECES]: lanes take the first axis first
    place = group[None, :, None] * (GROUP // 8) + piece
    eight = place[:, :, :, None] * 8 + tl.arange(0, 8)
    w = tl.load(weight + begin * GROUP + eight, mask=inside[:, :, :, None], other=0.0).to(tl.float32)
    if RESIDUAL:
        w += 0.0  # -0 becomes +0
        a0 = _mean(tl.abs(w), GROUP).to(tl.float16)
        outer = _bits(a0.to(tl.float32))[None, :, None, None]
        rest = w - _floats(outer | (_bits(w) & -0x80000000))
        a1 = _mean(tl.where(inside[:, :, :, None], tl.abs(rest), 0.0), GROUP).to(tl.float16)
        both = a0.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF | a1.to(tl.int16, bitcast=True).to(tl.int32) << 16
        tl.store(first + begin + group, both, mask=known)
        packed = _pack(rest, w)
    else:
        low, high = _max(-w), _max(w)  # zeros outside: the range holds zero
        scale = _larger(tl.div_rn(low + high, 3.0 + 0 * low), _SMALLEST).to(tl.float16)
        step = scale.to(tl.float32)
        zero = (low > 0.5 * step).to(tl.int32) + (low >= 1.5 * step).to(tl.int32) + (low > 2.5 * step).to(tl.int32)
        tl.store(first + begin + group, scale, mask=known)
        tl.store(zeros + begin + group, zero.to(tl.uint8), mask=known)
        one, two, three = w - _threshold(step, -zero), w - _threshold(step, 1 - zero), w - _threshold(step, 2 - zero)
        packed = _pack(two, _bits(one) ^ _bits(two) ^ _bits(three))  # 0 to 3 are ---, +--, ++-, +++
    tl.store(codes + begin * (GROUP // 8) + place, packed, mask=inside)


def quantize_triton(
    weight: torch.Tensor, group: int, kind: str
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
    at_once = max(1, VALUES // width)
    _quantize[(triton.cdiv(rows * groups, at_once),)](
        weight, codes.view(torch.int16), first.view(torch.int32) if residual else first,
        first if zero is None else zero, rows * groups,
        GROUP=group, GROUPS=at_once, CHUNKS=width // 8 // PIECES, PIECES=PIECES, RESIDUAL=residual,
        num_warps=max(WARPS, width // 2048), enable_fp_fusion=False,
    )  # fmt: skip
    return codes, first, zero
