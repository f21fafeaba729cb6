"""The Triton twin of ``r2q.kernels.matmul.matmul_plain``.

Levels go from registers to the matrix units. Few vectors leave few tiles, so the inputs are split: over the warps of a
program, which add their sums before they leave, or over programs, each of which writes a float32 partial result that a
second kernel adds. The order is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from r2q.kernels.planes import WORD, Planes
from r2q.kernels.planes_triton import INTERPRETED, span_words, to_cache, weight_tile


@dataclass(frozen=True)
class Tile:
    """What one program multiplies: ``rows`` of the weight by ``batch`` vectors, ``words`` of each at a time.

    Attributes:
        pieces: parts of the inputs within a program, one for each warp or for a few.
        programs: where there are fewer tiles, the inputs are split so that there are about as many.
        stages: turns whose loads are under way.
        ahead: ask for all codes of a program before it waits for the kernel that makes the vectors.
    """

    rows: int = 64
    batch: int = 16
    words: int = 8
    pieces: int = 1
    programs: int = 1
    warps: int = 4
    stages: int = 3
    ahead: bool = True


FEW_ROWS = 4096  # up to here, few programs share the work: more warps each


def pick_tile(rows: int, batch: int) -> Tile:
    """The tile of a weight with so many rows, for so many vectors; see benchmarks/NOTES.md."""
    if batch <= 16:
        split = 8 if rows <= FEW_ROWS else 4
        return Tile(16, 8 if batch <= 8 else 16, pieces=split, warps=split)
    if batch <= 64:
        return Tile(64, 32 if batch <= 32 else 64, programs=528)
    return Tile(128, 128, words=4, warps=8, programs=132)


@triton.jit(do_not_specialize=["batch"])
def _matmul(  # type: ignore[no-untyped-def]
    x, codes, first, second, out, batch, rows, row_stride, x_stride,
    IN: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, PIECES: tl.constexpr,
    TURNS: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr, FORM: tl.constexpr, LINES: tl.constexpr,
    PDL: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    SPANS: tl.constexpr = WORDS // SPAN
    words = IN // 16  # known when compiled, and with it which loads are of 16 bytes
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    part = tl.program_id(2)
    if PDL:  # starts while the kernel before ends; only what does not depend on that is asked for before the wait
        tl.extra.cuda.gdc_launch_dependents()
        if LINES > 0:
            word = part * PIECES * TURNS * WORDS + 32 * tl.arange(0, LINES)
            word = tl.minimum(word, words - 1)[None, :]
            to_cache(codes + tl.minimum(row, rows - 1)[:, None] * words + word)
        tl.extra.cuda.gdc_wait()
    s, piece = tl.arange(0, PIECES * SPANS), part * PIECES + tl.arange(0, PIECES)
    if PIECES == 1:
        total = tl.zeros([ROWS, BATCH], dtype=tl.float32)
    else:
        total = tl.zeros([PIECES, ROWS, BATCH], dtype=tl.float32)
    for turn in range(TURNS):
        span = ((part * PIECES + s // SPANS) * TURNS + turn) * WORDS + s % SPANS * SPAN
        level = weight_tile(
            codes, first, second, row, span, rows, words, row_stride,
            ROWS, PIECES * SPANS, SPAN, GROUP, FORM, x.dtype.element_ty, ASM,
        )  # fmt: skip
        if PIECES == 1:
            k = (part * TURNS + turn) * WORDS * 16 + tl.arange(0, WORDS * 16)
            mask = (k < IN)[:, None] & (b < batch)[None, :]
            value = tl.load(x + b[None, :] * x_stride + k[:, None], mask=mask, other=0.0)  # [inputs, BATCH]
        else:
            level = tl.permute(tl.reshape(level, [ROWS, PIECES, WORDS * 16]), [1, 0, 2])
            k = ((piece * TURNS + turn) * WORDS * 16)[:, None] + tl.arange(0, WORDS * 16)[None, :]
            mask = (k < IN)[:, :, None] & (b < batch)[None, None, :]
            value = tl.load(x + b[None, None, :] * x_stride + k[:, :, None], mask=mask, other=0.0)
        total = tl.dot(level, value, total)
    if PIECES > 1:
        total = tl.sum(total, axis=0)
    place = (part * batch + b).to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (b < batch)[None, :])


@triton.jit(do_not_specialize=["size"])
def _add(parts, out, size, PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts + part * size + i, mask=i < size, other=0.0)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < size)


def matmul_triton(weight: Planes, x: torch.Tensor, tile: Tile | None = None) -> torch.Tensor:
    """See :func:`r2q.kernels.matmul.matmul`."""
    rows, words = weight.codes.shape
    batch = x.shape[0]
    x = x if x.stride(-1) == 1 else x.contiguous()
    tile = tile or pick_tile(rows, batch)
    tiles = triton.cdiv(rows, tile.rows), triton.cdiv(batch, tile.batch)
    steps = triton.cdiv(words, tile.words * tile.pieces)
    turns = triton.cdiv(steps, max(1, min(tile.programs // (tiles[0] * tiles[1]), steps // 2)))
    parts = triton.cdiv(steps, turns)
    out = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    partial = out if parts == 1 else torch.empty(parts, batch, rows, dtype=torch.float32, device=x.device)
    lines = triton.next_power_of_2(triton.cdiv(tile.pieces * turns * tile.words, 32)) if tile.ahead else 0
    pdl = not INTERPRETED
    options = {"launch_pdl": True} if pdl else {}
    _matmul[*tiles, parts](
        x, weight.codes, weight.first, weight.second, partial,
        batch, rows, weight.row_stride, x.stride(0),
        IN=words * WORD, BATCH=tile.batch, ROWS=tile.rows, WORDS=tile.words, PIECES=tile.pieces, TURNS=turns,
        GROUP=weight.group_words, SPAN=span_words(weight, tile.words), FORM=weight.form,
        LINES=lines, PDL=pdl, ASM=not INTERPRETED, num_warps=tile.warps, num_stages=tile.stages, **options,
    )  # fmt: skip
    if parts > 1:
        size, block = batch * rows, 256
        _add[(triton.cdiv(size, block),)](partial, out, size, PARTS=parts, BLOCK=block, PDL=pdl, num_warps=2, **options)
    return out
