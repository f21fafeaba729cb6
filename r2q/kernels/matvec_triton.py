"""The Triton twin of ``r2q.kernels.matvec.matvec_plain``: one kernel lays the vector out, one multiplies.

A program of the second holds a few whole rows: no sums leave it, so nothing is added atomically or in a second pass.
The words of its rows are asked for before it waits for the vector (programmatic dependent launch): reading the weight
overlaps with whatever prepares the vector.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from r2q.kernels.matvec import LIMIT, segment_words
from r2q.kernels.planes import BINARY, Planes
from r2q.kernels.planes_triton import INTERPRETED, dot4, levels, nearest

_BINARY, _LIMIT = tl.constexpr(BINARY), tl.constexpr(LIMIT)


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
    inside = (word < words)[:, :, None, None]
    byte, field = tl.arange(0, 4)[None, None, :, None], tl.arange(0, 4)[None, None, None, :]
    k = word[:, :, None, None] * 16 + 4 * byte + field
    value = tl.load(x + batch * x_stride + k, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        value = tl.div_rn(value, tl.load(in_scale + k, mask=inside, other=1.0).to(tl.float32))
    flat = tl.reshape(value, [BLOCK, SEGMENT * 16])
    largest = tl.max(tl.abs(flat), axis=1)
    broken = tl.sum((flat != flat).to(tl.int32), axis=1) > 0  # a maximum passes over NaN
    unit = tl.where(largest > 0, tl.div_rn(_LIMIT * 1.0, largest), 0.0)
    v = nearest(value * unit[:, None, None, None])
    v = tl.minimum(tl.maximum(v, -_LIMIT * 1.0), _LIMIT * 1.0).to(tl.int32)
    step = tl.where(broken, float("nan"), tl.div_rn(largest, _LIMIT * 1.0))
    tl.store(steps + batch * segments + segment, step, mask=segment < segments)
    tl.store(totals + batch * segments + segment, tl.sum(tl.reshape(v, [BLOCK, SEGMENT * 16]), axis=1),
             mask=segment < segments)  # fmt: skip
    low = tl.sum((v & 255) << (8 * byte), axis=2)  # [BLOCK, SEGMENT, 4 fields]
    high = tl.sum(((v >> 8) & 255) << (8 * byte), axis=2)
    place = batch * 8 * words + tl.arange(0, 4)[None, None, :] * words + word[:, :, None]
    tl.store(bytes_ + place, high, mask=(word < words)[:, :, None])
    tl.store(bytes_ + place + 4 * words, low, mask=(word < words)[:, :, None])


@triton.jit
def _matvec(  # type: ignore[no-untyped-def]
    codes, first, second, bytes_, steps, totals, out,
    rows, words, segments, row_stride,
    GROUP: tl.constexpr, FORM: tl.constexpr, SEGMENT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    TURNS: tl.constexpr, PDL: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    batch = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    segment, lane = tl.arange(0, BLOCK), tl.arange(0, SEGMENT)
    word = segment[:, None, None] * SEGMENT + lane[None, None, :]  # [BLOCK, 1, SEGMENT]: lanes of a warp follow a row
    here = codes + row[None, :, None] * words + word
    exists = (row < rows)[None, :, None]
    ahead = tl.load(here, mask=exists & (word < words), other=0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    total = tl.zeros([BLOCK, ROWS], dtype=tl.float32)
    for turn in range(TURNS):
        start = turn * BLOCK
        w = ahead
        if TURNS > 1:
            more = exists & (word + (start + BLOCK) * SEGMENT < words)
            ahead = tl.load(here + (start + BLOCK) * SEGMENT, mask=more, other=0)
        s = start + segment
        inside = (row < rows)[None, :] & (s < segments)[:, None]
        c, a0, a1 = levels(first, second, row[None, :] * row_stride + (s // GROUP)[:, None], inside, FORM)
        high0 = tl.zeros([BLOCK, ROWS, SEGMENT], dtype=tl.int32)
        low0, high1, low1 = high0, high0, high0
        there = start * SEGMENT + word
        for field in tl.static_range(4):
            base = bytes_ + (batch * 8 + field) * words + there
            high = tl.load(base, mask=there < words, other=0)
            low = tl.load(base + 4 * words, mask=there < words, other=0)
            high = tl.broadcast_to(high, [BLOCK, ROWS, SEGMENT])
            low = tl.broadcast_to(low, [BLOCK, ROWS, SEGMENT])
            moved = w >> (2 * field)
            if FORM == _BINARY:
                high0 = dot4(moved & 0x01010101, high, high0, True, ASM)
                low0 = dot4(moved & 0x01010101, low, low0, False, ASM)
                high1 = dot4(moved & 0x02020202, high, high1, True, ASM)
                low1 = dot4(moved & 0x02020202, low, low1, False, ASM)
            else:
                high0 = dot4(moved & 0x03030303, high, high0, True, ASM)
                low0 = dot4(moved & 0x03030303, low, low0, False, ASM)
        sums = a0 * tl.sum(high0 * 256 + low0, axis=2).to(tl.float32)  # [BLOCK, ROWS]
        if FORM == _BINARY:
            sums += 0.5 * a1 * tl.sum(high1 * 256 + low1, axis=2).to(tl.float32)
        step = tl.load(steps + batch * segments + s, mask=s < segments, other=0.0)
        whole = tl.load(totals + batch * segments + s, mask=s < segments, other=0).to(tl.float32)
        total += step[:, None] * (c * whole[:, None] + sums)
    tl.store(out + batch * rows + row, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=row < rows)


def matvec_triton(
    weight: Planes,
    x: torch.Tensor,
    in_scale: torch.Tensor | None = None,
    tile: tuple[int, int, int] | None = None,
    pdl: bool | None = None,
) -> torch.Tensor:
    """See :func:`r2q.kernels.matvec.matvec`."""
    rows, words = weight.codes.shape
    batch, segment = x.shape[0], segment_words(weight)
    segments = words // segment
    tile = tile or pick_tile(segments)
    pdl = not INTERPRETED if pdl is None else pdl
    options = {"launch_pdl": True} if pdl else {}
    device = x.device
    bytes_ = torch.empty(batch, 2, 4, words, dtype=torch.int32, device=device)
    steps = torch.empty(batch, segments, dtype=torch.float32, device=device)
    totals = torch.empty(batch, segments, dtype=torch.int32, device=device)
    out = torch.empty(batch, rows, dtype=x.dtype, device=device)
    x = x if x.stride(-1) == 1 else x.contiguous()
    block = 32 // segment  # a tile of 512 inputs: with 256, Triton 3.6 gives wrong maxima (benchmarks/NOTES.md)
    _prepare[triton.cdiv(segments, block), batch](
        x, x if in_scale is None else in_scale, bytes_, steps, totals, x.stride(0), words, segments,
        SEGMENT=segment, BLOCK=block, SCALED=in_scale is not None, PDL=pdl, num_warps=4, **options,
    )  # fmt: skip
    _matvec[batch, triton.cdiv(rows, tile[0])](
        weight.codes, weight.first, weight.second, bytes_, steps, totals, out,
        rows, words, segments, weight.row_stride,
        GROUP=weight.group_words // segment, FORM=weight.form, SEGMENT=segment, ROWS=tile[0], BLOCK=tile[1],
        TURNS=triton.cdiv(segments, tile[1]), PDL=pdl, ASM=not INTERPRETED,
        num_warps=tile[2], **options,
    )  # fmt: skip
    return out


def pick_tile(segments: int) -> tuple[int, int, int]:
    """Rows and segments of a program, and its warps; see benchmarks/NOTES.md."""
    if segments <= 64:
        return (2 if segments > 32 else 4), triton.next_power_of_2(segments), 1
    return (4, 128, 4) if segments <= 128 else (8, 64, 2)
