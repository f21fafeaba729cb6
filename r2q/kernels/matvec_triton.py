"""The Triton twin of ``r2q.kernels.matvec.matvec_plain``: the two bits of a code as signs for the matrix units.

For two to eight vectors, and for one where ``counts_bits`` of ``matvec_bits_triton`` says no.

A warp takes 16 rows or more of a few inputs at a time. Two codes of a word, 16 bits apart, become two numbers of -1 or
1 by one shift and one logical instruction a bit, in the registers in which the matrix units expect them: nothing
passes through shared memory before the sums of the warps are added, in a fixed order.

The units multiply by eight columns. Three to eight vectors are a column each, and the four lanes of a row share a
segment, inputs with the same scales. One or two vectors leave room: each lane takes a segment of its own (``APART``),
a column holds the inputs of one segment and zeros, and each thread scales its own sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from r2q.kernels.planes import AFFINE, FLOAT_ZERO, WORD, Planes
from r2q.kernels.planes_triton import signs, span_words, starts_early, tables

SEGMENT = 8  # words at most
MINUS_ONE = {torch.float16: 0xBC00BC00 - (1 << 32), torch.bfloat16: 0xBF80BF80 - (1 << 32)}  # two of them in an int32
_AFFINE, _FLOAT_ZERO = tl.constexpr(AFFINE), tl.constexpr(FLOAT_ZERO)


@dataclass(frozen=True)
class Split:
    """How a product is shared: ``rows`` of the weight a program, its inputs over ``warps``.

    Attributes:
        ahead: ask for all codes of a program before it waits for the kernel that makes the vectors.
    """

    rows: int = 16
    warps: int = 8
    ahead: bool = True


def pick_split(rows: int, width: int, batch: int) -> Split:
    """The split of a weight ``[rows, width]`` for so many vectors; see benchmarks/NOTES.md."""
    if rows < 2048:
        return Split(warps=4)
    if batch > 2:
        return Split(rows=32, ahead=False)
    return Split(rows=32 if width > 2 * rows else 16)


@triton.jit
def _to_cache(place):  # type: ignore[no-untyped-def]
    """Ask for the lines of memory that hold ``place``, without waiting for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [place], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _halves(w, minus_one, BIT: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 where bit ``BIT`` of a code is set, else -1: ``[..., 8, 2]``, the 8 as pairs, of ``w [...]``; code j + 8 e."""
    p0, p1 = (w << (15 - BIT)) & -0x7FFF8000 ^ minus_one, (w << (13 - BIT)) & -0x7FFF8000 ^ minus_one
    p2, p3 = (w << (11 - BIT)) & -0x7FFF8000 ^ minus_one, (w << (9 - BIT)) & -0x7FFF8000 ^ minus_one
    p4, p5 = (w << (7 - BIT)) & -0x7FFF8000 ^ minus_one, (w << (5 - BIT)) & -0x7FFF8000 ^ minus_one
    p6, p7 = (w << (3 - BIT)) & -0x7FFF8000 ^ minus_one, (w << (1 - BIT)) & -0x7FFF8000 ^ minus_one
    p = tl.join(tl.join(tl.join(p0, p4), tl.join(p2, p6)), tl.join(tl.join(p1, p5), tl.join(p3, p7)))
    return tl.join(p.to(tl.int16), (p >> 16).to(tl.int16)).to(DTYPE, bitcast=True)


@triton.jit
def _left(halves, PIECES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[PIECES, ROWS, WIDTH]`` in the order of inputs that costs no exchange between threads; see ``_right``."""
    return tl.reshape(tl.permute(halves, [2, 3, 1, 4, 5, 6, 7, 0, 8, 9]), [PIECES, ROWS, WIDTH])


@triton.jit
def _right(x, PIECES: tl.constexpr, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[PIECES, WIDTH, 8]`` of ``x [4, 8, PIECES, 2 WORDS, 8]``, inputs as in ``_left``."""
    x = tl.reshape(x, [4, 8, PIECES, WORDS, 2, 2, 2, 2])
    return tl.reshape(tl.permute(x, [2, 3, 5, 6, 0, 7, 4, 1]), [PIECES, WORDS * 64, 8])


@triton.jit
def _spread(a, PIECES: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[PIECES, ROWS, 8]`` of ``a [4, 8, PIECES, ROWS / 8]``: two columns are those of a lane."""
    a = tl.broadcast_to(a[:, :, :, :, None], [4, 8, PIECES, ROWS // 8, 2])
    return tl.reshape(tl.permute(a, [2, 3, 1, 0, 4]), [PIECES, ROWS, 8])


@triton.jit(do_not_specialize=["batch", "minus_one"])
def _matvec(  # type: ignore[no-untyped-def]
    x, codes, first, second, out, batch, rows, row_stride, x_stride, minus_one,
    IN: tl.constexpr, APART: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr, TURNS: tl.constexpr,
    SEGMENT: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr, LINES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    WORDS: tl.constexpr = IN // 16
    SEGMENTS: tl.constexpr = WORDS // SEGMENT
    OWN: tl.constexpr = SEGMENT if APART else SEGMENT // 4  # words of a lane in a turn
    STEP: tl.constexpr = PIECES * 4 if APART else PIECES  # segments of a turn
    BATCH: tl.constexpr = 2 if APART else 8
    VECTOR: tl.constexpr = min(4, OWN)
    DTYPE: tl.constexpr = x.dtype.element_ty
    start = tl.program_id(0) * ROWS
    lane, eight, piece, high = tl.arange(0, 4), tl.arange(0, 8), tl.arange(0, PIECES), tl.arange(0, ROWS // 8)
    quad = lane // 2 + 2 * (lane % 2)  # any order does; as this, loads of lanes are not joined
    if APART:
        segment = quad[:, None] + 4 * piece[None, :]  # [4, PIECES]
        begin = SEGMENT * segment
        column = lane[:, None] == eight[None, :] // 2
    else:
        segment = 0 * quad[:, None] + piece[None, :]
        begin = SEGMENT * segment + OWN * quad[:, None]
        column = lane[:, None] < 4
    row = (start + eight[:, None] + 8 * high[None, :])[None, :, None, :]  # [1, 8, 1, ROWS / 8]
    word = begin[:, None, :, None, None, None] + VECTOR * tl.arange(0, OWN // VECTOR)[:, None]
    word += tl.arange(0, VECTOR)[None, :]  # [4, 1, PIECES, 1, OWN / VECTOR, VECTOR]
    place = codes + row[:, :, :, :, None, None] * WORDS + word
    inside = (row < rows)[:, :, :, :, None, None]
    k = 16 * begin[:, None, :, None, None] + 8 * tl.arange(0, 2 * OWN)[:, None] + eight[None, :]
    vector = BATCH * tl.program_id(1) + eight % BATCH
    column = (column & (vector < batch)[None, :])[:, :, None, None, None]
    x += vector[None, :, None, None, None] * x_stride
    s, group = segment[:, None, :, None], row * row_stride
    w = tl.load(place, mask=inside & (word < WORDS), other=0)
    one, two = tables(first, second, group + s * SEGMENT // GROUP, (row < rows) & (s < SEGMENTS), FORM)
    if PDL:  # starts while the kernel before ends; only what does not depend on that is asked for before the wait
        tl.extra.cuda.gdc_launch_dependents()
        if LINES > 0:
            line = tl.minimum(32 * tl.arange(0, LINES), WORDS - 1)[None, :]
            _to_cache(codes + tl.minimum(start + tl.arange(0, ROWS), rows - 1)[:, None] * WORDS + line)
        tl.extra.cuda.gdc_wait()
    total = tl.zeros([PIECES, ROWS, 8], dtype=tl.float32)
    for turn in tl.static_range(TURNS):
        skip = turn * STEP
        value = tl.load(x + k + skip * SEGMENT * 16, mask=column & (k + skip * SEGMENT * 16 < IN), other=0.0)
        value = _right(value, PIECES, OWN)
        now, now_one, now_two = w, one, two
        if turn + 1 < TURNS:
            w = tl.load(
                place + (skip + STEP) * SEGMENT, mask=inside & (word + (skip + STEP) * SEGMENT < WORDS), other=0
            )
            known = (row < rows) & (s + skip + STEP < SEGMENTS)
            one, two = tables(first, second, group + (s + skip + STEP) * SEGMENT // GROUP, known, FORM)
        z, h0, h1 = signs(now_one, now_two, group + (s + skip) * SEGMENT // GROUP, FORM)
        bit0 = _left(_halves(now, minus_one, 0, DTYPE), PIECES, ROWS, OWN * 64)
        total += _spread(h0, PIECES, ROWS) * tl.dot(bit0, value)
        bit1 = _left(_halves(now, minus_one, 1, DTYPE), PIECES, ROWS, OWN * 64)
        total += _spread(h1, PIECES, ROWS) * tl.dot(bit1, value)
        if FORM == _AFFINE or FORM == _FLOAT_ZERO:  # noqa: SIM109 (Triton knows no `in`); the others are symmetric
            ones = _left(_halves(now & 0, minus_one, 0, DTYPE), PIECES, ROWS, OWN * 64)
            total -= _spread(z, PIECES, ROWS) * tl.dot(ones, value)
    if APART:
        total = tl.sum(tl.reshape(total, [PIECES, ROWS, 4, 2]), axis=2)
    found = tl.sum(total, axis=0)
    row_out, b = start + tl.arange(0, ROWS), BATCH * tl.program_id(1) + tl.arange(0, BATCH)
    mask = (row_out < rows)[:, None] & (b < batch)[None, :]
    tl.store(out + b[None, :] * rows + row_out[:, None], found.to(out.dtype.element_ty), mask=mask)


def matvec_triton(weight: Planes, x: torch.Tensor, split: Split | None = None) -> torch.Tensor:
    """See :func:`r2q.kernels.matvec.matvec`."""
    rows, words = weight.codes.shape
    batch = x.shape[0]
    x = x if x.stride(-1) == 1 else x.contiguous()
    split = split or pick_split(rows, words * WORD, batch)
    segment = span_words(weight, SEGMENT)
    apart = batch <= 2 or segment < 4
    turns = triton.cdiv(words, (4 if apart else 1) * segment * split.warps)
    out = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    pdl = starts_early(x.device)
    _matvec[triton.cdiv(rows, split.rows), triton.cdiv(batch, 2 if apart else 8)](
        x, weight.codes, weight.first, weight.second, out, batch, rows, weight.row_stride, x.stride(0),
        MINUS_ONE[x.dtype],
        IN=words * WORD, APART=apart, ROWS=split.rows, PIECES=split.warps, TURNS=turns, SEGMENT=segment,
        GROUP=weight.group_words, FORM=weight.form,
        LINES=triton.next_power_of_2(triton.cdiv(words, 32)) if split.ahead else 0, PDL=pdl,
        num_warps=split.warps, num_stages=1, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
    return out
