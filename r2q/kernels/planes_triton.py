"""What the Triton kernels share: the form of a group, decoding a weight."""

from __future__ import annotations

import functools
import os
from math import gcd

import torch
import triton
import triton.language as tl

from r2q.kernels.planes import AFFINE, BINARY, FLOAT_ZERO, SYMMETRIC, WORD, Planes

DECODE = 4, 128, 4  # rows and words of a program that decodes, and its warps; see benchmarks/NOTES.md
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # no inline assembly there
_BINARY, _AFFINE = tl.constexpr(BINARY), tl.constexpr(AFFINE)
_FLOAT_ZERO, _SYMMETRIC = tl.constexpr(FLOAT_ZERO), tl.constexpr(SYMMETRIC)


@triton.jit
def tables(first, second, place, mask, FORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """What is stored of the groups at ``place``: two tensors, for :func:`levels`."""
    one = tl.load(first + place, mask=mask, other=0)
    two = one
    if FORM == _AFFINE:
        two = tl.load(second + place // 4, mask=mask, other=0)
    elif FORM == _FLOAT_ZERO:
        two = tl.load(second + place, mask=mask, other=0)
    return one, two


@triton.jit
def signs(one, two, place, FORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """``z, h_0, h_1`` (float32) of what :func:`tables` gave; see :mod:`r2q.kernels.matvec`."""
    if FORM == _BINARY:
        h0 = one.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        h1 = (one >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        z = 0 * h0
    else:
        h1 = one.to(tl.float32)
        h0 = 0.5 * h1
        if FORM == _AFFINE:
            z = h1 * (1.5 - ((two.to(tl.int32) >> (2 * (place % 4))) & 3).to(tl.float32))
        elif FORM == _FLOAT_ZERO:
            z = h1 * (1.5 - two.to(tl.float32))
        else:
            z = 0 * h1
    return z, h0, h1


@triton.jit
def levels(one, two, place, FORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """``c, a_0, a_1`` (float32) of what :func:`tables` gave."""
    z, h0, h1 = signs(one, two, place, FORM)
    return z - (h0 + h1), 2 * h0, 2 * h1


@triton.jit
def permute(a, b, selector, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Four bytes of ``a`` (numbers 0 to 3) and ``b`` (4 to 7): byte i is the one that digit i of ``selector`` names."""
    if ASM:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, selector], dtype=tl.int32, is_pure=True, pack=1
        )
    out = tl.zeros_like(a)
    for i in tl.static_range(4):
        digit = (selector >> (4 * i)) & 7
        source = tl.where(digit < 4, a, b)
        out = out | (((source >> (8 * (digit & 3))) & 255) << (8 * i))
    return out


@triton.jit
def eight(x):  # type: ignore[no-untyped-def]
    """The eight entries of the last axis of ``x [..., 8]``."""
    x = tl.reshape(x, x.shape[:-1] + [2, 2, 2])  # noqa: RUF005 (no star in a kernel)
    a, b = tl.split(x)
    aa, ab = tl.split(a)
    ba, bb = tl.split(b)
    x0, x4 = tl.split(aa)
    x2, x6 = tl.split(ab)
    x1, x5 = tl.split(ba)
    x3, x7 = tl.split(bb)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def level_bits(level, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The 16 bits of a level rounded to ``DTYPE``, in an int32."""
    return level.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit
def pairs(low, high, even, odd, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Levels of eight codes, two in an int32: four digits of ``even`` and of ``odd`` each name bytes of two tables."""
    low_even, high_even = permute(low, low, even, ASM), permute(high, high, even, ASM)
    low_odd, high_odd = permute(low, low, odd, ASM), permute(high, high, odd, ASM)
    left, right = permute(low_even, high_even, 0x5140, ASM), permute(low_odd, high_odd, 0x5140, ASM)
    first, second = permute(left, right, 0x5410, ASM), permute(left, right, 0x7632, ASM)
    left, right = permute(low_even, high_even, 0x7362, ASM), permute(low_odd, high_odd, 0x7362, ASM)
    return first, second, permute(left, right, 0x5410, ASM), permute(left, right, 0x7632, ASM)


@triton.jit
def weight_tile(  # type: ignore[no-untyped-def]
    codes, first, second, row, span, rows, words, row_stride,
    ROWS: tl.constexpr, SPANS: tl.constexpr, SPAN: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr,
    DTYPE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Levels in ``DTYPE``, ``[ROWS, SPANS * SPAN * 16]``, of rows ``row`` and the SPAN words from each of ``span`` on.

    Words of a span share their levels; GROUP are the words of a group. The four levels of a group are two tables of
    four bytes, the lower and the upper halves, from which one instruction takes those of four codes. A word outside
    has levels of 0, a row outside any.
    """
    word = span[:, None] + tl.arange(0, SPAN)[None, :]  # [SPANS, SPAN]
    inside = (row < rows)[:, None, None] & (word < words)[None, :, :]
    w = tl.load(codes + row[:, None, None] * words + word[None, :, :], mask=inside, other=0)  # [ROWS, SPANS, SPAN]
    known = (row < rows)[:, None] & (span < words)[None, :]
    group = row[:, None] * row_stride + (span // GROUP)[None, :]
    one, two = tables(first, second, group, known, FORM)
    c, a0, a1 = levels(one, two, group, FORM)
    zero_one = level_bits(c, DTYPE) | (level_bits(c + a0, DTYPE) << 16)
    two_three = level_bits(c + a1, DTYPE) | (level_bits(c + a0 + a1, DTYPE) << 16)
    low = permute(zero_one, two_three, 0x6420, ASM)[:, :, None]
    high = permute(zero_one, two_three, 0x7531, ASM)[:, :, None]
    low, high = tl.broadcast_to(low, [ROWS, SPANS, SPAN]), tl.broadcast_to(high, [ROWS, SPANS, SPAN])
    even, odd = w & 0x33333333, (w >> 2) & 0x33333333
    p0, p1, p2, p3 = pairs(low, high, even, odd, ASM)
    p4, p5, p6, p7 = pairs(low, high, even >> 16, odd >> 16, ASM)
    p = tl.join(tl.join(tl.join(p0, p4), tl.join(p2, p6)), tl.join(tl.join(p1, p5), tl.join(p3, p7)))
    p = tl.join(p.to(tl.int16), (p >> 16).to(tl.int16))
    return tl.reshape(p, [ROWS, SPANS * SPAN * 16]).to(DTYPE, bitcast=True)


@triton.jit
def _decode(  # type: ignore[no-untyped-def]
    codes, first, second, out, rows, row_stride,
    IN: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr,
    FORM: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(0) * WORDS
    level = weight_tile(
        codes, first, second, row, start + tl.arange(0, WORDS // SPAN) * SPAN, rows, IN // 16, row_stride,
        ROWS, WORDS // SPAN, SPAN, GROUP, FORM, out.dtype.element_ty, ASM,
    )  # fmt: skip
    column = start * 16 + tl.arange(0, WORDS * 16)
    place = row.to(tl.int64)[:, None] * IN + column[None, :]
    tl.store(out + place, level, mask=(row < rows)[:, None] & (column < IN)[None, :])


@functools.cache
def starts_early(device: torch.device) -> bool:
    """Whether a kernel may start while the one before it ends: from compute capability 9 on."""
    return not INTERPRETED and torch.cuda.get_device_capability(device)[0] >= 9


def span_words(weight: Planes, words: int) -> int:
    """How many words, of ``words`` from a multiple of that on, surely share their levels: they are asked for once."""
    return gcd(weight.group_words, words)


def decode_triton(weight: Planes, dtype: torch.dtype, tile: tuple[int, int, int] | None = None) -> torch.Tensor:
    """See :func:`r2q.kernels.planes.decode_plain`, in 16 bits; the same bits up to the order of one addition."""
    tile = tile or DECODE
    rows, words = weight.codes.shape
    out = torch.empty(rows, words * WORD, dtype=dtype, device=weight.codes.device)
    grid = triton.cdiv(words, tile[1]), triton.cdiv(rows, tile[0])
    _decode[grid](
        weight.codes, weight.first, weight.second, out, rows, weight.row_stride,
        IN=words * WORD, ROWS=tile[0], WORDS=tile[1], GROUP=weight.group_words, SPAN=span_words(weight, tile[1]),
        FORM=weight.form, ASM=not INTERPRETED, num_warps=tile[2],
    )  # fmt: skip
    return out
