"""Products of a packed weight with few vectors: exact sums of integers, one scale a segment.

Two bits are cheap to read and dear to unpack: a GPU issues about two instructions in the time in which it reads one
2-bit weight. So four weights are multiplied at once. The vector becomes 16-bit integers, one step per segment of at
most 64 inputs within a group,

    x_k ~ step_s v_k,      |v_k| <= 32767,      step_s = max |x_k| / 32767

and each v is split into a signed upper and an unsigned lower byte. With the bits of the weight as bytes 0 or 1, a
four-byte dot product adds four terms, and

    y_r = sum_s step_s (c V_s + a_0 sum_k b_0 v_k + a_1 sum_k b_1 v_k),      V_s = sum_k v_k

where all sums over k are exact. The error of x is at most 2^-16 of the largest input of its segment, 2^-7 of what
bfloat16 itself rounds; sums over segments are float32 in a fixed order, so results repeat to the bit.

The bytes of a word are taken as they are stored: field j of byte b of word w is input 16 w + 4 b + j, and the vector is
laid out accordingly, once for all rows.
"""

from __future__ import annotations

from math import gcd

import torch

from r2q.kernels.planes import WORD, Planes

LIMIT = 32639  # 127 * 256 + 127: two signed bytes
SEGMENT = 8  # words at most


def segment_words(weight: Planes) -> int:
    """Words of a segment: as many of 8 as divide those of a group."""
    return gcd(SEGMENT, weight.group_words)


def matvec(weight: Planes, x: torch.Tensor, in_scale: torch.Tensor | None = None) -> torch.Tensor:
    """``x W^T``, ``[batch, in]`` to ``[batch, out]`` in the dtype of x; columns of W are divided by ``in_scale``."""
    if x.is_cuda:
        from r2q.kernels.matvec_triton import matvec_triton

        return matvec_triton(weight, x, in_scale)
    return matvec_plain(weight, x, in_scale)


def fixed_point(
    x: torch.Tensor, segment: int, in_scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``v`` (int32 ``[batch, segments, n]``) and ``step`` (float32 ``[batch, segments]``) of ``x [batch, in]``."""
    values = x.float() if in_scale is None else x.float() / in_scale.float()
    values = values.unflatten(-1, (-1, segment))
    largest = values.abs().amax(-1)
    unit = torch.where(largest > 0, LIMIT / largest, 0)
    v = (values * unit.unsqueeze(-1)).nan_to_num_(0, 0, 0).round_().clamp_(-LIMIT, LIMIT).int()
    return v, largest / LIMIT


def matvec_plain(weight: Planes, x: torch.Tensor, in_scale: torch.Tensor | None = None) -> torch.Tensor:
    """:func:`matvec`, in plain PyTorch on any device."""
    out = weight.shape[0]
    words = segment_words(weight)
    v, step = fixed_point(x, words * WORD, in_scale)
    b0, b1 = (b.view(out, -1, words * WORD) for b in weight.bits())  # [out, segments, n]
    tables = (t.repeat_interleave(weight.group_words // words, 1) for t in weight.form_tables())
    c, a0, a1 = (t.expand(out, -1) for t in tables)  # [out, segments]
    sums = [torch.einsum("rsn,bsn->brs", b.double(), v.double()).float() for b in (torch.ones_like(b0), b0, b1)]
    terms = c * sums[0] + a0 * sums[1] + a1 * sums[2]  # [batch, out, segments]
    return (terms * step.unsqueeze(1)).sum(-1).to(x.dtype)
