"""The Triton twin of ``r2q.kernels.matmul.matmul_plain``: tiles for the matrix units.

With few tiles, the inputs are split over programs, each of which writes a float32 partial result that a second kernel
adds: the order is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from r2q.kernels.planes import WORD, Planes
from r2q.kernels.planes_triton import INTERPRETED, span_words, starts_early, weight_tile


@dataclass(frozen=True)
class Tile:
    """What one program multiplies: ``rows`` of the weight by ``batch`` vectors, ``words`` of each at a time.

    Attributes:
        programs: where there are fewer tiles, the inputs are split so that there are about as many.
        stages: turns whose loads are under way.
    """

    rows: int = 128
    batch: int = 64
    words: int = 8
    programs: int = 264
    warps: int = 4
    stages: int = 3


def pick_tile(batch: int) -> Tile:
    """The tile for so many vectors; see benchmarks/NOTES.md."""
    return Tile(rows=64, batch=128) if batch > 64 else Tile(batch=32 if batch <= 32 else 64)


@triton.jit(do_not_specialize=["batch"])
def _matmul(  # type: ignore[no-untyped-def]
    x, codes, first, second, out, batch, rows, row_stride, x_stride,
    IN: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, TURNS: tl.constexpr,
    GROUP: tl.constexpr, SPAN: tl.constexpr, FORM: tl.constexpr, PDL: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    words = IN // 16  # known when compiled, and with it which loads are of 16 bytes
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    part = tl.program_id(2)
    if PDL:  # starts while the kernel before ends
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros([ROWS, BATCH], dtype=tl.float32)
    for turn in range(TURNS):
        start = (part * TURNS + turn) * WORDS
        level = weight_tile(
            codes, first, second, row, start + tl.arange(0, WORDS // SPAN) * SPAN, rows, words, row_stride,
            ROWS, WORDS // SPAN, SPAN, GROUP, FORM, x.dtype.element_ty, ASM,
        )  # fmt: skip
        k = start * 16 + tl.arange(0, WORDS * 16)
        mask = (k < IN)[:, None] & (b < batch)[None, :]
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
    tile = tile or pick_tile(batch)
    tiles = triton.cdiv(rows, tile.rows), triton.cdiv(batch, tile.batch)
    steps = triton.cdiv(words, tile.words)
    turns = triton.cdiv(steps, max(1, min(tile.programs // (tiles[0] * tiles[1]), steps // 2)))
    parts = triton.cdiv(steps, turns)
    out = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    partial = out if parts == 1 else torch.empty(parts, batch, rows, dtype=torch.float32, device=x.device)
    pdl = starts_early(x.device)
    options = {"launch_pdl": True} if pdl else {}
    _matmul[*tiles, parts](
        x, weight.codes, weight.first, weight.second, partial,
        batch, rows, weight.row_stride, x.stride(0),
        IN=words * WORD, BATCH=tile.batch, ROWS=tile.rows, WORDS=tile.words, TURNS=turns,
        GROUP=weight.group_words, SPAN=span_words(weight, tile.words), FORM=weight.form,
        PDL=pdl, ASM=not INTERPRETED, num_warps=tile.warps, num_stages=tile.stages, **options,
    )  # fmt: skip
    if parts > 1:
        size, block = batch * rows, 256
        _add[(triton.cdiv(size, block),)](partial, out, size, PARTS=parts, BLOCK=block, PDL=pdl, num_warps=2, **options)
    return out
