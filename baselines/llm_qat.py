"""Symmetric levels without a zero: LLM-QAT's two-bit rule, and the start of ParetoQ's SEQ.

LLM-QAT (``models/utils_quant.py: QuantizeLinear``, arXiv 2305.17888) at two bits, for each row (here: each group):

    s = 2 mean |w|
    w~ = s (round(2 clamp(w / s, -0.99, 0.99) - 1/2) + 1/2) / 2          levels -3s/4, -s/4, s/4, 3s/4

Rounding is half to even: w = 0 becomes +s/4 and w = s/2 becomes s/4. The clamp keeps 2 clamp(w / s) - 1/2 between the
outer codes and moves nothing else. ParetoQ's "stretched elastic" quantizer (SEQ, arXiv 2502.02631) has the same levels
with a learned s that starts at max |w|: ``scale: max`` is that start, without the training.

Above two bits LLM-QAT takes another rule, which is followed here too: symmetric min-max with an odd number of levels,

    step = max |w| / (2^(b-1) - 1)          w~ = step round(w / step)

Storage: 2 + 16/g bits a weight at two bits, as the literature counts it (``s/2`` is stored; the levels imply the rest).
Above two bits the constant zero point is stored as everywhere else, ``b`` bits a group.
"""

import torch

from baselines.options.llm_qat import Options
from r2q.quantization.grid import SMALLEST_SCALE, AffineGrid, Grid, SymmetricGrid, stored
from r2q.quantization.method import WeightMethod


class LLMQAT(WeightMethod):
    """Four levels ``±s/4, ±3s/4`` per group at two bits."""

    Options = Options

    def fit_groups(self, values: torch.Tensor) -> Grid:
        bits, magnitude = self.recipe.bits, values.abs()
        if bits == 2:
            s = 2 * magnitude.mean(-1) if self.options.scale == "mean" else magnitude.amax(-1)
            return SymmetricGrid(stored(s / 2), bits)
        if self.options.scale == "max":
            raise ValueError(f"scale: max is SEQ's start at 2 bits, not {bits}")
        middle = 2 ** (bits - 1) - 1
        scale = stored((magnitude.amax(-1) / middle).clamp_min(SMALLEST_SCALE))
        return AffineGrid(scale, torch.full_like(scale, middle, dtype=torch.uint8), bits)

    def encode_groups(self, values: torch.Tensor, grid: Grid) -> torch.Tensor:
        codes = grid.encode(values)
        return codes if self.recipe.bits == 2 else codes.clamp_max_(2**self.recipe.bits - 2)  # an odd number of levels
