"""Checkpoints quantized elsewhere: linked into a unit's folder, loaded once, sized and compared with the original."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from r2q.config import Model
from r2q.failures import one_line
from r2q.intact import tensor_places
from r2q.models.apply import compare
from r2q.models.checks import read_files, weight_files
from r2q.models.load import load_packed
from r2q.models.packed import PackedWeight
from r2q.models.save import clear, folder_digest
from r2q.models.source import VOCABULARY, fetch
from r2q.models.targets import Target
from r2q.quantization.method import CheckpointMethod

ROWS = 1024  # unit vectors that a layer is run on at once


def adopt(
    method: CheckpointMethod, model: Any, targets: Sequence[Target], tokenizer: Any, folder: Path, device: torch.device
) -> dict[str, Any]:
    """Make ``folder`` the unit of a checkpoint, made of ``model``; the tokenizer is written where it has none.

    Returns:
        What the report says of sizes, layers, notes and hashes.

    Raises:
        ValueError: there is no checkpoint, it cannot be loaded here, or it is not one of this model.
    """
    source = locate(*method.checkpoint())
    link(source, folder, tokenizer)
    loaded = load_packed(folder, device=device)
    try_out(loaded, source)
    weights = sum(target.weight.numel() for target in targets)
    layer_bytes, all_bytes = stored_bytes(folder, model, targets)
    bits = 8 * layer_bytes / weights
    config = json.loads((folder / "config.json").read_text())
    notes: dict[str, Any] = {"quantization_config": config.get("quantization_config"), "source": str(source)}
    layers: list[dict[str, Any]] = []
    for target in targets:
        try:
            weight = computed_weight(loaded, target)
        except (RuntimeError, TypeError, AttributeError) as error:  # a layer that cannot be run by itself
            notes["weight_error"] = f"not measured, {target.name}: {one_line(error)}"
            layers = []
            break
        layers.append(compare(target.name, target.weight.detach(), weight, bits))
    return {
        "bits": None,
        "bits_per_weight": bits,
        "quantized_weights": weights,
        "file_bytes": sum(file.stat().st_size for file in weight_files(folder)),
        "formula_bytes": all_bytes,
        "layers": layers,
        "notes": notes,
        "hashes": {"weights": folder_digest(folder)},
    }


@torch.no_grad()
def try_out(model: Any, source: Path) -> None:
    """Run a model once: some formats unpack themselves only then, and some fail only then, with a ValueError."""
    try:
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device))
    except (RuntimeError, ImportError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} loads, but cannot run on {model.device}: {one_line(error)}") from None


def locate(path: str, revision: str | None) -> Path:
    """The folder of a checkpoint; a hub id is fetched into the local cache.

    Raises:
        ValueError: there is no such folder or hub id, or it has no config.json or no safetensors.
    """
    if Model(path=path).is_folder:
        source = Path(path).resolve()
        if not source.is_dir():
            raise ValueError(f"options.path: there is no folder {path}")
    else:
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            source = fetch(path, revision)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(f"options.path: {path} cannot be fetched ({one_line(error)})") from None
    if not (source / "config.json").is_file():
        raise ValueError(f"options.path: {path} has no config.json")
    try:
        weight_files(source)
    except ValueError as error:
        raise ValueError(f"options.path: {path} {error}") from None
    return source


def link(source: Path, folder: Path, tokenizer: Any) -> None:
    """Put links to the checkpoint's files into ``folder``, in place of an earlier unit; ``source`` stays as it is."""
    clear(folder)
    for file in read_files(source):
        (folder / file.name).symlink_to(file.resolve())
    if tokenizer is not None and not any(file for pattern in VOCABULARY for file in folder.glob(pattern)):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            tokenizer.save_pretrained(scratch)
            for file in Path(scratch).iterdir():
                if not (folder / file.name).exists():
                    file.rename(folder / file.name)


def stored_bytes(folder: Path, model: Any, targets: Sequence[Target]) -> tuple[int, int]:
    """Bytes of the tensors that the target layers are made of, and of all tensors, from the headers of the files."""
    weights = {target.weight_name for target in targets}
    kept = {name: tensor.to("meta") for name, tensor in model.state_dict().items() if name not in weights}
    others = kept.keys() | revert_weight_conversion(model, kept).keys()  # as the model has them, and its checkpoints
    layers = everything = 0
    for file in weight_files(folder):
        for name, (first, end) in tensor_places(file)[1].items():
            everything += end - first
            layers += 0 if name in others or name.endswith(".bias") else end - first
    return layers, everything


@torch.no_grad()
def computed_weight(model: Any, target: Target) -> torch.Tensor:
    """The weight that a loaded checkpoint computes with in place of a target, in the target's shape.

    Raises:
        ValueError: the checkpoint has no such layer, or one of another shape.
        RuntimeError: the layer cannot be run by itself.
    """
    try:
        part = model.get_submodule(target.owner_name)
        part = getattr(part, target.parameter) if target.is_stack else part  # a parameter, or a packed weight
    except AttributeError:
        raise ValueError(f"the checkpoint has no layer {target.name}: it is not one of this model") from None
    if isinstance(part, PackedWeight):
        weight = part.quantized().dequantize()
    elif torch.is_tensor(part):
        weight = target.turned(part)
    elif is_plain(part):
        weight = part.weight
    elif target.is_stack:
        raise NotImplementedError("a stack of experts in another format")
    else:
        weight = probe(part, target.weight.shape[-1], model)
    if weight.shape != target.weight.shape:
        shape = "x".join(map(str, target.weight.shape))
        raise ValueError(f"layer {target.name} of the checkpoint has the shape {list(weight.shape)}, not {shape}")
    return weight.to(target.weight.device).float()


def is_plain(part: nn.Module) -> bool:
    """Whether a layer is an ordinary Linear; some formats leave the class and change what it holds and does."""
    return type(part) is nn.Linear and "weight" in part._parameters and "forward" not in vars(part)


def probe(layer: nn.Module, width: int, model: Any) -> torch.Tensor:
    """``[out, in]``: what a linear layer answers to the unit vectors, less what it answers to zero."""
    options = {"dtype": model.dtype, "device": model.device}
    bias = layer(torch.zeros(1, width, **options)).float()
    parts = [layer(rows).float() - bias for rows in torch.eye(width, **options).split(ROWS)]
    return torch.cat(parts).T
