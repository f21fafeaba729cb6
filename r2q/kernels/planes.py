"""One decode form for every evenly spaced and every binary 2-bit grid, read from the tensors that are stored.

    level(q) = c + a_0 b_0 + a_1 b_1        b_i is bit i of the code q

A binary grid has ``c = -(alpha_0 + alpha_1)`` and ``a_i = 2 alpha_i``; an affine one ``c = -zero scale``,
``a_0 = scale``, ``a_1 = 2 scale``; a symmetric one is affine with the zero point 1.5. So R2Q and its refits, round to
nearest, GPTQ on either, HQQ, AWQ (whose factor per input is taken out of x) and trained weights share three kernels.
Other widths than 2 bits and codebooks are decoded by PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from r2q.quantization.grid import AffineGrid, BinaryGrid, Grid, SymmetricGrid
from r2q.quantization.packing import unpack

BINARY, AFFINE, FLOAT_ZERO, SYMMETRIC = range(4)
WORD = 16  # codes of one 32-bit word


@dataclass(frozen=True)
class Planes:
    """A packed 2-bit weight as the kernels read it: views of the stored tensors, nothing copied.

    Attributes:
        codes: int32 ``[out, in / 16]``: 16 codes a word, code i in bits 2i and 2i + 1.
        first: binary: int32 ``[rows, groups]``, two float16, ``alpha_0`` in the lower half; else float16 scales.
        second: uint8, four zero points a byte (affine); float16 ``[rows, groups]`` (float zero); else ``first`` again.
        form: BINARY, AFFINE, FLOAT_ZERO or SYMMETRIC.
        rows, groups: of the grid; rows is 1 when the whole weight shares its levels, else ``out``.
    """

    codes: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    form: int
    rows: int
    groups: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.codes.shape[0], self.codes.shape[1] * WORD

    @property
    def group_words(self) -> int:
        """Words of a row that share their levels."""
        return self.codes.shape[1] // self.groups

    @property
    def row_stride(self) -> int:
        """Groups from one row to the next: none when all rows share them."""
        return self.groups if self.rows > 1 else 0

    def form_tables(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``c, a_0, a_1``, float32 ``[rows, groups]``."""
        shape = self.rows, self.groups
        if self.form == BINARY:
            alpha = self.first.unsqueeze(-1).view(torch.float16).float()  # [rows, groups, 2]
            return -alpha.sum(-1), 2 * alpha[..., 0], 2 * alpha[..., 1]
        scale = self.first.float()
        if self.form == SYMMETRIC:
            zero = torch.full_like(scale, 1.5)
        elif self.form == FLOAT_ZERO:
            zero = self.second.float()
        else:
            zero = unpack(self.second, 2, self.rows * self.groups).reshape(shape).float()
        return -zero * scale, scale, 2 * scale

    def bits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``b_0, b_1``, float32 ``[out, in]``."""
        codes = unpack(self.codes.view(torch.uint8), 2, self.shape[1])
        return (codes & 1).float(), (codes >> 1).float()


def supports(kind: str, bits: int, shape: tuple[int, ...], groups: int) -> bool:
    """Whether a weight has the form above and words that belong to one group each."""
    return kind != "codebook" and bits == 2 and len(shape) == 2 and shape[1] % (WORD * groups) == 0


def planes(packed: torch.Tensor, grid: Grid) -> Planes:
    """The kernels' view of ``packed`` (uint8 ``[out, in / 4]``) and its grid; see :func:`supports`."""
    tensors = grid.tensors()
    form, first, second = stored_form(grid.kind, tensors)
    return Planes(packed.view(torch.int32), first, second, form, *grid.shape)


def stored_form(kind: str, tensors: Mapping[str, Any]) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Form, first and second table (see :class:`Planes`) of the stored tensors of a grid."""
    if kind == BinaryGrid.kind:
        alpha = tensors["alpha"].view(torch.int32).squeeze(-1)
        return BINARY, alpha, alpha
    scale = tensors["scale"]
    if kind == SymmetricGrid.kind:
        return SYMMETRIC, scale, scale
    assert kind == AffineGrid.kind
    zero = tensors["zero"]
    return AFFINE if zero.dtype == torch.uint8 else FLOAT_ZERO, scale, zero


def decode_plain(weight: Planes, dtype: torch.dtype) -> torch.Tensor:
    """The weight ``[out, in]``: the form in float32, rounded once to ``dtype``."""
    out, width = weight.shape
    b0, b1 = (b.view(out, weight.groups, -1) for b in weight.bits())
    c, a0, a1 = (t.unsqueeze(-1) for t in weight.form_tables())
    return (c + a0 * b0 + a1 * b1).view(out, width).to(dtype)
