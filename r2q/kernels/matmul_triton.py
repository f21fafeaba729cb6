"""The Triton twin of ``r2q.kernels.matmul.matmul_plain``.

Few vectors leave few tiles, so the inputs are split over programs; each writes a float32 partial result, and these are
added in a fixed order afterwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from r2q.kernels.planes import Planes
from r2q.kernels.planes_triton import weight_tile

PROGRAMS = 264  # wanted at least: two for each multiprocessor of an H100


@triton.jit
def _matmul(  # type: ignore[no-untyped-def]
    x, codes, first, second, out, batch, rows, words, groups, group_words, row_stride, x_stride,
    BATCH: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, TURNS: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    part = tl.program_id(2)
    total = tl.zeros([ROWS, BATCH], dtype=tl.float32)
    for turn in range(TURNS):
        start = (part * TURNS + turn) * WORDS
        level = weight_tile(
            codes, first, second, row, start + tl.arange(0, WORDS), rows, words, groups, group_words, row_stride,
            ROWS, WORDS, FORM,
        )  # fmt: skip
        k = start * 16 + tl.arange(0, WORDS * 16)
        mask = (b < batch)[None, :] & (k < words * 16)[:, None]
        value = tl.load(x + b[None, :] * x_stride + k[:, None], mask=mask, other=0.0)  # [inputs, BATCH]
        total = tl.dot(level.to(value.dtype), value, total)
    place = (part * batch + b).to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (b < batch)[None, :])


def matmul_triton(
    weight: Planes,
    x: torch.Tensor,
    tile: tuple[int, int, int] | None = None,
    warps: int = 4,
    stages: int = 3,
    parts: int | None = None,
) -> torch.Tensor:
    """See :func:`r2q.kernels.matmul.matmul`."""
    rows, words = weight.codes.shape
    batch = x.shape[0]
    x = x if x.stride(-1) == 1 else x.contiguous()
    per_batch, per_rows, per_words = tile or (16 if batch <= 16 else 64, 64, 8)
    tiles = triton.cdiv(rows, per_rows) * triton.cdiv(batch, per_batch)
    turns = triton.cdiv(words, per_words)
    if parts is None:
        parts = max(1, min(PROGRAMS // tiles, turns // 4))
    turns = triton.cdiv(turns, parts)
    kind = x.dtype if parts == 1 else torch.float32
    out = torch.empty(parts, batch, rows, dtype=kind, device=x.device)
    _matmul[triton.cdiv(rows, per_rows), triton.cdiv(batch, per_batch), parts](
        x, weight.codes, weight.first, weight.second, out,
        batch, rows, words, weight.groups, weight.group_words, weight.row_stride, x.stride(0),
        BATCH=per_batch, ROWS=per_rows, WORDS=per_words, TURNS=turns, FORM=weight.form,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out[0] if parts == 1 else out.sum(0).to(x.dtype)
