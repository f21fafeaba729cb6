"""AWQ: input channels scaled by their activations before rounding, then ranges searched by output error.

AWQ (mit-han-lab/llm-awq, ``awq/quantize/{auto_scale,auto_clip}.py``, arXiv 2306.00978), with the repository's settings.

Scales. For layers that read the same input x, with a = mean |x| per input channel over the calibration text:

    s = max(a^r, 1e-4),  s <- s / sqrt(max s * min s),  r = 0, 1/20, ..., 19/20
    w~ = Q(w s) / s

and r is the one of least squared error of the output of the smallest module that holds these layers (attention for
q, k, v; the MLP for gate and up; the layer itself where it reads alone), all its other layers in full precision. Every
layer sees full-precision activations. The first of equals wins, and at r = 0 there is no scale.

Ranges. For each row and group of w s the symmetric bound is shrunk from max |w s| by 1, 0.95, ..., 0.55 (``n_grid`` 20,
``max_shrink`` 0.5) to where the group's share of the output changes least (see ``baselines/_calibrated.py``), on 512
tokens spread evenly. Queries and keys keep their whole range, also where one layer makes them with the values.

Where the scales go. The repository divides them out of the operation before (a norm's weight, the rows of v_proj or
up_proj), for the four families it knows and not where v_proj has fewer heads than o_proj. Here every layer keeps its
own s, 16 bits an input channel, and divides by it when the weight is decoded: one rule for every family, for grouped
queries and for experts, exact in any precision. The price is in the size: 16/out more bits a weight, 0.004 at 4096 rows
(but 0.06 to 0.25 in the mini models), on top of 2 + 18/g. Experts of a stack share one s, as the tokens do.

Q is RTN's quantizer, so that r = 0 without ranges is RTN bit for bit. AWQ's own does not widen the range to zero,
which only differs for groups without a sign change, and there loses one end. Perplexities of 1e5 at two bits are what
AWQ gives for 7B models; its own kernels refuse two bits.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from baselines._calibrated import (
    Inputs,
    encode,
    error_roots,
    group_sizes,
    is_query_or_key,
    matrices,
    sample_inputs,
    search_range,
)
from baselines.options.awq import Options
from baselines.rtn import min_max_grid
from r2q.models.blocks import Block, walk
from r2q.models.capture import hidden_of
from r2q.models.targets import Target
from r2q.quantization.grid import stored
from r2q.quantization.method import Method, Quantized, QuantizedWeight


def channel_scale(activation: torch.Tensor, exponent: float) -> torch.Tensor:
    """s of the docstring, float16 ``[in]``, from the mean absolute activation ``[in]``."""
    s = activation.pow(exponent).clamp_min(1e-4)
    return stored(s / (s.max() * s.min()).sqrt())


class AWQ(Method):
    """Activation-aware scales and symmetric range search."""

    needs = "calibration"
    version = 2
    scales_inputs = True
    Options = Options

    @torch.no_grad()
    def quantize(self, model: torch.nn.Module, targets: Sequence[Any], data: Any) -> Quantized:
        self.sizes = group_sizes(self.recipe, targets)
        layers, notes = {}, {}
        for block in walk(model, targets, data):
            start = time.perf_counter()
            scales = self.search_scales(block)
            searching = (time.perf_counter() - start) / max(1, len(block.targets))
            inputs = sample_inputs(block, block.groups, self.options.tokens) if self.options.clip else {}
            for group in block.groups:
                exponent, scale = scales[group[0].name]
                for target in group:
                    start = time.perf_counter()
                    with self.at(target.name):
                        layers[target.name] = self.encoded(target, scale, inputs, group[0].name, data.device)
                    seconds = searching + time.perf_counter() - start
                    notes[target.name] = {"seconds": round(seconds, 4), "exponent": exponent}
        return Quantized({t.name: layers[t.name] for t in targets}, notes={"layers": notes})

    def encoded(
        self, target: Target, scale: torch.Tensor | None, inputs: Inputs, reads: str, device: torch.device
    ) -> QuantizedWeight:
        """A weight scaled, clipped by the ``inputs`` of the group that ``reads`` stands for, and put on its levels."""
        weight = target.weight.to(device).float() * (1 if scale is None else scale.float())
        parts = []
        for expert, matrix in matrices(weight):
            values = matrix.reshape(len(matrix), -1, self.sizes[target.name])
            if self.options.clip and not is_query_or_key(target.name):
                x = inputs[reads, expert]
                values = self.clip(values, x if scale is None else x / scale.float())
            parts.append(values)
        return encode(weight, torch.cat(parts), min_max_grid, self.recipe.bits, scale)

    def clip(self, values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """``values [rows, groups, n]``, clamped to the best symmetric bounds for ``inputs [tokens, in]``."""
        count, grid = self.options.clip_steps, self.options.clip_grid

        def bounds(part: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            whole = part.abs().amax(-1, keepdim=True)
            for i in range(count):
                yield -whole * (1 - i / grid), whole * (1 - i / grid)

        roots = error_roots(inputs, values.shape[-1])
        return values.clamp(*search_range(values, roots, bounds, min_max_grid, self.recipe.bits))

    def search_scales(self, block: Block) -> dict[str, tuple[float, torch.Tensor | None]]:
        """Exponent and scale for the first target of every group of a block; None for no scale."""
        tried = [i / self.options.exponents for i in range(self.options.exponents)]
        if len(tried) == 1:
            return {group[0].name: (0.0, None) for group in block.groups}
        sums: dict[str, torch.Tensor] = {}
        counts: dict[str, int] = {}

        def add(name: str, _: int | None, x: torch.Tensor) -> None:
            sums[name] = sums.get(name, 0) + x.abs().sum(0, dtype=torch.float32)
            counts[name] = counts.get(name, 0) + len(x)

        block.observe(add)
        candidates = {}
        for name, total in sums.items():
            with self.at(name):
                candidates[name] = [channel_scale(total / counts[name], r) for r in tried]
        losses = self.output_errors(block, candidates)
        best = {name: min(range(len(tried)), key=values.__getitem__) for name, values in losses.items()}
        return {name: (tried[i], candidates[name][i] if i else None) for name, i in best.items()}

    def output_errors(self, block: Block, candidates: dict[str, list[torch.Tensor]]) -> dict[str, list[float]]:
        """Squared error of the inspected module's output, by first target of a group and candidate scale.

        One run through the block: each inspected module tries all candidates on the inputs that it just had.
        """
        losses = {name: [0.0] * len(scales) for name, scales in candidates.items()}
        inspected: dict[torch.nn.Module, list[list[Target]]] = {}
        for group in block.groups:
            inspected.setdefault(holder(block, group), []).append(group)
        trying = False

        def after(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            nonlocal trying
            if trying:
                return
            trying = True
            for group in inspected[module]:
                originals = {target.name: block.weight(target.name).clone() for target in group}
                for i, scale in enumerate(candidates[group[0].name]):
                    for name, weight in originals.items():
                        block.set_weight(name, self.rounded(name, weight.float(), scale.float()))
                    changed = module.forward(*args, **kwargs)
                    difference = hidden_of(changed).to(torch.float32, copy=True).sub_(hidden_of(output)).square_()
                    losses[group[0].name][i] += float(difference.sum(dtype=torch.float64))
                for name, weight in originals.items():
                    block.set_weight(name, weight)
            trying = False

        handles = [module.register_forward_hook(after, with_kwargs=True) for module in inspected]
        try:
            for batch in block.inputs:
                block.run(batch)
        finally:
            for handle in handles:
                handle.remove()
        return losses

    def rounded(self, name: str, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """``Q(w s) / s`` for a weight or a stack."""
        values = (weight * scale).reshape(-1, weight.shape[-1] // self.sizes[name], self.sizes[name])
        with self.at(name):
            grid = min_max_grid(values, self.recipe.bits)
        return grid.decode(grid.encode(values)).reshape(weight.shape) / scale


def holder(block: Block, group: Sequence[Target]) -> torch.nn.Module:
    """The smallest module of the block's copy that holds all layers of a group; for a stack, what it belongs to."""
    weights = {id(block.held(target.name)) for target in group}
    holding = [m for m in block.module.modules() if weights <= {id(p) for p in m.parameters()}]
    return holding[-1]  # modules come outer first, and those that hold all of a group lie within each other
