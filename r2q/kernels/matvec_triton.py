"""The Triton twin of ``r2q.kernels.matvec.matvec_plain``: one kernel lays the vector out, one multiplies.

A warp of the second takes 16 rows or more of a segment after another. Four codes of a word, 8 bits apart, become four
bytes of -64 or 64 by one shift and one logical instruction a bit, in the registers in which the matrix units expect
them: nothing passes through shared memory before the sums of the warps are added, in a fixed order. The words of a
program are asked for before it waits for the vector (programmatic dependent launch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from r2q.kernels.matvec import LIMIT, segment_words
from r2q.kernels.planes import AFFINE, FLOAT_ZERO, WORD, Planes
from r2q.kernels.planes_triton import INTERPRETED, levels, nearest, to_cache

FEW_ROWS = 4096
MINUS = 0xC0C0C0C0 - (1 << 32)  # -64, four times
_AFFINE, _FLOAT_ZERO, _LIMIT = tl.constexpr(AFFINE), tl.constexpr(FLOAT_ZERO), tl.constexpr(LIMIT)


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


def pick_split(rows: int) -> Split:
    """See benchmarks/NOTES.md."""
    return Split()


@triton.jit
def _prepare(  # type: ignore[no-untyped-def]
    x, in_scale, bytes_, steps, totals, x_stride, words, segments,
    SEGMENT: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:  # the product may start and read its weights; what is read and written here waits for the kernel before
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    batch = tl.program_id(1)
    segment = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = segment[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]  # [BLOCK, SEGMENT]
    inside = (segment < segments)[:, None, None, None]
    byte, field = tl.arange(0, 4)[None, None, :, None], tl.arange(0, 4)[None, None, None, :]
    k = word[:, :, None, None] * 16 + 4 * byte + field
    value = tl.load(x + batch * x_stride + k, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        value = tl.div_rn(value, tl.load(in_scale + k, mask=inside, other=1.0).to(tl.float32))
    size = tl.reshape(value, [BLOCK, SEGMENT * 16]).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    largest = tl.max(size, axis=1).to(tl.float32, bitcast=True)  # as integers, so that NaN is the largest of all
    unit = tl.where(largest > 0, tl.div_rn(_LIMIT * 1.0, largest), 0.0)
    v = nearest(value * unit[:, None, None, None]).to(tl.int32)
    tl.store(steps + batch * segments + segment, tl.div_rn(largest, _LIMIT * 1.0), mask=segment < segments)
    tl.store(totals + batch * segments + segment, tl.sum(tl.reshape(v, [BLOCK, SEGMENT * 16]), axis=1),
             mask=segment < segments)  # fmt: skip
    low = tl.sum((v & 255) << (8 * byte), axis=2)  # [BLOCK, SEGMENT, 4 fields]
    high = tl.sum((((v + 128) >> 8) & 255) << (8 * byte), axis=2)
    place = batch * 8 * words + word[:, :, None] * 4 + tl.arange(0, 4)[None, None, :]
    tl.store(bytes_ + place, high, mask=(segment < segments)[:, None, None])
    tl.store(bytes_ + place + 4 * words, low, mask=(segment < segments)[:, None, None])


@triton.jit
def _signs(w, minus, BIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """64 where bit ``BIT`` of a code is set, else -64: int8 ``[..., 4, 4]`` as pairs, of ``w [...]``: code f + 4 e at f, e."""
    p0, p1 = (w << (7 - BIT)) & -0x7F7F7F80 ^ minus, (w << (5 - BIT)) & -0x7F7F7F80 ^ minus
    p2, p3 = (w << (3 - BIT)) & -0x7F7F7F80 ^ minus, (w << (1 - BIT)) & -0x7F7F7F80 ^ minus
    p = tl.join(tl.join(p0, p2), tl.join(p1, p3))
    even, odd = tl.join(p.to(tl.int8), (p >> 16).to(tl.int8)), tl.join((p >> 8).to(tl.int8), (p >> 24).to(tl.int8))
    return tl.join(even, odd)


@triton.jit
def _left(signs, PIECES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[PIECES, ROWS, WIDTH]`` in the order of inputs that costs no exchange between threads; see ``_right``."""
    return tl.reshape(tl.permute(signs, [2, 3, 1, 4, 5, 0, 6, 7, 8]), [PIECES, ROWS, WIDTH])


@triton.jit
def _right(x, T: tl.constexpr, PIECES: tl.constexpr, U: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[PIECES, WIDTH, 8]`` of ``x [T, 8, PIECES, U, 16]``, inputs as in ``_left``."""
    x = tl.reshape(x, [T, 8, PIECES, U, 2, 2, 2, 2])
    return tl.reshape(tl.permute(x, [2, 3, 4, 0, 5, 6, 7, 1]), [PIECES, T * U * 16, 8])


@triton.jit
def _spread(a, PIECES: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[PIECES, ROWS, 4]`` of ``a [4, 8, PIECES, ROWS / 8]``: no exchange."""
    return tl.reshape(tl.permute(a, [2, 3, 1, 0]), [PIECES, ROWS, 4])


@triton.jit
def _whole(digits, PIECES: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Float32 ``[PIECES, ROWS, 4]`` of int32 ``[PIECES, ROWS, 8]``: sums of upper and lower bytes of four vectors."""
    high, low = tl.split(tl.reshape(digits, [PIECES, ROWS, 4, 2]))
    return (high * 256 + low).to(tl.float32)


@triton.jit
def _turn(  # type: ignore[no-untyped-def]
    total, w, x, known, first, second, steps, totals, place, here, minus,
    ROWS: tl.constexpr, PIECES: tl.constexpr, T: tl.constexpr, U: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """``total`` and what one segment of each piece adds to it."""
    value = _right(tl.load(x, mask=known, other=0), T, PIECES, U)
    c, a0, a1 = levels(first, second, place, here, FORM)
    step = tl.load(steps, mask=here, other=0.0)
    WIDTH: tl.constexpr = T * U * 16
    bit0 = _left(_signs(w, minus, 0), PIECES, ROWS, WIDTH)
    bit1 = _left(_signs(w, minus, 1), PIECES, ROWS, WIDTH)
    part = step * (1.0 / 128)  # of 64, and levels are c + (a0 + a1) / 2 +- a0 / 2 +- a1 / 2
    total += _spread(part * a0, PIECES, ROWS) * _whole(tl.dot(bit0, value), PIECES, ROWS)
    total += _spread(part * a1, PIECES, ROWS) * _whole(tl.dot(bit1, value), PIECES, ROWS)
    if FORM == _AFFINE or FORM == _FLOAT_ZERO:  # noqa: SIM109 (Triton knows no `in`); the others are symmetric
        sums = tl.load(totals, mask=here, other=0).to(tl.float32)
        total += _spread(step * (c + 0.5 * (a0 + a1)) * sums, PIECES, ROWS)
    return total


@triton.jit(do_not_specialize=["batch", "minus"])
def _matvec(  # type: ignore[no-untyped-def]
    codes, first, second, bytes_, steps, totals, out, batch, rows, row_stride, minus,
    IN: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr, TURNS: tl.constexpr,
    SEGMENT: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr, UNROLLED: tl.constexpr, LINES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = min(4, SEGMENT)  # the first axes are those of the lanes of a warp: 4 words of 8 rows
    U: tl.constexpr = SEGMENT // T
    WORDS: tl.constexpr = IN // 16
    STEP: tl.constexpr = PIECES * SEGMENT
    start = tl.program_id(0) * ROWS
    eight, piece, high = tl.arange(0, 8), tl.arange(0, PIECES), tl.arange(0, ROWS // 8)
    lane = tl.arange(0, T)
    t = (lane // 2 + T // 2 * (lane % 2))[:, None, None, None, None]  # any order does; as this, loads are not joined
    row = (start + eight[:, None] + 8 * high[None, :])[None, :, None, :, None]
    word = (piece * SEGMENT)[None, None, :, None, None] + t * U + tl.arange(0, U)[None, None, None, None, :]
    place = codes + row * WORDS + word
    w = tl.load(place, mask=(row < rows) & (word < WORDS), other=0)
    column = (tl.program_id(1) * 8 + eight)[None, :, None, None, None]  # upper and lower bytes of four vectors
    k = (piece * SEGMENT)[None, None, :, None, None] + t * U + tl.arange(0, U)[None, None, None, :, None]
    x = bytes_ + column * (16 * WORDS) + k * 16 + tl.arange(0, 16)[None, None, None, None, :]
    b = (tl.program_id(1) * 4 + tl.arange(0, 4))[:, None, None, None]
    table_row = (start + eight[:, None] + 8 * high[None, :])[None, :, None, :] + 0 * b
    segment = piece[None, None, :, None] + 0 * table_row
    if PDL:  # starts while the kernel before ends; only what does not depend on that is asked for before the wait
        tl.extra.cuda.gdc_launch_dependents()
        if LINES > 0:
            line = tl.minimum(32 * tl.arange(0, LINES), WORDS - 1)[None, :]
            to_cache(codes + tl.minimum(start + tl.arange(0, ROWS), rows - 1)[:, None] * WORDS + line)
        tl.extra.cuda.gdc_wait()
    total = tl.zeros([PIECES, ROWS, 4], dtype=tl.float32)
    SEGMENTS: tl.constexpr = WORDS // SEGMENT
    if UNROLLED:
        for turn in tl.static_range(TURNS):
            now = w
            if turn + 1 < TURNS:
                w = tl.load(place + (turn + 1) * STEP, mask=(row < rows) & (word + (turn + 1) * STEP < WORDS), other=0)
            s = segment + turn * PIECES
            total = _turn(
                total, now, x + turn * STEP * 16, (column < 2 * batch) & (k + turn * STEP < WORDS), first, second,
                steps + b * SEGMENTS + s, totals + b * SEGMENTS + s, table_row * row_stride + s * SEGMENT // GROUP,
                (table_row < rows) & (s < SEGMENTS) & (b < batch), minus, ROWS, PIECES, T, U, FORM,
            )  # fmt: skip
    else:
        for turn in range(TURNS):
            now = w
            w = tl.load(place + (turn + 1) * STEP, mask=(row < rows) & (word + (turn + 1) * STEP < WORDS), other=0)
            s = segment + turn * PIECES
            total = _turn(
                total, now, x + turn * STEP * 16, (column < 2 * batch) & (k + turn * STEP < WORDS), first, second,
                steps + b * SEGMENTS + s, totals + b * SEGMENTS + s, table_row * row_stride + s * SEGMENT // GROUP,
                (table_row < rows) & (s < SEGMENTS) & (b < batch), minus, ROWS, PIECES, T, U, FORM,
            )  # fmt: skip
    row_out, four = start + tl.arange(0, ROWS), tl.program_id(1) * 4 + tl.arange(0, 4)
    mask = (row_out < rows)[:, None] & (four < batch)[None, :]
    tl.store(out + four[None, :] * rows + row_out[:, None], tl.sum(total, axis=0).to(out.dtype.element_ty), mask=mask)


def matvec_triton(
    weight: Planes, x: torch.Tensor, in_scale: torch.Tensor | None = None, split: Split | None = None
) -> torch.Tensor:
    """See :func:`r2q.kernels.matvec.matvec`."""
    rows, words = weight.codes.shape
    batch, segment = x.shape[0], segment_words(weight)
    segments = words // segment
    x = x if x.stride(-1) == 1 else x.contiguous()
    split = split or pick_split(rows)
    device = x.device
    bytes_ = torch.empty(batch, 2, 4 * words, dtype=torch.int32, device=device)
    steps = torch.empty(batch, segments, dtype=torch.float32, device=device)
    totals = torch.empty(batch, segments, dtype=torch.int32, device=device)
    out = torch.empty(batch, rows, dtype=x.dtype, device=device)
    pdl = not INTERPRETED
    options = {"launch_pdl": True} if pdl else {}
    block = 32 // segment  # a tile of 512 inputs: with 256, Triton 3.6 gives wrong maxima (benchmarks/NOTES.md)
    _prepare[triton.cdiv(segments, block), batch](
        x, x if in_scale is None else in_scale, bytes_, steps, totals, x.stride(0), words, segments,
        SEGMENT=segment, BLOCK=block, SCALED=in_scale is not None, PDL=pdl, num_warps=4, **options,
    )  # fmt: skip
    _matvec[triton.cdiv(rows, split.rows), triton.cdiv(batch, 4)](
        weight.codes, weight.first, weight.second, bytes_.view(torch.int8), steps, totals, out, batch, rows,
        weight.row_stride, MINUS,
        IN=words * WORD, ROWS=split.rows, PIECES=split.warps, TURNS=triton.cdiv(segments, split.warps),
        SEGMENT=segment, GROUP=weight.group_words, FORM=weight.form, UNROLLED=split.unrolled,
        LINES=triton.next_power_of_2(triton.cdiv(words, 32)) if split.ahead else 0, PDL=pdl,
        num_warps=split.warps, num_stages=1, **options,
    )  # fmt: skip
    return out
