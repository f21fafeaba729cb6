"""Starting from what another recipe found: its ranges (BitDistiller's first stage), or the weights that it rounded."""

from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from r2q.intact import opened
from r2q.kept import apply_umask
from r2q.models.load import load_packed
from r2q.models.packed import PackedWeight
from r2q.quantization.grid import Grid
from r2q.training.data import digest_of
from r2q.training.fake_quant import FakeQuantizer

LATENT = "latent/weights.safetensors"  # in a packed folder, but no part of the packed model


class Start(Protocol):
    """Where the latent weights of a student come from, and its other parameters."""

    others: dict[str, torch.Tensor]  # parameters that are not quantized: a method may have trained norms

    def latent(self, quantizer: FakeQuantizer, weight: torch.Tensor) -> torch.Tensor: ...


class Ranges:
    """The levels of a packed folder, for clamping latent weights; raises FileNotFoundError where there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.others: dict[str, torch.Tensor] = {}
        self.packed = packed_layers(load_packed(folder))

    @torch.no_grad()
    def latent(self, quantizer: FakeQuantizer, weight: torch.Tensor) -> torch.Tensor:
        """A layer's weight, each group clamped to a range as wide as its levels.

        Rounding the zero point has moved those levels by up to half a step against the range that was searched. So the
        clamped range is the one next to them whose both ends the weights reach: min-max quantization of the clamped
        weights then gives the folder's own lattice, and training starts from that recipe's packed weights.

        Raises:
            ValueError: the layer is not packed there, or its groups are others.
        """
        blocks = quantizer.blocks(weight)
        levels = _checked(self.folder, self.packed, quantizer, blocks).levels().to(blocks.device)
        lowest, width = levels.amin(-1, keepdim=True), levels.amax(-1, keepdim=True) - levels.amin(-1, keepdim=True)
        half = width / (levels.shape[-1] - 1) / 2
        least = torch.maximum(blocks.amin(-1, keepdim=True).float(), lowest - half)
        most = torch.minimum(blocks.amax(-1, keepdim=True).float() - width, lowest + half)
        low = torch.minimum(torch.maximum(lowest, least), most)
        clamped = torch.minimum(torch.maximum(blocks.float(), low), low + width)
        return clamped.reshape(weight.shape).to(weight.dtype)


class Weights:
    """The weights that a recipe rounded, and its other parameters, from a packed folder that has them beside it.

    Raises:
        FileNotFoundError: there is no such folder, or the recipe left no weights there.
        ValueError: the weights are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / LATENT
        with opened(path, "quantize") as file:
            self.weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if (file.metadata() or {}).get("sha256") != digest_of(self.weights, LATENT):
                raise ValueError("content and hash differ")
        model = load_packed(folder)
        self.packed = packed_layers(model)
        self.others = {name: parameter.detach() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def latent(self, quantizer: FakeQuantizer, weight: torch.Tensor) -> torch.Tensor:
        """A layer's weights as they were just before they were rounded.

        Raises:
            ValueError: the layer is not packed there, or its groups are others.
        """
        _checked(self.folder, self.packed, quantizer, quantizer.blocks(weight))
        return self.weights[quantizer.name].to(weight.device, weight.dtype)


def write_latent(folder: Path, latent: dict[str, torch.Tensor]) -> None:
    """Write the weights that a method left beside its packed folder."""
    path = folder / LATENT
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    latent = {name: weight.contiguous() for name, weight in latent.items()}
    save_file(latent, scratch, metadata={"sha256": digest_of(latent, LATENT)})
    apply_umask(scratch)
    scratch.replace(path)


def packed_layers(model: nn.Module) -> dict[str, PackedWeight]:
    """Packed layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedWeight)}


def _checked(folder: Path, packed: dict[str, PackedWeight], quantizer: FakeQuantizer, blocks: torch.Tensor) -> Grid:
    """The levels of a layer in the folder."""
    if quantizer.name not in packed:
        raise ValueError(f"start: {folder} has no packed layer {quantizer.name}")
    there = packed[quantizer.name].quantized()
    if there.in_scale is not None:
        raise ValueError(
            f"start: {folder} scales the input channels of layer {quantizer.name}: its levels are no start"
        )
    grid = there.grid
    if tuple(blocks.shape[:2]) != tuple(grid.shape):
        raise ValueError(f"start: {folder} has other groups than this recipe in layer {quantizer.name}")
    return grid


@torch.no_grad()
def same_ranks(start: Any, quantizer: FakeQuantizer, weight: torch.Tensor) -> int:
    """How many weights a quantizer puts on the level of the same rank as the start's packed codes have."""
    there, here = start.packed[quantizer.name].quantized(), quantizer.method.quantize_weight(weight, quantizer.name)
    ranks = [one.grid.levels().argsort(stable=True, dim=-1).argsort(dim=-1) for one in (there, here)]
    found = [
        rank.to(weight.device).gather(-1, one.codes.to(weight.device).reshape(*rank.shape[:2], -1).long())
        for rank, one in zip(ranks, (there, here), strict=True)
    ]
    return int((found[0] == found[1]).sum())
