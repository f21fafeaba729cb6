"""One-pass versions of two quantizers for training on a GPU: pure tensor code without checks, compiled there.

A weight method checks its input, keeps codes apart and rounds in several passes, which costs memory traffic that a GPU
feels at every step. These functions give the same numbers: scales equal within float32 rounding of the mean, codes
equal but at exact ties. What leaves the range of float16 becomes infinite here and is caught as a loss that is not
finite.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from r2q.quantization.grid import SMALLEST_SCALE
from r2q.quantization.method import WeightMethod

Map = Callable[[torch.Tensor], torch.Tensor]


def stored(scale: torch.Tensor) -> torch.Tensor:
    """A float32 scale rounded to the 16 bits that are stored.

    Compiled, a conversion to float16 and back is dropped (what is computed in float32 stays there), and so is a view as
    integers and back. An operation on those integers is not.
    """
    return (scale.half().view(torch.int16) & -1).view(torch.float16).float()


def residual_map(values: torch.Tensor) -> torch.Tensor:
    """Two-bit R2Q of ``values [..., n]`` in their dtype (see :mod:`r2q.quantization.residual`)."""
    wide = values.float()
    magnitude = wide.abs()
    first = stored(magnitude.mean(-1, keepdim=True))
    rest = magnitude - first
    second = stored(rest.abs().mean(-1, keepdim=True))
    # beyond the first scale the second sign is that of the weight; within, the opposite; residual_codes breaks ties up
    outer = torch.where(wide >= 0, rest >= 0, rest > 0)
    level = torch.where(outer, first + second, first - second)
    return torch.where(wide >= 0, level, -level).to(values.dtype)


def nearest_map(values: torch.Tensor, bits: int = 2) -> torch.Tensor:
    """Min-max round to nearest of ``values [..., n]`` in their dtype (``baselines/rtn.py``)."""
    wide, steps = values.float(), 2**bits - 1
    low, high = wide.amin(-1, keepdim=True).clamp_max(0), wide.amax(-1, keepdim=True).clamp_min(0)
    scale = stored(((high - low) / steps).clamp_min(SMALLEST_SCALE))
    zero = torch.round(-low / scale).clamp(0, steps)
    return (((torch.round(wide / scale) + zero).clamp(0, steps) - zero) * scale).to(values.dtype)


def fused_map(method: WeightMethod) -> Map | None:
    """The one-pass version of a method; None when it has none and its own code runs."""
    recipe, options = method.recipe, method.options
    if recipe.bits != 2 or recipe.granularity == "tensor":
        return None
    if recipe.method == "r2q" and options.refine == "none":
        return residual_map
    if recipe.method == "rtn" and options.clip == "none":
        return nearest_map
    return None


@cache
def compiled(function: Map) -> Map:
    """The same, compiled when it is first called."""
    return torch.compile(function)
