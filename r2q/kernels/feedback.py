"""Error feedback over the columns of one block of a weight: the inner loop of GPTQ.

Column by column, in order, for every row at once:

    code, level = nearest level of w_i;   e_i = (w_i - level) / U_ii;   w_j <- w_j - e_i U_ij   for j > i

:func:`feedback` defines it in plain PyTorch; on a GPU the same thing runs as one Triton kernel, bit for bit (products
and differences are rounded one by one in both). Tensors are columns first, so that one column is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Steps:
    """Evenly spaced levels: ``code = clamp(round(w / scale) + zero)``, ``level = (code - zero) * scale``.

    Attributes:
        scale, zero: float32 ``[groups, rows]``.
        last: the largest code.
        float_zero: the zero point is no integer, and is added before rounding.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    last: int
    float_zero: bool = False

    @property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale, self.zero

    def column(self, values: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (float32) and levels of one column ``[rows]``."""
        scale, zero = self.scale[group], self.zero[group]
        codes = values / scale
        codes = codes.add_(zero).round_() if self.float_zero else codes.round_().add_(zero)
        codes = codes.clamp_(0, self.last)
        return codes, (codes - zero).mul_(scale)


@dataclass(frozen=True)
class Ladder:
    """Any levels: the rank of a value is the number of thresholds that it reaches.

    Attributes:
        thresholds: float32 ``[groups, k - 1, rows]``, ascending.
        levels: float32 ``[groups, k, rows]``, by rank.
        codes: float32 ``[groups, k, rows]``, by rank.
    """

    float_zero: ClassVar[bool] = False
    thresholds: torch.Tensor
    levels: torch.Tensor
    codes: torch.Tensor

    @property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.thresholds, self.levels, self.codes

    @property
    def last(self) -> int:
        """The largest rank."""
        return self.levels.shape[1] - 1

    def column(self, values: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (float32) and levels of one column ``[rows]``."""
        rank = (values >= self.thresholds[group]).sum(0, keepdim=True)
        return self.codes[group].gather(0, rank)[0], self.levels[group].gather(0, rank)[0]


Rule = Steps | Ladder


def feedback(
    values: torch.Tensor, factor: torch.Tensor, rule: Rule, groups: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Code the columns of one block, each after the errors of those before it.

    Args:
        values: float32 ``[n, rows]``; is overwritten.
        factor: float32 ``[n, n]``, upper triangular: the block's part of the factor of the inverse Hessian.
        rule: levels of the rows.
        groups: int32 ``[n]``, the group of each column in ``rule``.

    Returns:
        Codes uint8 ``[n, rows]``, and errors float32 ``[n, rows]`` divided by the diagonal of the factor.
    """
    if values.is_cuda:
        from r2q.kernels.feedback_triton import feedback_triton

        return feedback_triton(values, factor, rule, groups)
    return feedback_plain(values, factor, rule, groups)


def feedback_plain(
    values: torch.Tensor, factor: torch.Tensor, rule: Rule, groups: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`feedback`, in plain PyTorch on any device."""
    codes, errors = torch.empty_like(values, dtype=torch.uint8), torch.empty_like(values)
    diagonal = factor.diagonal().unbind()  # tensors: a GPU divides by a plain number inexactly
    for i, group in enumerate(groups.tolist()):
        chosen, level = rule.column(values[i], group)
        codes[i] = chosen
        error = torch.div(values[i] - level, diagonal[i], out=errors[i])
        if i + 1 < len(values):
            values[i + 1 :] -= factor[i, i + 1 :, None] * error
    return codes, errors
