"""A weight to codes and scales in one read: R2Q's two residual scales, or round to nearest between minimum and maximum.

:func:`quantize_plain` defines it by the methods' own formulas (``r2q.quantization.residual``, ``baselines.rtn``). The
kernel sums a group in another order, so a scale may differ in its last 16-bit place, and codes at its boundaries.
"""

from __future__ import annotations

import torch

from r2q.quantization.grid import SMALLEST_SCALE, AffineGrid, BinaryGrid, Grid, stored
from r2q.quantization.packing import pack
from r2q.quantization.residual import residual_codes, residual_scales


def quantize_pack(weight: torch.Tensor, group: int, kind: str) -> tuple[torch.Tensor, Grid]:
    """Packed codes (uint8 ``[out, in / 4]``) and grid of ``weight [out, in]`` in groups of ``group`` inputs.

    Raises:
        ValueError: a weight is not finite or a scale exceeds 16 bits; the group is not a multiple of 16 inputs.
    """
    if group % 16 or weight.shape[1] % group:
        raise ValueError(f"groups of {group} inputs do not fit: a multiple of 16 that divides {weight.shape[1]}")
    if weight.is_cuda:
        from r2q.kernels.quantize_pack_triton import quantize_triton

        return finished(*quantize_triton(weight, group, kind))
    return quantize_plain(weight, group, kind)


def quantize_plain(weight: torch.Tensor, group: int, kind: str) -> tuple[torch.Tensor, Grid]:
    """:func:`quantize_pack`, in plain PyTorch on any device."""
    values = weight.float().view(weight.shape[0], -1, group)
    if kind == "r2q":
        grid: Grid = BinaryGrid(residual_scales(values.clone(), 2, torch.float16))
        codes = residual_codes(values, grid.tensors()["alpha"])
    else:
        low, high = values.amin(-1).clamp_max(0), values.amax(-1).clamp_min(0)
        scale = stored(((high - low) / 3).clamp_min(SMALLEST_SCALE))
        zero = torch.round(-low / scale.float()).clamp_(0, 3).to(torch.uint8)
        grid = AffineGrid(scale, zero, 2)
        codes = grid.encode(values)
    return pack(codes.view(weight.shape), 2), grid


def finished(codes: torch.Tensor, first: torch.Tensor, zero: torch.Tensor | None) -> tuple[torch.Tensor, Grid]:
    """What a kernel wrote as packed codes and a grid; refuses scales that are not finite."""
    packed = codes.view(torch.uint8)
    scale = stored(first)
    if zero is None:
        return packed, BinaryGrid(scale)
    return packed, AffineGrid(scale, zero, 2)
