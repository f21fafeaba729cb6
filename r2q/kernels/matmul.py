"""Products of a packed weight with many vectors: tiles decoded on the way to the matrix units."""

from __future__ import annotations

import torch

from r2q.kernels.planes import Planes, decode_plain


def matmul(weight: Planes, x: torch.Tensor) -> torch.Tensor:
    """``x W^T``, ``[batch, in]`` to ``[batch, out]``; levels are rounded to the dtype of ``x`` before the product."""
    if x.is_cuda:
        from r2q.kernels.matmul_triton import matmul_triton

        return matmul_triton(weight, x)
    return matmul_plain(weight, x)


def decode(weight: Planes, dtype: torch.dtype) -> torch.Tensor:
    """The weight ``[out, in]``, levels rounded once to ``dtype``."""
    if weight.codes.is_cuda:
        from r2q.kernels.planes_triton import decode_triton

        return decode_triton(weight, dtype)
    return decode_plain(weight, dtype)


def matmul_plain(weight: Planes, x: torch.Tensor) -> torch.Tensor:
    """:func:`matmul`, in plain PyTorch on any device."""
    return torch.nn.functional.linear(x, decode_plain(weight, x.dtype))
