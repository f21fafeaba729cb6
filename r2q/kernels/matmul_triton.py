"""The Triton twin of ``r2q.kernels.matmul.matmul_plain``.

Levels go from registers to the matrix units and never through memory. Few vectors leave few tiles, so the inputs are
split over programs; each writes a float32 partial result, and a second kernel adds these in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from r2q.kernels.planes import Planes
from r2q.kernels.planes_triton import INTERPRETED, span, weight_tile


@dataclass(frozen=True)
class Tile:
    """What one program multiplies: ``rows`` of the weight by ``batch`` vectors, ``words`` of each at a time.

    Attributes:
        programs: where fewer tiles are needed, the inputs are split so that there are about as many.
        stages: loads that are under way ahead of the product.
    """

    rows: int = 64
    batch: int = 16
    words: int = 8
    programs: int = 528
    warps: int = 4
    stages: int = 3


def pick_tile(rows: int, batch: int) -> Tile:
    """The tile of a weight with so many rows; see benchmarks/NOTES.md."""
    if batch <= 64:
        return Tile(batch=16 if batch <= 16 else 32 if batch <= 32 else 64)
    return Tile(rows=128, batch=128, words=4, warps=8)


@triton.jit(do_not_specialize=["batch"])
def _matmul(  # type: ignore[no-untyped-def]
    x, codes, first, second, out, batch, rows, words, row_stride, x_stride,
    BATCH: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr,
    TURNS: tl.constexpr, FORM: tl.constexpr, PDL: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    if PDL:  # starts while the kernel before ends, and waits for what that wrote
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    part = tl.program_id(2)
    total = tl.zeros([ROWS, BATCH], dtype=tl.float32)
    for turn in range(TURNS):
        start = (part * TURNS + turn) * WORDS
        level = weight_tile(
            codes, first, second, row, start, rows, words, row_stride,
            ROWS, WORDS, GROUP, SPAN, FORM, x.dtype.element_ty, ASM,
        )  # fmt: skip
        k = start * 16 + tl.arange(0, WORDS * 16)
        mask = (b < batch)[None, :] & (k < words * 16)[:, None]
        value = tl.load(x + b[None, :] * x_stride + k[:, None], mask=mask, other=0.0)  # [inputs, BATCH]
        total = tl.dot(level, value, total)
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
    turns = triton.cdiv(words, tile.words)
    turns = triton.cdiv(turns, max(1, min(tile.programs // (tiles[0] * tiles[1]), turns // 2)))
    parts = triton.cdiv(triton.cdiv(words, tile.words), turns)
    out = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    partial = out if parts == 1 else torch.empty(parts, batch, rows, dtype=torch.float32, device=x.device)
    pdl = not INTERPRETED
    options = {"launch_pdl": True} if pdl else {}
    _matmul[*tiles, parts](
        x, weight.codes, weight.first, weight.second, partial,
        batch, rows, words, weight.row_stride, x.stride(0),
        BATCH=tile.batch, ROWS=tile.rows, WORDS=tile.words, GROUP=weight.group_words, SPAN=span(weight, tile.words),
        TURNS=turns, FORM=weight.form, PDL=pdl, ASM=not INTERPRETED,
        num_warps=tile.warps, num_stages=tile.stages, **options,
    )  # fmt: skip
    if parts > 1:
        size, block = batch * rows, 256
        _add[(triton.cdiv(size, block),)](partial, out, size, PARTS=parts, BLOCK=block, PDL=pdl, num_warps=2, **options)
    return out
