"""OmniQuant's learnable weight clipping: both ends of each group's range trained by block reconstruction.

OmniQuant (OpenGVLab/OmniQuant, ``quantize/{quantizer,omniquant}.py``, arXiv 2308.13137), weights only, without its
learnable equivalent transformation (as in its scripts for Llama). For each group, with trained numbers b_lo and b_hi,

    lo = sigmoid(b_lo) min w,  hi = sigmoid(b_hi) max w          both start at 4.0: 0.982 of the range
    scale = clamp((hi - lo) / q, 1e-5, 1e4),  zero = round(-lo / scale)
    w~ = (clamp(round(w / scale) + zero, 0, q) - zero) scale

The gradient passes through the rounding of weights, not through that of the zero point. Block by block, the outputs of
the quantized block on the inputs that the quantized blocks before it give are drawn to those of the full-precision
block on full-precision inputs and (``aug_loss``) on the same inputs; mean squared errors, added.

Defaults are those of its 2-bit Llama scripts: AdamW, rate 1e-2, no weight decay, batches of one window, 40 epochs (10
is the default of its command line), ``aug_loss`` on. It calibrates on 128 windows of 2,048 tokens of wikitext2.

One difference: the range is widened to zero, as in RTN, so that the zero point fits into the ``b`` bits it is stored
in. The repository leaves it unbounded; this concerns groups without a sign change only. Storage 2 + 18/g bits a weight.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from baselines._calibrated import group_sizes
from baselines._reconstruct import block_mse, fit, held, pairs, round_through
from baselines.options.omniquant_lwc import Options
from baselines.rtn import affine_grid
from r2q.models.blocks import Block
from r2q.quantization.method import Method, Quantized, QuantizedWeight


class OmniQuantLWC(Method):
    """Round to nearest in trained ranges."""

    needs = "calibration"
    Options = Options

    @torch.no_grad()
    def quantize(self, model: torch.nn.Module, targets: Sequence[Any], data: Any) -> Quantized:
        sizes, options = group_sizes(self.recipe, targets), self.options
        layers: dict[str, QuantizedWeight] = {}
        notes: dict[str, dict[str, float]] = {}
        for block, twin, outputs in pairs(model, targets, data, options.batch):
            start = time.perf_counter()
            ranges = {t.name: Range(t.weight.to(data.device), sizes[t.name], options.start) for t in block.targets}

            def quantized(block: Block = block, ranges: dict[str, Range] = ranges) -> dict[str, torch.Tensor]:
                return held(block, {name: each.fake_quantized(self.recipe.bits) for name, each in ranges.items()})

            references = [outputs]
            if options.aug_loss:
                references.append([twin.run(x, batch=i).to(x.device) for i, x in enumerate(block.inputs)])
            before = block_mse(block, quantized(), outputs)
            trained = [factor for each in ranges.values() for factor in (each.low_factor, each.high_factor)]
            optimizer = torch.optim.AdamW(trained, lr=options.rate, weight_decay=0)
            fit(block, quantized, references, optimizer, options.epochs)
            for name, each in ranges.items():
                with self.at(name):
                    layers[name] = each.encoded(self.recipe.bits)
                block.set_weight(name, layers[name].dequantize())
            after = block_mse(block, {}, outputs)
            seconds = round((time.perf_counter() - start) / len(ranges), 4)
            notes |= {name: {"seconds": seconds, "block_mse_start": before, "block_mse": after} for name in ranges}
        return Quantized({t.name: layers[t.name] for t in targets}, notes={"layers": notes})


class Range:
    """The trained ranges of one weight.

    Args:
        weight: ``[out, in]`` or ``[experts, out, in]``.
        size: group size n.
        start: of both factors, before the sigmoid.
    """

    def __init__(self, weight: torch.Tensor, size: int, start: float) -> None:
        self.shape = weight.shape
        self.values = weight.detach().float().reshape(-1, weight.shape[-1] // size, size)  # [rows, groups, n]
        self.low, self.high = self.values.amin(-1).clamp_max(0), self.values.amax(-1).clamp_min(0)
        self.low_factor = torch.full_like(self.low, start).requires_grad_()
        self.high_factor = torch.full_like(self.high, start).requires_grad_()

    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Low and high end, ``[rows, groups]``."""
        return self.low * torch.sigmoid(self.low_factor), self.high * torch.sigmoid(self.high_factor)

    def fake_quantized(self, bits: int) -> torch.Tensor:
        """The quantized weight, differentiable."""
        low, high = self.ends()
        scale = ((high - low) / (2**bits - 1)).clamp(1e-5, 1e4).unsqueeze(-1)
        zero = (-low.detach().unsqueeze(-1) / scale.detach()).round()
        codes = (round_through(self.values / scale) + zero).clamp(0, 2**bits - 1)
        return ((codes - zero) * scale).reshape(self.shape)

    def encoded(self, bits: int) -> QuantizedWeight:
        """The quantized weight as it is stored."""
        grid = affine_grid(*self.ends(), bits)
        return QuantizedWeight.from_codes(grid.encode(self.values).reshape(self.shape), grid)
