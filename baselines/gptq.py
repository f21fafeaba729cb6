r"""GPTQ: each column is rounded after the errors of those before it (Frantar et al. 2022, arXiv 2210.17323).

With H = 2/n sum x x^T over the calibration tokens that a layer reads, and U upper triangular with U^T U = H^-1:

    e_i = (w_i - Q(w_i)) / U_ii,     w_j <- w_j - e_i U_ij   for all later columns j

which is optimal brain quantization with a fixed order. Blocks are quantized in order, with inputs from the already
quantized ones. The lattice Q is that of any method of one weight (``quantizer``): RTN, R2Q, HQQ, ...

From the repository (IST-DASLab/gptq): damping 0.01 of the mean diagonal, lazy blocks of 128 columns, columns of which
every input is zero (all of a layer's, behind a ReLU that is never open) are set to zero with H_ii = 1, 128 windows of
2048 tokens; act-order, static groups and true-sequential off. Different from it on purpose:

- A group's levels are fitted when its first column is reached, from the weights as they then are. The repository
  reads them from a matrix that is only brought up to date at the end of a block of 128 columns, so for smaller groups
  they are stale by up to a block; ``compat: reference`` does the same. For groups of 128 and channels the two agree.
- ``act_order`` implies static groups, so that a group is a run of neighbouring inputs and nothing has to be stored for
  the order. (In the repository, without static groups, a group is a run of the permuted inputs.)
- Channel and tensor levels are fitted once from the whole row or weight, after such columns are set to zero.
- An expert that no token reaches, of which nothing is known, is refused; its columns are not zero, they were not seen.
- A Hessian that is not positive definite is damped more, step by step up to 1; every step tried is in the layer's
  notes. If none is enough the layer raises: it never becomes round to nearest.
- H is accumulated in float32 (exact products of 16-bit inputs); U comes from one Cholesky factorization of H with rows
  and columns in reverse order and a triangular inverse instead of three factorizations; layers with the same input
  share H and U and are quantized together.
- Levels are those that are stored, with 16-bit scales; the repository keeps scales in float32 while it quantizes.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from baselines._error_feedback import Factor, factorize, quantize_rows, refuse_together, split_rows
from baselines.options.gptq import Options
from r2q.models.blocks import Block, Seen, walk
from r2q.models.calibration import Calibration
from r2q.models.moments import output_error, second_moments
from r2q.models.targets import Target
from r2q.quantization.grid import Grid
from r2q.quantization.method import Method, Quantized, QuantizedWeight, Recipe


def original(block: Block, target: Target) -> torch.Tensor:
    """A weight in float32 on the device, before the block's copy is changed; from the copy where that is exact."""
    copied = block.weight(target.name)
    exact = copied.dtype in (target.weight.dtype, torch.float32)
    return (copied if exact else target.weight.to(copied.device)).float()


def refuse_unreached(seen: Seen) -> None:
    """Raise ValueError for an expert of a stack that no token was shown to."""
    for expert, tokens in enumerate(seen.tokens if isinstance(seen.tokens, list) else []):
        if not tokens and expert not in seen.shown_all:
            raise ValueError(
                f"no calibration token reaches expert {expert}; use more windows, or a "
                "calibration.minimum_tokens above 0"
            )


class GPTQ(Method):
    """Error feedback on any lattice, block by block."""

    needs = "calibration"
    leaves_latent = True
    Options = Options
    version = 2

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.lattice = self.quantizer()
        some = self.lattice.example()
        refuse_together(self.lattice, self.lattice.fit_groups(some), some)  # before any work; real weights may say more

    @torch.no_grad()
    def quantize(self, model: torch.nn.Module, targets: Sequence[Target], data: Calibration) -> Quantized:  # type: ignore[override]
        """Quantize block by block.

        Raises:
            ValueError: a group size does not divide a layer, no token reaches an expert, or a Hessian is not positive
                definite even when damped; names the layer.
        """
        for target in targets:
            self.recipe.group_size(target.weight.shape[-1], target.name)
        layers: dict[str, QuantizedWeight] = {}
        notes: dict[str, dict[str, Any]] = {}
        self._left: dict[str, torch.Tensor] = {}
        dtype = None
        for block in walk(model, targets, data):
            start = time.perf_counter()
            dtype = block.inputs[0].dtype
            for groups in [[group] for group in block.groups] if self.options.true_sequential else [block.groups]:
                moments, seen = second_moments(block, groups)
                for group in groups:
                    self._quantize_group(block, group, moments.pop(group[0].name), seen, layers, notes)
            seconds, total = time.perf_counter() - start, sum(t.weight.numel() for t in block.targets)
            for target in block.targets:  # a block's time, forward passes included, by the layers' shares of weights
                notes[target.name]["seconds"] = round(seconds * target.weight.numel() / total, 4)
        facts = {"layers": notes, "compute_dtype": str(dtype).removeprefix("torch.")}
        return Quantized(layers, notes=facts, latent=self._left)

    def _quantize_group(
        self,
        block: Block,
        group: Sequence[Target],
        moment: torch.Tensor,
        seen: dict[str, Seen],
        layers: dict[str, QuantizedWeight],
        notes: dict[str, dict[str, Any]],
    ) -> None:
        """Quantize targets with the same input, and give the block's copy the result."""
        names = ", ".join(target.name for target in group)
        with self.at(names):
            if group[0].is_stack:
                refuse_unreached(seen[group[0].name])
                codes, grid, factors = self._stack(original(block, group[0]), group[0].name, moment)
                results = [QuantizedWeight.from_codes(codes, grid)]
            else:
                factors = [factorize(moment, self.options.damping, self.options.act_order)]
                results = self._together(block, group, factors[0])
        for target, quantized in zip(group, results, strict=True):
            shown = seen[target.name]
            decoded = quantized.dequantize()
            notes[target.name] = {
                "calibration_error": output_error(moment, target.weight.to(moment.device), decoded, shown.tokens),
                "damping": max(factor.steps[-1] for factor in factors),
                "damping_steps": max((factor.steps for factor in factors), key=len),
                "dead_columns": sum(int(factor.dead.sum()) for factor in factors),
                "calibration_tokens": shown.tokens,
            }
            if shown.shown_all:
                notes[target.name]["shown_all_tokens"] = shown.shown_all  # experts that the router gave too few
            block.set_weight(target.name, decoded)
            layers[target.name] = quantized

    def _rows(
        self, weight: torch.Tensor, factor: Factor, size: int | None
    ) -> tuple[torch.Tensor, Grid, torch.Tensor | None]:
        """Codes, grid, and, if they are to be left, the weights as they were before each was rounded."""
        options, left = self.options, torch.empty_like(weight) if self.leave_latent else None
        stale = options.compat == "reference"
        codes, grid = quantize_rows(weight, factor, self.lattice, size, options.static_groups, stale, left)
        return codes, grid, left

    def _together(self, block: Block, group: Sequence[Target], factor: Factor) -> list[QuantizedWeight]:
        """Rows of all targets of a group below each other; a whole tensor with levels of its own stays alone."""
        self.lattice.begin(group[0].name)
        size = self.recipe.group_size(group[0].weight.shape[1], group[0].name)
        weights = [original(block, target) for target in group]
        if size is None:
            quantized = [self._rows(weight, factor, None) for weight in weights]
            for target, (_, _, left) in zip(group, quantized, strict=True):
                self._leave(target.name, left)
            return [QuantizedWeight.from_codes(codes, grid) for codes, grid, _ in quantized]
        codes, grid, left = self._rows(torch.cat(weights), factor, size)
        rows = [len(weight) for weight in weights]
        for target, part in zip(group, [None] * len(rows) if left is None else left.split(rows), strict=True):
            self._leave(target.name, part)
        grids = split_rows(grid, rows)
        return [QuantizedWeight.from_codes(c, g) for c, g in zip(codes.split(rows), grids, strict=True)]

    def _leave(self, name: str, left: torch.Tensor | None) -> None:
        """Keep what :meth:`_rows` left of a target."""
        if left is not None:
            self._left[name] = left.cpu()

    def _stack(
        self, weights: torch.Tensor, name: str, moments: torch.Tensor
    ) -> tuple[torch.Tensor, Grid, list[Factor]]:
        """Every expert with the Hessian of the tokens that it saw."""
        self.lattice.begin(name)
        size = self.recipe.group_size(weights.shape[-1], name)
        codes, grids, factors, lefts = [], [], [], []
        for expert, (weight, moment) in enumerate(zip(weights, moments, strict=True)):
            try:
                factor = factorize(moment, self.options.damping, self.options.act_order)
                rows, grid, left = self._rows(weight, factor, size)
            except ValueError as error:
                raise ValueError(f"expert {expert}: {error}") from None
            factor.upper = torch.empty(0)  # large, and done with
            codes.append(rows)
            grids.append(grid)
            factors.append(factor)
            lefts += [] if left is None else [left]
        self._leave(name, torch.stack(lefts) if lefts else None)
        return torch.stack(codes), type(grids[0]).cat(grids), factors
