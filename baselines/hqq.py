"""HQQ: a floating-point zero point by half-quadratic splitting, from the weights alone.

HQQ (mobiusml/hqq, ``hqq/core/optimize.py: optimize_weights_proximal``) looks for the zero point of least ``l_p`` error,
p = 0.7, with the min-max scale held fixed. From zero = -min / scale it repeats, for each group,

    W_q  = clamp(round(W / scale + zero), 0, q)              W_r = (W_q - zero) scale
    W_e  = shrink(W - W_r),  shrink(x) = sign(x) max(|x| - |x|^(p-1) / beta, 0)
    zero = mean(W_q - (W - W_e) / scale)                     beta <- kappa beta

Defaults are the repository's: p = 0.7, beta = 10, kappa = 1.01, 20 steps, the step at least 1/20000, stop as soon as
mean |W - W_r| does not fall. With weights as small as a language model's, beta = 10 shrinks every residual below 0.17
to zero, so that a step is the least-squares zero point for the codes at hand: this is what the published numbers were
made with.

Two differences. The repository stops for the whole matrix at once; here every group takes all steps, so that none
depends on its neighbours. On the mini models errors of the weights agree to four digits. Groups run along in_features
(the repository's ``axis=1``, what fast kernels need; its ``axis=0`` is better at two bits). Its optional quantization
of scales and zero points is left out: each takes 16 bits, 2 + 32/g bits a weight in all. At four bits its default
starts from a rounded zero point, and whole tensors it only rounds; here neither is an exception. Where all weights of a
group are nearly the same and large, the step grows until the zero point fits into 16 bits (there it becomes 1).
"""

import torch

from baselines.options.hqq import Options
from r2q.quantization.grid import AffineGrid, stored
from r2q.quantization.method import WeightMethod

LEAST_STEP = 1 / 2e4  # of a nearly constant group
MOST = 1e30  # of beta
LARGEST_ZERO = 65000  # and its zero point, with room for the steps, within 16 bits


def shrink(x: torch.Tensor, p: float, beta: float) -> torch.Tensor:
    """The proximal step of ``|x|^p`` in HQQ's approximation; soft thresholding for p = 1."""
    magnitude = x.abs()
    return torch.sign(x) * torch.relu(magnitude - magnitude.pow(p - 1) / beta)


class HQQ(WeightMethod):
    """Min-max scale, optimized floating-point zero point."""

    Options = Options
    version = 2

    def fit_groups(self, values: torch.Tensor) -> AffineGrid:
        low, high = values.amin(-1), values.amax(-1)
        step = torch.maximum((high - low) / (2**self.recipe.bits - 1), torch.maximum(high, -low) / LARGEST_ZERO)
        scale = stored(step.clamp_min(LEAST_STEP))
        path = self.refine(values, scale.float(), -low / scale.float())
        return AffineGrid(scale, stored(path[-1]), self.recipe.bits)

    def refine(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> list[torch.Tensor]:
        """The zero points at the start and after every step.

        Args:
            values: float32 ``[rows, groups, n]``.
            scale: float32 ``[rows, groups]``, as stored.
            zero: float32 ``[rows, groups]``, the start.
        """
        beta, step, path = self.options.beta, scale.unsqueeze(-1), [zero]
        for _ in range(self.options.steps):
            residual, codes = self.round(values, scale, path[-1])
            path.append((codes - (values - shrink(residual, self.options.p, beta)) / step).mean(-1))
            beta = min(beta * self.options.kappa, MOST)
        return path

    def round(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``W - W_r`` and ``W_q``, float32 ``[rows, groups, n]``."""
        step, offset = scale.unsqueeze(-1), zero.unsqueeze(-1)
        codes = (values / step + offset).round_().clamp_(0, 2**self.recipe.bits - 1)
        return values - (codes - offset) * step, codes
