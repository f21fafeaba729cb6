"""What the Triton kernels share: the form of a group, four products at once, rounding, decoding a weight."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from r2q.kernels.planes import AFFINE, BINARY, FLOAT_ZERO, SYMMETRIC, WORD, Planes

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # no inline assembly there
_BINARY, _AFFINE = tl.constexpr(BINARY), tl.constexpr(AFFINE)
_FLOAT_ZERO, _SYMMETRIC = tl.constexpr(FLOAT_ZERO), tl.constexpr(SYMMETRIC)


@triton.jit
def levels(first, second, place, mask, FORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """``c, a_0, a_1`` (float32) of the groups at ``place``."""
    if FORM == _BINARY:
        pair = tl.load(first + place, mask=mask, other=0)
        a0 = 2 * pair.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        a1 = 2 * (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        c = -0.5 * (a0 + a1)
    else:
        a0 = tl.load(first + place, mask=mask, other=0).to(tl.float32)
        a1 = 2 * a0
        if FORM == _AFFINE:
            byte = tl.load(second + place // 4, mask=mask, other=0).to(tl.int32)
            c = -a0 * ((byte >> (2 * (place % 4))) & 3).to(tl.float32)
        elif FORM == _FLOAT_ZERO:
            c = -a0 * tl.load(second + place, mask=mask, other=0).to(tl.float32)
        else:
            c = -1.5 * a0
    return c, a0, a1


@triton.jit
def dot4(bits, x, total, SIGNED: tl.constexpr, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """``total`` plus the products of four unsigned bytes of ``bits`` with four bytes of ``x`` (all int32)."""
    if ASM:
        if SIGNED:
            total = tl.inline_asm_elementwise(
                "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [bits, x, total], dtype=tl.int32, is_pure=True, pack=1
            )
        else:
            total = tl.inline_asm_elementwise(
                "dp4a.u32.u32 $0, $1, $2, $3;", "=r,r,r,r", [bits, x, total], dtype=tl.int32, is_pure=True, pack=1
            )
    else:
        for byte in tl.static_range(4):
            if SIGNED:  # noqa: SIM108 (constant when compiled)
                value = (x << (24 - 8 * byte)) >> 24
            else:
                value = (x >> (8 * byte)) & 255
            total = total + ((bits >> (8 * byte)) & 255) * value
    return total


@triton.jit
def nearest(x):  # type: ignore[no-untyped-def]
    """The nearest integer, half to even, of a float32 below 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def weight_tile(  # type: ignore[no-untyped-def]
    codes, first, second, row, word, rows, words, groups, group_words, row_stride,
    ROWS: tl.constexpr, WORDS: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Decoded levels, float32 ``[ROWS, WORDS * 16]``, of rows ``row`` and words ``word``; 0 outside."""
    inside = (row < rows)[:, None] & (word < words)[None, :]
    w = tl.load(codes + row[:, None] * words + word[None, :], mask=inside, other=0)  # [ROWS, WORDS]
    place = row[:, None] * row_stride + (word // group_words)[None, :]
    c, a0, a1 = levels(first, second, place, inside, FORM)
    q = w[:, :, None] >> (2 * tl.arange(0, 16))[None, None, :]  # each word is read once, and spread in registers
    level = c[:, :, None] + tl.where((q & 1) != 0, a0[:, :, None], 0.0)
    level = level + tl.where((q & 2) != 0, a1[:, :, None], 0.0)
    return tl.reshape(level, [ROWS, WORDS * 16])


@triton.jit
def _decode(  # type: ignore[no-untyped-def]
    codes, first, second, out, rows, words, groups, group_words, row_stride,
    ROWS: tl.constexpr, WORDS: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(0) * WORDS
    level = weight_tile(
        codes, first, second, row, start + tl.arange(0, WORDS), rows, words, groups, group_words, row_stride,
        ROWS, WORDS, FORM,
    )  # fmt: skip
    column = start * 16 + tl.arange(0, WORDS * 16)
    place = row.to(tl.int64)[:, None] * (words * 16) + column[None, :]
    mask = (row < rows)[:, None] & (column < words * 16)[None, :]
    tl.store(out + place, level.to(out.dtype.element_ty), mask=mask)


def decode_triton(weight: Planes, dtype: torch.dtype, tile: tuple[int, int] = (8, 64), warps: int = 4) -> torch.Tensor:
    """See :func:`r2q.kernels.planes.decode_plain`; the same bits up to the order of one addition."""
    rows, words = weight.codes.shape
    out = torch.empty(rows, words * WORD, dtype=dtype, device=weight.codes.device)
    grid = triton.cdiv(words, tile[1]), triton.cdiv(rows, tile[0])
    _decode[grid](
        weight.codes, weight.first, weight.second, out,
        rows, words, weight.groups, weight.group_words, weight.row_stride,
        ROWS=tile[0], WORDS=tile[1], FORM=weight.form, num_warps=warps,
    )  # fmt: skip
    return out
