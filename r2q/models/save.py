"""Writing a packed model: a Hugging Face folder of safetensors, config.json and tokenizer. No pickle."""

import json
import math
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from r2q.intact import digest_files
from r2q.kept import apply_umask, file_sha256
from r2q.models.card import CARD, card
from r2q.models.checks import read_files
from r2q.models.packed import PackedWeight
from r2q.models.plugin import R2QConfig, R2QQuantizer, seal
from r2q.models.source import SMALL

MAX_SHARD = "5GB"


def save(
    model: Any, tokenizer: Any, folder: Path, recipe: dict[str, Any], about: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Write ``model`` with its packed layers into ``folder``, file by file, config.json last.

    Tied weights are written once. A model without packed layers becomes a plain folder; others get a model card, for
    which ``about`` has what cannot be seen in the model (see :func:`r2q.models.card.card`).

    Returns:
        SHA-256 of each weight file; :func:`folder_digest` has the other files too.
    """
    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    layers = {name: module.spec for name, module in model.named_modules() if isinstance(module, PackedWeight)}
    if layers:
        digests = write_state(untied(model.state_dict()), scratch)
        model.config.quantization_config = R2QConfig(recipe=recipe, layers=layers)
        model.hf_quantizer = R2QQuantizer(model.config.quantization_config)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(scratch)
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(scratch)
    else:
        model.save_pretrained(scratch, max_shard_size=MAX_SHARD)
        digests = {file.name: file_sha256(file) for file in sorted(scratch.glob("*.safetensors"))}
    if tokenizer is not None:
        tokenizer.save_pretrained(scratch)
    for file in scratch.glob("*.safetensors"):
        apply_umask(file)
    if layers:
        seal(scratch, [file.name for file in scratch.iterdir()])
        packed = [module.quantized() for module in model.modules() if isinstance(module, PackedWeight)]
        weights = sum(math.prod(weight.shape) for weight in packed)
        bits = sum(weight.formula_bits() for weight in packed) / weights
        size = sum((scratch / name).stat().st_size for name in digests)
        (scratch / CARD).write_text(card(recipe, bits, weights, size, about or {}), encoding="utf-8")
    clear(folder)
    for file in sorted(scratch.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(folder / file.name)
    scratch.rmdir()
    return digests


def clear(folder: Path) -> None:
    """Make ``folder``, without anything that a model is read from, or a card, of an earlier attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in cleared(folder):
        stale.unlink()


def cleared(folder: Path) -> list[Path]:
    """What `clear` deletes."""
    patterns = (*SMALL, "*.safetensors", CARD)  # of all that is listed: links that lead nowhere do not exist by name
    return sorted(file for file in folder.glob("*") if any(fnmatch(file.name, pattern) for pattern in patterns))


def untied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with each storage once, under the first name that has it (the embedding comes before the head)."""
    seen: dict[tuple[int, torch.Size], str] = {}
    kept = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() == 0 or seen.setdefault(key, name) == name:
            kept[name] = tensor.detach().contiguous()
    return kept


def write_state(state: dict[str, torch.Tensor], folder: Path) -> dict[str, str]:
    """Write tensors as ``model.safetensors``, or as several files with an index; SHA-256 of each file."""
    plan = split_torch_state_dict_into_shards(state, max_shard_size=MAX_SHARD)
    for file, names in plan.filename_to_tensors.items():
        save_file({name: state[name].cpu() for name in names}, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))
    return {file: file_sha256(folder / file) for file in sorted(plan.filename_to_tensors)}


def folder_digest(folder: Path) -> str | None:
    """One SHA-256 over all files that a model is read from; None when ``folder`` lacks weights."""
    try:
        return digest_files(folder, [file.name for file in read_files(folder)])
    except ValueError:
        return None
