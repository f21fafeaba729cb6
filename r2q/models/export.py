"""Packed folders in the format of GPTQ checkpoints, which vLLM and transformers read without us.

A layer of that format (AutoGPTQ's, GPTQModel's) has ``qweight`` int32 ``[in * bits / 32, out]``: the codes of an output
as one little-endian bit string along its inputs; ``qzeros`` int32 ``[groups, out * bits / 32]``: zero points as one bit
string along the outputs, each lowered by one; ``scales`` float16 ``[groups, out]``; ``g_idx`` int32 ``[in]``: the group
of an input. The weight is ``scales * (code - zero)``: what an affine grid with whole zero points is. A zero point of 0
cannot be lowered; a model that has one is written as ``gptq_v2``, which is the same without that.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from r2q.kept import apply_umask, write_json
from r2q.models.card import CARD, card, stated
from r2q.models.checks import small_files
from r2q.models.load import load_packed, quiet
from r2q.models.packed import PackedLinear, PackedWeight
from r2q.models.plugin import R2QConfig
from r2q.models.save import untied, write_state
from r2q.quantization.grid import AffineGrid
from r2q.quantization.packing import pack

FORMAT = "the GPTQ format"
WORD = 32  # bits: a row of codes and one of zero points must fill whole words
NOT_COPIED = ("config.json", "model.safetensors.index.json", "quantize_config.json")
BLOCK = re.compile(r"\.\d+\.")  # in the name of a layer inside of a block


def export(folder: str | Path, out: str | Path) -> None:
    """Write a packed folder as a GPTQ checkpoint: weights that decode to the same bits, config, tokenizer, card.

    Raises:
        FileNotFoundError: there is no packed folder.
        ValueError: it is damaged, the format cannot hold one of its layers (the message says which and why), or there
            is something in ``out`` already.
    """
    folder, out = Path(folder), Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a folder that is not there yet")
    quiet()
    model = load_packed(folder)
    quantization = getattr(model.config, "quantization_config", None)
    if not isinstance(quantization, R2QConfig):
        raise ValueError(f"{folder} has no packed layers: transformers and vLLM read it as it is")
    layers: dict[str, Any] = {name: part for name, part in model.named_modules() if isinstance(part, PackedWeight)}
    obstacles = [(name, obstacle(name, layer)) for name, layer in layers.items()]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and BLOCK.search(name):
            obstacles.append((name, "it is not quantized, and the format's readers take every layer of a block for so"))
    for name, reason in obstacles:
        if reason is not None:
            raise ValueError(f"{FORMAT} cannot hold {folder}: {name}: {reason}")
    bits, size = shared_settings(layers)
    lowest = min(int(zero_points(layer).min()) for layer in layers.values())
    state = {key: value for key, value in untied(model.state_dict()).items() if key.rpartition(".")[0] not in layers}
    state |= {f"{name}.bias": layer.bias for name, layer in layers.items() if getattr(layer, "bias", None) is not None}
    for name, layer in layers.items():
        state |= {f"{name}.{key}": tensor for key, tensor in gptq_tensors(layer, lowered=lowest > 0).items()}
    vars(model).pop("_weight_conversions", None)  # a packed folder is read without any: it has the model's own names
    named = revert_weight_conversion(model, state)  # as its checkpoints have it, such as GPT-NeoX's embed_out
    kept = {id(tensor) for tensor in named.values()}
    for name in layers:
        if id(state[f"{name}.qweight"]) not in kept:
            raise ValueError(f"{FORMAT} cannot hold {folder}: {name}: it is made of other layers of a checkpoint")
    out.mkdir(parents=True, exist_ok=True)
    digests = write_state(named, out)
    for file in small_files(folder):
        if file.name not in NOT_COPIED:
            shutil.copyfile(file, out / file.name)
    version = "gptq" if lowest > 0 else "gptq_v2"
    settings: dict[str, Any] = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": False}
    settings |= {"sym": False, "lm_head": False, "pack_dtype": "int32", "checkpoint_format": version}
    write_json(out / "quantize_config.json", settings)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    count = sum(math.prod(layer.shape) for layer in layers.values())
    stored = 8 * sum(v.nbytes for k, v in named.items() if k.endswith((".qweight", ".qzeros", ".scales", ".g_idx")))
    use = f"For readers of GPTQ checkpoints in the format `{version}`, such as vLLM, and transformers with gptqmodel."
    length = sum((out / name).stat().st_size for name in digests)
    text = card(quantization.recipe, stored / count, count, length, stated(folder), use)
    (out / CARD).write_text(text, encoding="utf-8")
    for name in digests:
        apply_umask(out / name)
    write_json(out / "config.json", config)
    print(f"export {folder}: {len(layers)} layers, {bits} bits, group size {size}, {version}")


def obstacle(name: str, layer: PackedWeight) -> str | None:
    """Why the format cannot hold a layer; None where it can."""
    spec = layer.spec
    if not isinstance(layer, PackedLinear):
        return "it is a stack of experts, and the format has one matrix a layer"
    if not BLOCK.search(name):
        return "it is the output head, which the format's readers take as it is"
    if spec["grid"] != "affine":
        return f"its levels are {spec['grid']}, and the format has evenly spaced ones with a zero among them"
    if spec["float_zero"]:
        return "its zero points are fractions, and the format has whole ones"
    if spec["in_scale"]:
        return "its inputs are scaled, and the format has no place for that"
    if spec["bits"] not in (2, 3, 4):
        return f"it has {spec['bits']} bits, and the format's readers take 2, 3 or 4"
    if any(length % WORD for length in layer.shape):
        return f"its shape is {list(layer.shape)}, and the format needs multiples of {WORD}"
    return None


def shared_settings(layers: Mapping[str, PackedWeight]) -> tuple[int, int]:
    """Bits and group size of all layers; a group size of -1 = all inputs, as the format says it.

    Raises:
        ValueError: they differ.
    """
    sizes = {-1} if all(layer.spec["groups"] == 1 for layer in layers.values()) else set()
    sizes = sizes or {int(layer.shape[-1]) // int(layer.spec["groups"]) for layer in layers.values()}
    bits = {int(layer.spec["bits"]) for layer in layers.values()}
    if len(bits) > 1 or len(sizes) > 1:
        raise ValueError(f"{FORMAT} has one group size and one number of bits, not {sorted(sizes)} and {sorted(bits)}")
    return bits.pop(), sizes.pop()


def zero_points(layer: PackedWeight) -> torch.Tensor:
    """uint8 ``[out, groups]``; those of a grid for the whole tensor are repeated."""
    grid = layer.quantized().grid
    assert isinstance(grid, AffineGrid)
    return grid.zero.expand(layer.shape[0], -1)


def gptq_tensors(layer: PackedWeight, lowered: bool) -> dict[str, torch.Tensor]:
    """The tensors of one layer, by the names of the format (see the head of this file); zero points lowered or not."""
    grid, bits = layer.quantized().grid, layer.spec["bits"]
    assert isinstance(grid, AffineGrid)
    zeros = zero_points(layer).T.contiguous() - int(lowered)  # [groups, out]
    inputs, groups = int(layer.shape[-1]), layer.spec["groups"]
    return {
        "qweight": layer.codes.view(torch.int32).T.contiguous(),  # [in * bits / 32, out]
        "qzeros": pack(zeros, bits).view(torch.int32),  # [groups, out * bits / 32]
        "scales": grid.scale.expand(layer.shape[0], -1).T.contiguous(),  # [groups, out]
        "g_idx": torch.arange(inputs, dtype=torch.int32) // (inputs // groups),
    }
