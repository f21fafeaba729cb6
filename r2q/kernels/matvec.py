"""Products of a packed weight with few vectors: sums over the two bits of a code as signs, one pair of scales a group.

Two bits are cheap to read and dear to unpack: a GPU issues about two instructions in the time in which it reads one
2-bit weight. As ``b = (1 + s) / 2``, the form of :mod:`r2q.kernels.planes` is

    level(q) = z + h_0 s_0 + h_1 s_1,      s_i = -1 or 1,      h_i = a_i / 2,      z = c + h_0 + h_1

and a result is the sum over groups of ``h_0 sum s_0 x + h_1 sum s_1 x + z sum x``: signs cost one logical instruction
for two weights and are exact in 16 bits, scales stay in float32, and z is 0 for binary and symmetric grids. A single
vector is not even multiplied: :mod:`r2q.kernels.matvec_bits_triton` counts bits.
"""

from __future__ import annotations

import torch

from r2q.kernels.planes import Planes, decode_plain


def matvec(weight: Planes, x: torch.Tensor) -> torch.Tensor:
    """``x W^T``, ``[batch, in]`` to ``[batch, out]`` in the dtype of x, which levels are not rounded to."""
    if x.is_cuda:
        from r2q.kernels.matvec_bits_triton import counts_bits, matvec_bits
        from r2q.kernels.matvec_triton import matvec_triton

        single = x.shape[0] == 1 and counts_bits(weight, x.device)
        return matvec_bits(weight, x) if single else matvec_triton(weight, x)
    return matvec_plain(weight, x)


def matvec_plain(weight: Planes, x: torch.Tensor) -> torch.Tensor:
    """:func:`matvec`, in plain PyTorch on any device: levels and sums in float32."""
    return torch.nn.functional.linear(x.float(), decode_plain(weight, torch.float32)).to(x.dtype)
