"""BitDistiller's asymmetric clipping alone: both ends of each group's range searched by output error.

BitDistiller (DD-DuDa/BitDistiller, ``quantization/autoclip.py: auto_2clip_layer``, arXiv 2402.10631). For every output
row and group, the largest and the smallest weight are shrunk independently by the factors 1, 0.95, ..., 0.55
(``n_grid`` 20, ``max_shrink`` 0.5): 10 x 10 ranges. Kept is the one for which

    mean over tokens of (x . Q(clamp(w)) - x . w)^2

is least, x running over the group's inputs alone (a partial output), on 512 tokens spread evenly over the calibration
text. Queries and keys keep their whole range, alone or in one layer with values. Every layer sees full-precision
activations: the repository computes a block's outputs before it clips the block. In the paper this is the start of
training; the row is that start.

Q is AWQ's quantizer (``quantization/quantizer.py``), not quite RTN's: the range is that of the clamped weights without
widening it to zero, while the zero point is clamped to the codes. A group without a sign change loses one end.

    scale = max(hi - lo, 1e-5) / q          zero = clamp(-round(lo / scale), 0, q)

Storage as RTN's: 2 + 18/g bits a weight.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from baselines._calibrated import (
    encode,
    error_roots,
    group_sizes,
    is_query_or_key,
    matrices,
    sample_inputs,
    search_range,
)
from baselines.options.bitdistiller_clip import Options
from r2q.models.blocks import walk
from r2q.quantization.grid import AffineGrid, stored
from r2q.quantization.method import Method, Quantized

Range = tuple[torch.Tensor, torch.Tensor]


def awq_lattice(values: torch.Tensor, bits: int) -> AffineGrid:
    """AWQ's and BitDistiller's levels for ``values [rows, groups, n]``."""
    low, high, steps = values.amin(-1), values.amax(-1), 2**bits - 1
    scale = stored((high - low).clamp_min(1e-5) / steps)
    return AffineGrid(scale, torch.round(low / scale.float()).neg_().clamp_(0, steps).to(torch.uint8), bits)


def two_sided(steps: int, grid: int) -> Callable[[torch.Tensor], Iterator[Range]]:
    """All pairs of shrunken ends, the upper one in the outer loop."""

    def ranges(values: torch.Tensor) -> Iterator[Range]:
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        for i in range(steps):
            for j in range(steps):
                yield low * (1 - j / grid), high * (1 - i / grid)

    return ranges


class BitDistillerClip(Method):
    """Round to nearest in ranges whose two ends are searched by output error."""

    needs = "calibration"
    version = 2
    Options = Options

    @torch.no_grad()
    def quantize(self, model: torch.nn.Module, targets: Sequence[Any], data: Any) -> Quantized:
        sizes, bits = group_sizes(self.recipe, targets), self.recipe.bits
        ranges = two_sided(self.options.steps, self.options.grid)
        layers, notes = {}, {}
        for block in walk(model, targets, data):
            inputs = sample_inputs(block, block.groups, self.options.tokens)
            for group in block.groups:
                roots: dict[tuple[int | None, int], torch.Tensor] = {}  # shared by layers with the same input
                for target in group:
                    start, size = time.perf_counter(), sizes[target.name]
                    weight = target.weight.to(data.device).float()
                    with self.at(target.name):
                        parts = []
                        for expert, matrix in matrices(weight):
                            values = matrix.reshape(len(matrix), -1, size)
                            if not is_query_or_key(target.name):
                                if (expert, size) not in roots:
                                    roots[expert, size] = error_roots(inputs[group[0].name, expert], size)
                                low, high = search_range(values, roots[expert, size], ranges, awq_lattice, bits)
                                values = values.clamp(low, high)
                            parts.append(values)
                        layers[target.name] = encode(weight, torch.cat(parts), awq_lattice, bits)
                    notes[target.name] = {"seconds": round(time.perf_counter() - start, 4)}
        return Quantized({t.name: layers[t.name] for t in targets}, notes={"layers": notes})
