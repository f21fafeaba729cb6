"""Round to nearest on an evenly spaced lattice (asymmetric min-max).

For a group with smallest weight lo and largest hi, and q = 2**bits - 1 steps:

    lo <- min(lo, 0), hi <- max(hi, 0)              the range always holds zero (as in GPTQ's ``quant.py``)
    scale = (hi - lo) / q, rounded to 16 bits, at least 2**-24
    zero  = clamp(round(-lo / scale), 0, q)         an integer, stored at ``bits`` bits: zero stays exactly zero
    code  = clamp(round(w / scale) + zero, 0, q)    w~ = (code - zero) * scale

Rounding is half to even. Other codes differ where the published numbers differ: AWQ and BitDistiller do not widen the
range but clamp the zero point (a group without a sign change loses one end), OmniQuant and EfficientQAT leave it
unclamped, HQQ keeps it as a float.

With ``clip: mse`` the range is shrunk, both ends by the same factor, to the factor of least squared weight error:
GPTQ's ``mse`` option with the norm 2 instead of 2.4. The search starts at the full range, so the error is never
larger than without it (before the scales are rounded to 16 bits).
"""

from __future__ import annotations

import torch

from baselines.options.rtn import Options
from r2q.quantization.grid import SMALLEST_SCALE, AffineGrid, stored
from r2q.quantization.method import WeightMethod


def affine_grid(low: torch.Tensor, high: torch.Tensor, bits: int) -> AffineGrid:
    """The lattice for ranges ``[low, high]`` (float32 ``[rows, groups]``) that hold zero."""
    steps = 2**bits - 1
    scale = stored(((high - low) / steps).clamp_min(SMALLEST_SCALE))
    zero = torch.round(-low / scale.float()).clamp_(0, steps).to(torch.uint8)
    return AffineGrid(scale, zero, bits)


class RTN(WeightMethod):
    """Round to nearest, with or without a range search."""

    Options = Options

    def fit_groups(self, values: torch.Tensor) -> AffineGrid:
        low, high = values.amin(-1).clamp_max(0), values.amax(-1).clamp_min(0)  # [rows, groups]
        best = affine_grid(low, high, self.recipe.bits)
        if self.options.clip == "none":
            return best
        least = (best.decode(best.encode(values)) - values).square_().sum(-1)
        for factor in torch.linspace(1, self.options.smallest, self.options.steps).tolist()[1:]:
            grid = affine_grid(low * factor, high * factor, self.recipe.bits)
            error = (grid.decode(grid.encode(values)) - values).square_().sum(-1)
            better = error < least
            least = torch.where(better, error, least)
            scale, zero = torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero)
            best = AffineGrid(scale, zero, self.recipe.bits)
        return best
