"""Packed layers that get the same input, in one product: on a GPU, a small one costs little more than its launch."""

from typing import Any

import torch

from r2q.models.packed import PackedLinear

SIBLINGS = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")  # what transformers calls in turn with one tensor


class Joined:
    """Layers as consecutive rows of one: their stored tensors are views of its.

    The first layer that is called with an input computes all of them; the others take their parts, each once. So an
    input must not be changed in place before all of them were called with it.
    """

    def __init__(self, layers: list[PackedLinear]) -> None:
        first, self.sizes = layers[0], [layer.out_features for layer in layers]
        spec = first.spec | {"shape": [sum(self.sizes), first.in_features], "rows": sum(self.sizes)}
        with torch.device("meta"):
            self.whole = PackedLinear(spec, first.dtype)
        for name, _ in first.named_buffers():
            if name == "in_scale":
                self.whole.in_scale = first.in_scale
                continue
            parts = [layer.get_buffer(name) for layer in layers]
            setattr(self.whole, name, torch.cat(parts))
            views = self.whole.get_buffer(name).split([len(part) for part in parts])
            for layer, view in zip(layers, views, strict=True):
                setattr(layer, name, view)
        for place, layer in enumerate(layers):
            layer.joined = self, place
        self.kept: tuple[torch.Tensor, dict[int, torch.Tensor]] | None = None  # an input, and what of it is not taken

    def product(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """The part ``[..., out]`` of layer ``place``, without bias."""
        kept = self.kept
        if kept is None or kept[0] is not x or place not in kept[1]:
            kept = x, dict(enumerate(self.whole.product(x).split(self.sizes, -1)))
        part = kept[1].pop(place)
        self.kept = kept if kept[1] else None
        return part


def join(model: Any, device: str = "cuda") -> Any:
    """Join the packed layers on devices of this type that can be; ``.to()`` takes them apart again, in place."""
    for module in list(model.modules()):
        for names in SIBLINGS:
            found = (getattr(module, name, None) for name in names)
            layers = [x for x in found if isinstance(x, PackedLinear) and x.codes.device.type == device]
            if len(layers) == len(names) and alike(layers):
                Joined(layers)
    return model


def alike(layers: list[PackedLinear]) -> bool:
    """Whether layers can be rows of one: device, form, groups and factor per input the same, and no byte of two."""
    first, spec = layers[0], layers[0].spec
    return first.kernels and all(
        layer.spec == spec | {"shape": list(layer.shape), "rows": layer.out_features}
        and layer.in_features == first.in_features
        and layer.codes.device == first.codes.device
        and layer.out_features * spec["groups"] % 4 == 0  # four zero points a byte
        and (not spec["in_scale"] or torch.equal(layer.in_scale, first.in_scale))
        for layer in layers
    )
