"""Random codes on the round-to-nearest lattice: the negative control.

The levels are those of RTN, the code of each weight is drawn evenly from all of them. Whatever such a model scores
above chance is a fault of the task, not knowledge.
"""

import torch

from baselines.rtn import min_max_grid
from r2q.quantization.grid import AffineGrid, Grid
from r2q.quantization.method import WeightMethod, generator


class RandomCodes(WeightMethod):
    """RTN's levels, evenly drawn codes; the seed is the recipe's, for each layer its own stream."""

    stochastic = True
    control = True

    def begin(self, name: str) -> None:
        self._generator = generator(self.recipe.seed, name)

    def fit_groups(self, values: torch.Tensor) -> AffineGrid:
        return min_max_grid(values, self.recipe.bits)

    def encode_groups(self, values: torch.Tensor, grid: Grid) -> torch.Tensor:
        codes = torch.randint(2**grid.bits, values.shape, generator=self._generator, dtype=torch.uint8)
        return codes.to(values.device)
