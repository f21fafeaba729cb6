"""A packed linear layer on a GPU as one operator of torch, which graphs, ``torch.compile`` and ``generate`` take whole.

Up to MATVEC vectors go through :mod:`r2q.kernels.matvec`, up to MATMUL through :mod:`r2q.kernels.matmul`; beyond, the
weight is decoded into memory and multiplied by torch: one weight at a time, so the layers share that memory. The bounds
are those that ``benchmarks/inference.py`` prints, see NOTES.md beside it.
"""

from __future__ import annotations

import torch

from r2q.kernels.matmul import decode, matmul
from r2q.kernels.matvec import matvec
from r2q.kernels.planes import Planes

MATVEC, MATMUL = 8, 256
DTYPES = (torch.float16, torch.bfloat16)

_ARGUMENTS = "Tensor x, Tensor codes, Tensor first, Tensor second, Tensor? in_scale, int form, int rows, int groups"
torch.library.define("r2q::linear", f"({_ARGUMENTS}) -> Tensor", tags=torch.Tag.pt2_compliant_tag)


@torch.library.impl("r2q::linear", "default")
def _linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    in_scale: torch.Tensor | None,
    form: int,
    rows: int,
    groups: int,
) -> torch.Tensor:
    """``x W^T``, ``[..., in]`` to ``[..., out]``; the other arguments are those of :class:`Planes`.

    Against float64 on the same x, the error of a result is that of rounding it to the dtype of x; beyond MATVEC
    vectors, levels are rounded to the dtype of x, too, as where PyTorch decodes.
    """
    weight = Planes(codes, first, second, form, rows, groups)
    flat = x.reshape(-1, x.shape[-1])
    if in_scale is not None:
        flat = torch.div(flat, in_scale, out=torch.empty_like(flat))  # in one kernel: float32, rounded once
    if flat.shape[0] <= MATVEC:
        out = matvec(weight, flat)
    elif flat.shape[0] <= MATMUL:
        out = matmul(weight, flat)
    else:
        out = torch.nn.functional.linear(flat, decode(weight, x.dtype))
    return out.view(*x.shape[:-1], codes.shape[0])


@torch.library.register_fake("r2q::linear")
def _(x: torch.Tensor, codes: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


linear = torch.ops.r2q.linear.default  # a plain operator: torch.library.custom_op takes twice the time of a call
