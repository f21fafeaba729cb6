"""Which weights of a model are quantized: those of its decoder blocks that are used as linear maps, experts included.

What a weight is used for is observed (:mod:`r2q.models.rehearsal`), not read out of names: a target is the matrix of an
``nn.Linear`` that is called, or a stack of experts, either way round, that is indexed by expert or multiplied whole
by ``torch.bmm``, and is used for nothing else.
Convolutions, states, norms, embeddings and matrices of few inputs are none; nor is whatever only selects or weighs
experts, nor the output head unless asked for, and only when it is untied. Decoder blocks are the one list of
``num_hidden_layers`` modules, or, where none has as many, the one list of modules that is in no other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from r2q.models.rehearsal import Use, observe_use

LEFT_OUT = 0.25  # share of a model's blocks that may be used otherwise and stay as it is
LEAST = 8  # inputs of a matrix to quantize: one with fewer mixes as many streams (AltUp of Gemma 3n)


@dataclass(frozen=True)
class Target:
    """One weight to quantize."""

    name: str  # dotted name, unique in the model: of the Linear, or of the stacked expert parameter
    owner: nn.Module  # the Linear, or the module that holds the parameter
    parameter: str  # the parameter's name in ``owner``
    block: int  # index of the decoder block; -1 for the output head
    transposed: bool = False  # whether the model holds a stack as ``[experts, in, out]``, for ``x W``

    @property
    def held(self) -> torch.Tensor:
        """The parameter as the model holds it."""
        return getattr(self.owner, self.parameter)

    @property
    def weight(self) -> torch.Tensor:
        """``[out, in]``, or ``[experts, out, in]``; a view of what the model holds."""
        return self.turned(self.held)

    def turned(self, weight: torch.Tensor) -> torch.Tensor:
        """What the model holds as :attr:`weight` is, or what is like :attr:`weight` as the model holds it."""
        return weight.mT if self.transposed else weight

    @property
    def is_stack(self) -> bool:
        """Whether the weight stacks experts."""
        return not isinstance(self.owner, nn.Linear)

    @property
    def owner_name(self) -> str:
        """Dotted name of ``owner``."""
        return self.name.rpartition(".")[0] if self.is_stack else self.name

    @property
    def weight_name(self) -> str:
        """Dotted name of the weight among the model's parameters."""
        return f"{self.owner_name}.{self.parameter}"


class NoHead(ValueError):
    """The output head is asked for, and is not one that can be quantized."""


def decoder_blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """The dotted name and the list of decoder blocks.

    Raises:
        ValueError: there is no such list, or more than one.
    """
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    if count is None:
        raise ValueError(f"{type(model).__name__}: config.json has no num_hidden_layers to find its blocks by")
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and _holds_matrices(m)]
    lists = [(name, m) for name, m in lists if len(m) == count] or lists  # BART's count is its encoder's
    outer = [(name, m) for name, m in lists if not any(name.startswith(other + ".") for other, _ in lists)]
    if len(outer) > 1:  # what reads pictures may have as many
        inside = {*model.get_decoder().modules()}
        outer = [(name, m) for name, m in outer if m in inside]
    if len(outer) != 1:
        raise ValueError(
            f"{type(model).__name__}: expected one list of {count} decoder blocks, "
            f"found {len(outer)} ({', '.join(name for name, _ in outer) or 'none'})"
        )
    return outer[0]


def _holds_matrices(blocks: nn.ModuleList) -> bool:
    return len(blocks) > 0 and all(any(weight.dim() > 1 for weight in block.parameters()) for block in blocks)


def has_tied_head(model: Any) -> bool:
    """Whether the output head shares its weight with the input embedding."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    return getattr(model.config, "tie_word_embeddings", False) or head.weight is model.get_input_embeddings().weight


def list_targets(model: Any, lm_head: bool = False) -> list[Target]:
    """Every weight to quantize, in the order of the model.

    Raises:
        ValueError: the model is already quantized; it has no decoder blocks that are understood; too much of them is
            used otherwise than as linear maps.
        NoHead: ``lm_head`` is asked for but tied to the embedding, or used otherwise.
    """
    refuse_quantized(model.config, type(model).__name__)
    prefix, blocks = decoder_blocks(model)
    lists = [f"{prefix}.{name}" for name in _expert_lists(blocks)]
    names = [name for name, _ in model.named_parameters() if name.startswith(tuple(f"{place}." for place in lists))]
    use = observe_use(model, set(names))
    use.linear |= _reached(names, lists, use)
    experts = {place: len(model.get_submodule(place)) for place in lists}
    experts |= {stack.rpartition(".")[0]: len(model.get_parameter(stack)) for stack in use.stacks}
    targets = []
    for index, block in enumerate(blocks):
        for name, module in block.named_modules(prefix=f"{prefix}.{index}"):
            for parameter, weight in module.named_parameters(recurse=False):
                full = f"{name}.{parameter}"
                if full in use.linear and not _only_chooses(full, weight, use, experts):
                    own = name if isinstance(module, nn.Linear) else full
                    target = Target(own, module, parameter, index, full in use.transposed)
                    targets += [target] if target.weight.shape[-1] >= LEAST else []
    _refuse_left_out(model, prefix, targets, use)
    if lm_head:
        targets.append(_head(model, use))
    return targets


def named_target(model: Any, name: str) -> Target:
    """The target of this name, whatever its weights are (:func:`list_targets` chooses; this finds).

    Raises:
        ValueError: there is no linear layer and no stack of experts of this name.
    """
    parent, _, parameter = name.rpartition(".")
    modules = dict(model.named_modules())
    if isinstance(modules.get(name), nn.Linear):
        return Target(name, modules[name], "weight", -1)
    if parent in modules and getattr(getattr(modules[parent], parameter, None), "ndim", 0) == 3:
        return Target(name, modules[parent], parameter, -1)
    raise ValueError(f"config.json names a packed layer {name} that {type(model).__name__} does not have")


def _expert_lists(blocks: nn.ModuleList) -> Iterator[str]:
    """Lists (or dicts) of like modules inside a block: experts that are modules of their own."""
    for name, module in blocks.named_modules():
        listed = isinstance(module, nn.ModuleList | nn.ModuleDict) and name
        if listed and len(module) > 1 and len({type(m) for m in module.children()}) == 1:
            yield name


def _reached(names: list[str], lists: list[str], use: Use) -> set[str]:
    """Weights of experts that no token was sent to, but whose counterparts in another expert are linear maps."""

    def place(name: str) -> tuple[str, str]:
        owner = max((x for x in lists if name.startswith(f"{x}.")), key=len)
        return owner, name.removeprefix(f"{owner}.").split(".", 1)[1]

    known = {place(name) for name in names if name in use.linear}
    return {name for name in names if name not in use.other and place(name) in known}


def _only_chooses(name: str, weight: torch.Tensor, use: Use, experts: dict[str, int]) -> bool:
    """Whether a matrix stands beside experts and only selects or weighs them, or weighs one that is always used.

    What experts read may be weighed, too; a matrix that makes it is a router when it gives one number an expert.
    """
    near = {count for place, count in experts.items() if name.startswith(f"{place.rpartition('.')[0]}.")}
    chooses = name in use.idle and (name not in use.feeding or len(weight) in near)
    return bool(near) and weight.dim() == 2 and (chooses or len(weight) == 1)


def _refuse_left_out(model: Any, prefix: str, targets: list[Target], use: Use) -> None:
    """Refuse a model most of which would stay as it is, with the largest weight that would, and its use."""
    skipped = (nn.Embedding, nn.modules.conv._ConvNd)
    owners = dict(model.named_modules())
    left = {
        name: weight
        for name, weight in model.named_parameters()
        if name in use.other and name.startswith(f"{prefix}.") and weight.dim() > 1
        if not isinstance(owners[name.rpartition(".")[0]], skipped)
    }
    missed, taken = (sum(w.numel() for w in ws) for ws in (left.values(), [target.weight for target in targets]))
    if not targets or missed > LEFT_OUT * (missed + taken):
        name = max(left, key=lambda name: left[name].numel(), default=None)
        example = f"{name} {list(left[name].shape)} goes into {use.other[name]}" if name else "there are none"
        raise ValueError(
            f"{type(model).__name__}: {missed / max(1, missed + taken):.0%} of the weights of its decoder blocks "
            f"cannot be quantized ({example}); allowed are nn.Linear modules and stacks of experts, [experts, out, in] "
            "for x W^T or [experts, in, out] for x W, that are indexed by expert or multiplied as a whole by torch.bmm"
        )


def _head(model: Any, use: Use) -> Target:
    if has_tied_head(model):
        raise NoHead("lm_head: true needs an untied output head; this one is the embedding itself")
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head and name), None)
    if name is None or f"{name}.weight" not in use.linear:
        raise NoHead(f"lm_head: true needs an output head that is a linear map; {type(model).__name__} has none")
    return Target(name, head, "weight", -1)


def refuse_quantized(config: object, what: str) -> None:
    """Refuse a model that went through a quantizer: R2Q of R2Q's output is not R2Q of the weights."""
    quantization = getattr(config, "quantization_config", None)
    dequantized = getattr(config, "dequantized_from", None)
    if quantization or dequantized:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else dequantized
        raise ValueError(
            f"{what} is already quantized ({method or type(quantization).__name__}): quantizing again moves every "
            "weight, so only full-precision models are accepted"
        )
