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

import torch

from baselines.options.rtn import Options
from r2q.quantization.grid import SMALLEST_SCALE, AffineGrid, stored
from r2q.quantization.method import Recipe, WeightMethod


def affine_grid(low: torch.Tensor, high: torch.Tensor, bits: int) -> AffineGrid:
    """The lattice for ranges ``[low, high]`` (float32 ``[rows, groups]``) that hold zero."""
    steps = 2**bits - 1
    scale = stored(((high - low) / steps).clamp_min(SMALLEST_SCALE))
    zero = torch.round(-low / scale.float()).clamp_(0, steps).to(torch.uint8)
    return AffineGrid(scale, zero, bits)


def min_max_grid(values: torch.Tensor, bits: int) -> AffineGrid:
    """The lattice for the whole ranges of float32 ``values [rows, groups, n]``, widened to zero."""
    return affine_grid(values.amin(-1).clamp_max(0), values.amax(-1).clamp_min(0), bits)


class RTN(WeightMethod):
    """Round to nearest, with or without a range search."""

    Options = Options

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        clips, steps = self.options.clip == "mse", self.options.steps
        self.factors = torch.linspace(1, self.options.smallest, steps) if clips else torch.ones(1)

    def fit_groups(self, values: torch.Tensor) -> AffineGrid:
        if self.options.clip == "none":
            return min_max_grid(values, self.recipe.bits)
        low, high = values.amin(-1).clamp_max(0), values.amax(-1).clamp_min(0)  # [rows, groups]
        at_once = len(self.factors) if torch.compiler.is_compiling() else 1  # compiled, none of it is kept
        best, least = affine_grid(low, high, self.recipe.bits), torch.full_like(low, torch.inf)
        for factors in self.factors.to(values.device).split(at_once):
            grid = affine_grid(low.unsqueeze(-1) * factors, high.unsqueeze(-1) * factors, self.recipe.bits)
            wide = values.unsqueeze(-2)  # [rows, groups, 1, n] on grids [rows, groups, factors]
            error, at = (grid.decode(grid.encode(wide)) - wide).square_().sum(-1).min(-1, keepdim=True)
            better = error.squeeze(-1) < least
            least = torch.where(better, error.squeeze(-1), least)
            scale = torch.where(better, grid.scale.gather(-1, at).squeeze(-1), best.scale)
            zero = torch.where(better, grid.zero.gather(-1, at).squeeze(-1), best.zero)
            best = AffineGrid(scale, zero, self.recipe.bits)
        return best
