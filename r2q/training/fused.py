"""Quantizing once a step: the weights of many layers in one pass, which a GPU runs compiled.

The pass is the method's own code (``fit_groups``, ``encode_groups``, its grid's ``decode``), traced by the compiler:
there is no second version of any method. What a compiled pass gives differs from what is stored by float32 rounding
(scales in their last bit, codes at exact ties), and it checks nothing: what leaves the range of float16 becomes
infinite and is caught as a loss that is not finite. On a CPU the pass runs as it is, over as many weights as half a
core's cache holds: the bits of layer by layer, in half the time. A method with a ``begin`` of its own (random codes)
goes layer by layer.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from r2q.quantization.method import WeightMethod, chunk_of
from r2q.quantization.packing import pack

if TYPE_CHECKING:
    from r2q.training.fake_quant import Latent

Map = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def one_pass(method: WeightMethod, dtype: torch.dtype) -> Map:
    """Groups ``[count, n]`` -> quantized values in ``dtype`` and codes (uint8), both ``[count, n]``; to be compiled."""

    def run(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = groups.unsqueeze(1).float()
        grid = method.fit_groups(values)
        codes = method.encode_groups(values, grid)
        return grid.decode(codes).to(dtype).squeeze(1), codes.squeeze(1)

    return run


def compiles(method: WeightMethod) -> bool:
    """Whether a method is a pure function of the groups."""
    return type(method).begin is WeightMethod.begin


class FusedLayers:
    """Layers with groups of one size, quantized together; each layer's ``values`` are a part of one tensor.

    Args:
        layers: of one method.
        dtype: number type of the quantized values.
        keep_codes: whether ``packed`` is kept.
    """

    def __init__(self, layers: "Sequence[Latent]", dtype: torch.dtype, keep_codes: bool) -> None:
        self.layers, self.keep_codes = layers, keep_codes
        self.method = layers[0].quantizer.method
        groups = self._groups()
        run = one_pass(self.method, dtype)
        self._run = torch.compile(run) if groups[0].is_cuda and compiles(self.method) else run
        self._values = torch.empty(sum(map(len, groups)), groups[0].shape[1], dtype=dtype, device=groups[0].device)
        for layer, part in zip(layers, self._values.split([len(group) for group in groups]), strict=True):
            layer.values = part.view(layer.target.weight.shape)
        self.packed = torch.empty(0)  # packed codes ``[groups, bytes]`` of the last pass

    def _groups(self) -> list[torch.Tensor]:
        """Every layer's weight as ``[groups, n]``."""
        return [layer.quantizer.blocks(layer.target.weight.detach()).flatten(0, 1) for layer in self.layers]

    @torch.no_grad()
    def run(self) -> None:
        """Quantize the weights as they are now.

        Raises:
            ValueError: a weight is not finite or out of range, where the pass is not compiled; names the layer.
        """
        groups = torch.cat(self._groups())
        size = len(groups)
        if groups.is_cuda:
            torch._dynamo.maybe_mark_dynamic(groups, 0)
        else:
            size = max(1, chunk_of(groups.device) // groups.shape[1])
        self.method.begin(self.layers[0].target.name)
        packed = []
        try:
            for part, place in zip(groups.split(size), self._values.split(size), strict=True):
                values, codes = self._run(part)
                place.copy_(values)
                packed += [pack(codes, self.method.recipe.bits)] if self.keep_codes else []
        except Exception:
            for layer in self.layers:  # which one is it?
                layer.quantizer.run(layer.target.weight)
            raise
        if packed:
            self.packed = torch.cat(packed)


def batches(layers: "Sequence[Latent]", dtype: torch.dtype, keep_codes: bool) -> list[FusedLayers]:
    """All layers, as few at a time as groups of several sizes and memory ask for."""
    found: dict[tuple[int, torch.dtype], list[list[Latent]]] = {}
    for layer in layers:
        weight = layer.target.weight
        kind = dtype if not layer.target.is_stack else weight.dtype  # experts may be multiplied without autocast
        lists = found.setdefault((layer.quantizer.blocks(weight).shape[-1], kind), [])
        if lists and compiles(layer.quantizer.method):
            filled = sum(other.target.weight.numel() for other in lists[-1])
            if filled + weight.numel() <= chunk_of(weight.device):
                lists[-1].append(layer)
                continue
        lists.append([layer])
    return [FusedLayers(some, kind, keep_codes) for (_, kind), lists in found.items() for some in lists]
