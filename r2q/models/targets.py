"""Which weights of a model are quantized: every Linear of its decoder blocks, expert stacks included.

Embeddings, norms, the output head (unless asked for, and only when it is untied) and the routers of a mixture of
experts stay as they are. Nothing here knows a model by its name: decoder blocks are the one list of
``num_hidden_layers`` modules, so Llama, OPT, Qwen2, Qwen3, Mixtral and Qwen-MoE need no code of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

ROUTERS = ("gate", "router", "shared_expert_gate")  # names of the linears that choose experts, as in common recipes


@dataclass(frozen=True)
class Target:
    """One weight to quantize.

    Attributes:
        name: dotted name, unique in the model: of the Linear, or of the stacked expert parameter.
        owner: the Linear, or the module that holds the parameter.
        parameter: the parameter's name in ``owner``.
        block: index of the decoder block; -1 for the output head.
    """

    name: str
    owner: nn.Module
    parameter: str
    block: int

    @property
    def weight(self) -> torch.Tensor:
        """``[out, in]``, or ``[experts, out, in]``."""
        return getattr(self.owner, self.parameter)

    @property
    def is_stack(self) -> bool:
        """Whether the weight stacks experts."""
        return not isinstance(self.owner, nn.Linear)


def decoder_blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """The dotted name and the list of decoder blocks.

    Raises:
        ValueError: there is no such list, or more than one.
    """
    config = model.config.get_text_config(decoder=True)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers and _holds_linears(module)
    ]
    outer = [(name, m) for name, m in found if not any(name.startswith(other + ".") for other, _ in found)]
    if len(outer) != 1:
        raise ValueError(
            f"{type(model).__name__}: expected one list of {config.num_hidden_layers} decoder blocks, "
            f"found {len(outer)} ({', '.join(name for name, _ in outer) or 'none'})"
        )
    return outer[0]


def _holds_linears(blocks: nn.ModuleList) -> bool:
    return all(any(isinstance(m, nn.Linear) for m in block.modules()) for block in blocks)


def has_tied_head(model: Any) -> bool:
    """Whether the output head shares its weight with the input embedding."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    return bool(model.config.tie_word_embeddings) or head.weight is model.get_input_embeddings().weight


def list_targets(model: Any, lm_head: bool = False) -> list[Target]:
    """Every weight to quantize, in the order of the model.

    Raises:
        ValueError: the model is already quantized; it has no decoder blocks that are understood; experts are stored
            transposed; ``lm_head`` is asked for but tied to the embedding.
    """
    refuse_quantized(model.config, type(model).__name__)
    return find_targets(model, lm_head)


def find_targets(model: Any, lm_head: bool = False) -> list[Target]:
    """:func:`list_targets` for a model that may already be quantized: what its packed layers stand for."""
    prefix, blocks = decoder_blocks(model)
    targets = []
    for index, block in enumerate(blocks):
        for local, module in block.named_modules():
            name = f"{prefix}.{index}.{local}" if local else f"{prefix}.{index}"
            if isinstance(module, nn.Linear):
                if local.rsplit(".", 1)[-1] not in ROUTERS:
                    targets.append(Target(name, module, "weight", index))
                continue
            for parameter, weight in module.named_parameters(recurse=False):
                if weight.dim() != 3:
                    continue
                if getattr(module, "is_transposed", False):
                    raise ValueError(f"{name}.{parameter}: experts stored as [experts, in, out] are not supported")
                targets.append(Target(f"{name}.{parameter}", module, parameter, index))
    if lm_head:
        if has_tied_head(model):
            raise ValueError("lm_head: true needs an untied output head; this one is the embedding itself")
        head = model.get_output_embeddings()
        name = next(name for name, module in model.named_modules() if module is head)
        targets.append(Target(name, head, "weight", -1))
    return targets


def refuse_quantized(config: object, what: str) -> None:
    """Refuse a model that went through a quantizer: R2Q of R2Q's output is not R2Q of the weights.

    Raises:
        ValueError: the configuration says that the model is, or was, quantized.
    """
    quantization = getattr(config, "quantization_config", None)
    dequantized = getattr(config, "dequantized_from", None)
    if quantization or dequantized:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else dequantized
        raise ValueError(
            f"{what} is already quantized ({method or type(quantization).__name__}): quantizing again moves every "
            "weight, so only full-precision models are accepted"
        )
