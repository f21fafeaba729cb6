"""The Triton twin of ``r2q.kernels.matvec.matvec_plain``: one kernel, the two bits of a code as signs.

A warp takes 16 rows or more of a group after another. Two codes of a word, 16 bits apart, become two numbers of -1 or 1
by one shift and one logical instruction a bit, in the registers in which the matrix units expect them: nothing passes
through shared memory before the sums of the warps are added. Scales are applied to the sums of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from r2q.kernels.planes import AFFINE, FLOAT_ZERO, WORD, Planes
from r2q.kernels.planes_triton import INTERPRETED, levels, span_words, to_cache

SPAN = 8  # words of a group that a warp takes at a time
MINUS_ONE = {torch.float16: 0xBC00BC00 - (1 << 32), torch.bfloat16: 0xBF80BF80 - (1 << 32)}  # two of them in an int32
_AFFINE, _FLOAT_ZERO = tl.constexpr(AFFINE), tl.constexpr(FLOAT_ZERO)


@dataclass(frozen=True)
class Split:
    """How a product is shared: ``rows`` of the weight a program, its inputs over ``warps``.

    Attributes:
        unrolled: the turns of a warp stand one after another in the program; else they are a loop.
        ahead: ask for all codes of a program before it waits for the kernel that makes the vectors.
    """

    rows: int = 16
    warps: int = 8
    unrolled: bool = True
    ahead: bool = True


FEW_ROWS = 4096


def pick_split(rows: int, batch: int) -> Split:
    """See benchmarks/NOTES.md."""
    return Split()


@triton.jit
def _halves(w, minus_one, BIT: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 where bit ``BIT`` of a code is set, else -1: ``[..., 2, 2, 2, 2]`` of ``w [...]``; code = j + 8 e, e last."""
    p0, p1 = (w << (15 - BIT)) & -0x7FFF8000 ^ minus_one, (w << (13 - BIT)) & -0x7FFF8000 ^ minus_one
    p2, p3 = (w << (11 - BIT)) & -0x7FFF8000 ^ minus_one, (w << (9 - BIT)) & -0x7FFF8000 ^ minus_one
    p4, p5 = (w << (7 - BIT)) & -0x7FFF8000 ^ minus_one, (w << (5 - BIT)) & -0x7FFF8000 ^ minus_one
    p6, p7 = (w << (3 - BIT)) & -0x7FFF8000 ^ minus_one, (w << (1 - BIT)) & -0x7FFF8000 ^ minus_one
    p = tl.join(tl.join(tl.join(p0, p4), tl.join(p2, p6)), tl.join(tl.join(p1, p5), tl.join(p3, p7)))
    return tl.join(p.to(tl.int16), (p >> 16).to(tl.int16)).to(DTYPE, bitcast=True)


@triton.jit
def _left(halves, PIECES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[PIECES, ROWS, WIDTH]`` in the order of inputs that costs no exchange between threads; see ``_right``."""
    return tl.reshape(tl.permute(halves, [2, 3, 1, 4, 5, 6, 0, 7, 8]), [PIECES, ROWS, WIDTH])


@triton.jit
def _right(x, T: tl.constexpr, BATCH: tl.constexpr, PIECES: tl.constexpr, U: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[PIECES, WIDTH, BATCH]`` of ``x [T, 8, PIECES, BATCH / 8, 2 U, 8]``, inputs as in ``_left``."""
    x = tl.reshape(x, [T, 8, PIECES, BATCH // 8, U, 2, 2, 2, 2])
    return tl.reshape(tl.permute(x, [2, 4, 6, 7, 0, 8, 5, 3, 1]), [PIECES, T * U * 16, BATCH])


@triton.jit
def _spread(a, PIECES: tl.constexpr, ROWS: tl.constexpr, BATCH: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[PIECES, ROWS, BATCH]`` of ``a [4, 8, PIECES, ROWS / 8]``, each of whose four is the same: no exchange."""
    a = tl.broadcast_to(a[:, :, :, :, None, None], [4, 8, PIECES, ROWS // 8, BATCH // 8, 2])
    return tl.reshape(tl.permute(a, [2, 3, 1, 4, 0, 5]), [PIECES, ROWS, BATCH])


@triton.jit
def _turn(  # type: ignore[no-untyped-def]
    total, w, x, known, first, second, place, here, minus_one,
    ROWS: tl.constexpr, BATCH: tl.constexpr, PIECES: tl.constexpr, T: tl.constexpr, U: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    """``total`` and what one span of each piece adds to it."""
    value = _right(tl.load(x, mask=known, other=0.0), T, BATCH, PIECES, U)
    c, a0, a1 = levels(first, second, place, here, FORM)
    WIDTH: tl.constexpr = T * U * 16
    bit0 = _left(_halves(w, minus_one, 0, value.dtype), PIECES, ROWS, WIDTH)
    bit1 = _left(_halves(w, minus_one, 1, value.dtype), PIECES, ROWS, WIDTH)
    total += _spread(0.5 * a0, PIECES, ROWS, BATCH) * tl.dot(bit0, value)
    total += _spread(0.5 * a1, PIECES, ROWS, BATCH) * tl.dot(bit1, value)
    if FORM == _AFFINE or FORM == _FLOAT_ZERO:  # noqa: SIM109 (Triton knows no `in`); the others are symmetric about zero
        ones = _left(_halves(w & 0, minus_one, 0, value.dtype), PIECES, ROWS, WIDTH)
        total -= _spread(c + 0.5 * (a0 + a1), PIECES, ROWS, BATCH) * tl.dot(ones, value)
    return total


@triton.jit(do_not_specialize=["batch", "minus_one"])
def _matvec(  # type: ignore[no-untyped-def]
    x, codes, first, second, out, batch, rows, row_stride, x_stride, minus_one,
    IN: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr, TURNS: tl.constexpr,
    SPAN: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr, UNROLLED: tl.constexpr, LINES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = min(4, SPAN)  # the first axes are those of the lanes of a warp: 4 words of 8 rows
    U: tl.constexpr = SPAN // T
    WORDS: tl.constexpr = IN // 16
    STEP: tl.constexpr = PIECES * SPAN
    start = tl.program_id(0) * ROWS
    eight, piece, high = tl.arange(0, 8), tl.arange(0, PIECES), tl.arange(0, ROWS // 8)
    lane = tl.arange(0, T)
    t = (lane // 2 + T // 2 * (lane % 2))[:, None, None, None, None]  # any order does; as this, loads are not joined
    row = (start + eight[:, None] + 8 * high[None, :])[None, :, None, :, None]
    word = (piece * SPAN)[None, None, :, None, None] + t * U + tl.arange(0, U)[None, None, None, None, :]
    place = codes + row * WORDS + word
    w = tl.load(place, mask=(row < rows) & (word < WORDS), other=0)
    b = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    vector = tl.program_id(1) * BATCH + eight[:, None] + 8 * tl.arange(0, BATCH // 8)[None, :]
    vector = vector[None, :, None, :, None, None]
    k = (piece * SPAN * 16)[None, None, :, None, None, None] + t[:, :, :, :, :, None] * (U * 16)
    k += tl.arange(0, 2 * U)[:, None] * 8 + tl.arange(0, 8)[None, :]
    same = tl.zeros([4], dtype=tl.int32)[:, None, None, None]
    table_row = same + (start + eight[:, None] + 8 * high[None, :])[None, :, None, :]
    table_word = (piece * SPAN)[None, None, :, None]
    if PDL:  # starts while the kernel before ends; only what does not depend on that is asked for before the wait
        tl.extra.cuda.gdc_launch_dependents()
        if LINES > 0:
            line = tl.minimum(32 * tl.arange(0, LINES), WORDS - 1)[None, :]
            to_cache(codes + tl.minimum(start + tl.arange(0, ROWS), rows - 1)[:, None] * WORDS + line)
        tl.extra.cuda.gdc_wait()
    total = tl.zeros([PIECES, ROWS, BATCH], dtype=tl.float32)
    if UNROLLED:
        for turn in tl.static_range(TURNS):
            now = w
            if turn + 1 < TURNS:
                w = tl.load(place + (turn + 1) * STEP, mask=(row < rows) & (word + (turn + 1) * STEP < WORDS), other=0)
            known, here = (vector < batch) & (k + turn * STEP * 16 < IN), table_word + turn * STEP
            total = _turn(
                total, now, x + vector * x_stride + k + turn * STEP * 16, known, first, second,
                table_row * row_stride + here // GROUP, (table_row < rows) & (here < WORDS), minus_one,
                ROWS, BATCH, PIECES, T, U, FORM,
            )  # fmt: skip
    else:
        for turn in range(TURNS):
            now = w
            w = tl.load(place + (turn + 1) * STEP, mask=(row < rows) & (word + (turn + 1) * STEP < WORDS), other=0)
            known, here = (vector < batch) & (k + turn * STEP * 16 < IN), table_word + turn * STEP
            total = _turn(
                total, now, x + vector * x_stride + k + turn * STEP * 16, known, first, second,
                table_row * row_stride + here // GROUP, (table_row < rows) & (here < WORDS), minus_one,
                ROWS, BATCH, PIECES, T, U, FORM,
            )  # fmt: skip
    row_out = start + tl.arange(0, ROWS)
    found = tl.sum(total, axis=0).to(out.dtype.element_ty)
    tl.store(out + b[None, :] * rows + row_out[:, None], found, mask=(row_out < rows)[:, None] & (b < batch)[None, :])


def matvec_triton(weight: Planes, x: torch.Tensor, split: Split | None = None) -> torch.Tensor:
    """See :func:`r2q.kernels.matvec.matvec`."""
    rows, words = weight.codes.shape
    batch = x.shape[0]
    x = x if x.stride(-1) == 1 else x.contiguous()
    split = split or pick_split(rows, batch)
    tile = 8 if batch <= 8 else 16
    span = span_words(weight, SPAN)
    out = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    pdl = not INTERPRETED
    _matvec[triton.cdiv(rows, split.rows), triton.cdiv(batch, tile)](
        x, weight.codes, weight.first, weight.second, out, batch, rows, weight.row_stride, x.stride(0),
        MINUS_ONE[x.dtype],
        IN=words * WORD, BATCH=tile, ROWS=split.rows, PIECES=split.warps, TURNS=triton.cdiv(words, split.warps * span),
        SPAN=span, GROUP=weight.group_words, FORM=weight.form, UNROLLED=split.unrolled,
        LINES=triton.next_power_of_2(triton.cdiv(words, 32)) if split.ahead else 0, PDL=pdl,
        num_warps=split.warps, num_stages=1, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
    return out
