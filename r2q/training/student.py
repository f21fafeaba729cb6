"""The student of a training run, a copy of the model that computes with quantized weights, and its teacher."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from r2q.models.products import speed_up
from r2q.models.targets import Target, decoder_blocks
from r2q.quantization.method import QuantizedWeight, WeightMethod
from r2q.training.fake_quant import FrozenCodes, Latent, Layer, install
from r2q.training.fused import FusedLayers, batches
from r2q.training.losses import SplitModel
from r2q.training.options import TrainingOptions
from r2q.training.processes import Group, runner, whole
from r2q.training.schedule import autocast, compute_dtype
from r2q.training.start import Start, same_ranks


class Student:
    """A model under training."""

    def __init__(
        self,
        model: Any,  # the full-precision model; not changed
        targets: Sequence[Target],  # its layers to quantize
        method: WeightMethod,  # the quantizer
        options: TrainingOptions,  # of the recipe
        group: Group,  # the processes that it is split over, and where it trains
        start: Start | None = None,  # where latent weights come from; None: they are the model's
        scales_only: bool = False,  # only scales learn, whatever the options say
    ) -> None:
        what = "scales" if scales_only else options.train
        dtype = getattr(torch, options.latent)
        self.model = twin(model).requires_grad_(what == "all")
        self.layers: dict[str, Layer] = {}  # what is quantized, by target name
        self.start, self.device, self.dtype, self._same = start, group.device, dtype, 0
        if start is not None and what == "scales":
            raise ValueError("start: only latent weights have a start, and here only scales are trained")
        if options.compiled:
            torch.compiler.reset()  # what was compiled for another student counts towards the limit of recompilations
        others = {} if start is None else start.others
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for number, part, modules in parts(self.model):  # in turn: only one block is whole on the device at a time
            place(modules, group.device, dtype)
            for parameter in (p for module in modules for p in module.parameters(recurse=False)):
                if names[id(parameter)] in others:
                    parameter.data.copy_(others[names[id(parameter)]])
            inside: dict[str, Layer] = {}
            for target in (target for target in targets if target.block == number):
                own = replace(target, owner=self.model.get_submodule(target.owner_name))
                if what == "scales":
                    inside[own.name] = FrozenCodes(own, method.quantize_weight(own.weight.detach(), own.name))
                    continue
                own.held.requires_grad_(True)
                latent = inside[own.name] = Latent(own, method, options.gradient)
                if start is not None:
                    own.weight.data.copy_(start.latent(latent.quantizer, own.weight.data))
                    self._same += same_ranks(start, latent.quantizer, own.weight.data)
            if options.compiled and number >= 0:
                part.forward = torch.compile(part.forward)
            install(list(inside.values()))
            self.layers |= inside
            group.shard(part, keep_whole=number < 0)
        self.fused: list[FusedLayers] = []
        # Several processes hold whole weights only while a block runs; where memory is short, so are quantized ones.
        if group.count == 1 and not options.activation_checkpointing:
            learning = [layer for layer in self.layers.values() if isinstance(layer, Latent)]
            arithmetic = compute_dtype(options, group.device.type) if options.latent == "float32" else dtype
            self.fused = batches(learning, arithmetic, keep_codes=options.flips_every > 0)
        self.requantize()
        with autocast(options, group.device.type):
            self.split = SplitModel(self.model, runner(self.model, trains=True))

    def requantize(self) -> None:
        """Quantize the latent weights as they are now, for all passes until they change.

        Raises:
            ValueError: a weight is not finite or out of range; names the layer.
        """
        for layers in self.fused:
            layers.run()

    def started(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """What a layer trained from, given the full-precision weight."""
        layer = self.layers[name]
        if isinstance(layer, FrozenCodes):
            return layer.start.dequantize()
        latent = weight.detach().to(self.device, self.dtype)
        return latent if self.start is None else self.start.latent(layer.quantizer, latent)

    @property
    def start_agreement(self) -> float | None:
        """Share of the layers' weights that were on the level of the start's packed codes at first."""
        total = sum(layer.target.weight.numel() for layer in self.layers.values())
        return None if self.start is None else self._same / total

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of decoder blocks for the backward pass.

        Only what does that is put into training mode, without its dropout: modules inside may add noise there, or take
        another path (routers of Mixtral, Mamba).
        """
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
        keeping = [module for module in self.model.modules() if getattr(module, "gradient_checkpointing", False)]
        for module in keeping:
            module.training = True
        for owner in (*keeping, self.model.config):  # Falcon reads its dropout there
            for name, value in list(vars(owner).items()):
                if isinstance(value, float) and "drop" in name:
                    setattr(owner, name, 0.0)

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that learn, by name; tied ones once."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def codes(self) -> list[torch.Tensor]:
        """Packed codes of all latent weights as they were last quantized; those of trained scales never change."""
        if self.fused:
            return [layers.packed for layers in self.fused]
        return [layer.quantized().packed for layer in self.layers.values() if isinstance(layer, Latent)]

    def quantized(self) -> dict[str, QuantizedWeight]:
        """What is stored of the layers."""
        return {name: layer.quantized() for name, layer in self.layers.items()}

    def others(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The other parameters that learned, or that the start has, one by one: embeddings, norms, biases, the head."""
        inside = {id(p) for layer in self.layers.values() for p in layer.parameters()}
        started = {} if self.start is None else self.start.others
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in inside and (parameter.requires_grad or name in started):
                yield name, whole(parameter.detach())


def twin(model: Any) -> Any:
    """A copy of a model, in evaluation mode, whose parameters share the memory of the model's until they are placed."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared).eval()


def parts(model: Any) -> Iterator[tuple[int, nn.Module, list[nn.Module]]]:
    """Number of every decoder block, itself and the modules inside; then -1, the model and its modules in no block."""
    rest = dict.fromkeys(model.modules())
    for number, block in enumerate(decoder_blocks(model)[1]):
        inside = list(block.modules())
        for module in inside:
            del rest[module]
        yield number, block, inside
    yield -1, model, list(rest)


def place(modules: Sequence[nn.Module], device: torch.device, dtype: torch.dtype) -> None:
    """Give modules parameters of their own on a device; buffers move and keep their type.

    (Frequencies of RoPE that are rounded to bfloat16 turn the positions.)
    """
    for parameter in dict.fromkeys(p for module in modules for p in module.parameters(recurse=False)):
        parameter.data = parameter.data.to(device, dtype, copy=True)
    for module in modules:
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def teacher_of(model: Any, options: TrainingOptions, group: Group) -> SplitModel:
    """The full-precision model as teacher, split and compiled like the student; the model itself where it can be."""
    dtype = compute_dtype(options, group.device.type)
    in_place = group.count == 1 and model.dtype == dtype and model.device.type == group.device.type
    if not in_place or options.compiled:
        model = twin(model)
        for number, part, modules in parts(model):
            if not in_place:
                place(modules, group.device, dtype)
            if options.compiled and number >= 0:
                part.forward = torch.compile(part.forward)
            group.shard(part, keep_whole=number < 0)
    return SplitModel(speed_up(model.eval()), runner(model, trains=False))
