"""The student of a training run: a copy of the model whose target layers compute with quantized weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from r2q.models.targets import Target
from r2q.quantization.method import QuantizedWeight, WeightMethod
from r2q.training.fake_quant import FrozenCodes, Latent, Layer, install
from r2q.training.losses import SplitModel


class Student:
    """A model under training.

    Args:
        model: the full-precision model; not changed.
        targets: its layers to quantize.
        method: the quantizer.
        what: ``all`` parameters learn, only the ``layers``' latent weights, or only their ``scales``.
        gradient: the backward rule, see :mod:`r2q.training.fake_quant`.
        dtype: number type of the parameters.
        device: where it trains.

    Attributes:
        layers: what is quantized, by target name.
        split: the model as decoder and head.
    """

    def __init__(
        self,
        model: Any,
        targets: Sequence[Target],
        method: WeightMethod,
        what: str,
        gradient: Any,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.model = copy.deepcopy(model).to(device=device, dtype=dtype).eval()
        self.model.requires_grad_(what == "all")
        self.layers: dict[str, Layer] = {}
        for target in targets:
            own = replace(target, owner=self.model.get_submodule(owner_name(target)))
            if what == "scales":
                self.layers[target.name] = FrozenCodes(own, method.quantize_weight(own.weight.detach(), own.name))
            else:
                own.weight.requires_grad_(True)
                self.layers[target.name] = Latent(own, method, gradient)
        install(list(self.layers.values()))
        self.split = SplitModel(self.model)

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of decoder blocks for the backward pass. Needs training mode, without its dropout."""
        for module in self.model.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, float) and (name == "p" or "drop" in name):
                    setattr(module, name, 0.0)
        self.model.train()
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that learn, by name; tied ones once."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def codes(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Packed codes of every layer, layer by layer."""
        for name, layer in self.layers.items():
            yield name, layer.quantized().packed

    def quantized(self) -> dict[str, QuantizedWeight]:
        """What is stored of the layers."""
        return {name: layer.quantized() for name, layer in self.layers.items()}

    def others(self) -> dict[str, torch.Tensor]:
        """The other parameters that learned: embeddings, norms, biases, the head."""
        inside = {id(p) for layer in self.layers.values() for p in layer.parameters()}
        return {name: p.detach() for name, p in self.trained().items() if id(p) not in inside}


def owner_name(target: Target) -> str:
    """Dotted name of the module that holds a target's weight."""
    return target.name.rpartition(".")[0] if target.is_stack else target.name


def teacher_of(model: Any, dtype: torch.dtype, device: torch.device) -> SplitModel:
    """The full-precision model as teacher; the model itself where it is already in place."""
    if model.dtype != dtype or model.device.type != device.type:
        model = copy.deepcopy(model).to(device=device, dtype=dtype)
    return SplitModel(model.eval())
