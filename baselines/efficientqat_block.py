"""EfficientQAT's first phase, Block-AP: weights, scales and zero points trained by block reconstruction.

EfficientQAT (OpenGVLab/EfficientQAT, ``quantize/{quantizer,block_ap}.py``, arXiv 2407.11062). Scale and zero point of
each group start from its smallest and largest weight and are trained together with the weights:

    scale = clamp(s, 1e-4, 1e4),  zero = clamp(round(z), 0, q)           s = (max - min) / q,  z = round(-min / s)
    w~ = (clamp(round(w / scale) + zero, 0, q) - zero) scale

Roundings and the clamps of s and z pass gradients through. Block by block, the outputs of the quantized block on the
inputs that the quantized blocks before it give are drawn to those of the full-precision model; mean squared error.
All other parameters of a block with ``weight`` in their name (of norms and routers) train at the weights' rate, as in
the repository, and are stored; biases stay.

Defaults are those of its 2-bit script: AdamW without weight decay, 1e-4 for s and z, 2e-5 for weights, both falling
along a cosine to 1/20, batches of two windows, 2 epochs; no gradient clipping (its ``--clip_grad`` is never applied),
the last step is kept. It trains on 4,096 windows of 2,048 tokens of RedPajama: on the 128 windows that are common in
calibration it moves little. Its second phase, end-to-end training of the scales, is not part of this method.

Storage 2 + 18/g bits a weight.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from baselines._calibrated import group_sizes
from baselines._reconstruct import block_mse, clamp_through, fit, held, pairs, round_through
from baselines.options.efficientqat_block import Options
from r2q.models.blocks import Block
from r2q.quantization.grid import AffineGrid, stored
from r2q.quantization.method import Method, Quantized, QuantizedWeight

LEAST, MOST = 1e-4, 1e4  # bounds of a scale


class EfficientQATBlock(Method):
    """Weights, scales and zero points trained block by block."""

    needs = "calibration"
    leaves_latent = True
    Options = Options

    @torch.no_grad()
    def quantize(self, model: torch.nn.Module, targets: Sequence[Any], data: Any) -> Quantized:
        sizes, bits = group_sizes(self.recipe, targets), self.recipe.bits
        stored_as = {name: parameter.dtype for name, parameter in model.named_parameters()}
        layers: dict[str, QuantizedWeight] = {}
        other: dict[str, torch.Tensor] = {}
        notes: dict[str, dict[str, float]] = {}
        latent: dict[str, torch.Tensor] = {}
        for block, _, outputs in pairs(model, targets, data, self.options.batch):
            start = time.perf_counter()
            trained = {t.name: Trained(t.weight.to(data.device), sizes[t.name], bits) for t in block.targets}
            free = {} if block.index < 0 else free_parameters(block)

            def quantized(
                block: Block = block,
                trained: dict[str, Trained] = trained,
                free: dict[str, torch.Tensor] = free,
            ) -> dict[str, torch.Tensor]:
                return held(block, {name: each.fake_quantized() for name, each in trained.items()}) | free

            before = block_mse(block, quantized(), outputs)
            self.fit(block, quantized, outputs, [*trained.values()], [*free.values()])
            for name, each in trained.items():
                layers[name] = each.encoded()
                if self.leave_latent:
                    latent[name] = each.values.detach().reshape(each.shape).cpu()
                block.set_weight(name, layers[name].dequantize())
            for local, tensor in free.items():
                full = f"{block.prefix}.{local}"
                other[full] = tensor.detach().to(stored_as[full])
                block.module.get_parameter(local).copy_(other[full])
            after = block_mse(block, {}, outputs)
            seconds = round((time.perf_counter() - start) / len(trained), 4)
            notes |= {name: {"seconds": seconds, "block_mse_start": before, "block_mse": after} for name in trained}
        return Quantized({t.name: layers[t.name] for t in targets}, other, {"layers": notes}, latent)

    def fit(
        self,
        block: Block,
        quantized: Any,
        outputs: list[torch.Tensor],
        trained: "list[Trained]",
        free: list[torch.Tensor],
    ) -> None:
        """Train one block."""
        options = self.options
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for each in trained for p in (each.scale, each.zero)], "lr": options.rate},
                {"params": [each.values for each in trained] + free, "lr": options.weight_rate},
            ],
            weight_decay=0,
        )
        steps = max(1, options.epochs * len(block.inputs))
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step / steps, options.final))
        fit(block, quantized, [outputs], optimizer, options.epochs, rates)


def cosine(progress: float, final: float) -> float:
    """From 1 to ``final`` along half a cosine."""
    return final + (1 - final) * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * progress))))


def free_parameters(block: Block) -> dict[str, torch.Tensor]:
    """Copies of the block's parameters that train beside the target weights, float32, by name."""
    taken = {id(block.held(target.name)) for target in block.targets}
    return {
        name: parameter.detach().float().clone().requires_grad_()
        for name, parameter in block.module.named_parameters()
        if "weight" in name and id(parameter) not in taken
    }


class Trained:
    """What is trained of one target.

    Args:
        weight: ``[out, in]`` or ``[experts, out, in]``.
        size: group size n.
        bits: bits of a code.
    """

    def __init__(self, weight: torch.Tensor, size: int, bits: int) -> None:
        self.shape, self.bits = weight.shape, bits
        values = weight.detach().float().reshape(-1, weight.shape[-1] // size, size).clone()  # [rows, groups, n]
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        scale = ((high - low) / (2**bits - 1)).clamp(LEAST, MOST)
        self.zero = (-low / scale).clamp(-MOST, MOST).round_().requires_grad_()
        self.scale, self.values = scale.requires_grad_(), values.requires_grad_()

    def fake_quantized(self) -> torch.Tensor:
        """The quantized weight, differentiable."""
        scale = clamp_through(self.scale, LEAST, MOST)
        zero = clamp_through(round_through(self.zero), 0, 2**self.bits - 1)
        codes = (round_through(self.values / scale) + zero).clamp(0, 2**self.bits - 1)
        return ((codes - zero) * scale).reshape(self.shape)

    def encoded(self) -> QuantizedWeight:
        """The quantized weight as it is stored."""
        zero = self.zero.detach().round().clamp(0, 2**self.bits - 1).to(torch.uint8)
        grid = AffineGrid(stored(self.scale.detach().clamp(LEAST, MOST)).squeeze(-1), zero.squeeze(-1), self.bits)
        return QuantizedWeight.from_codes(grid.encode(self.values.detach()).reshape(self.shape), grid)
