"""Starting from the ranges of another recipe: BitDistiller's first stage, whatever method found them."""

from __future__ import annotations

from pathlib import Path

import torch

from r2q.models.load import load_packed
from r2q.models.packed import PackedWeight
from r2q.training.fake_quant import FakeQuantizer


class Ranges:
    """The levels of a packed folder, for clamping latent weights.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        modules = load_packed(folder).named_modules()
        self.packed = {name: module for name, module in modules if isinstance(module, PackedWeight)}

    @torch.no_grad()
    def clamped(self, quantizer: FakeQuantizer, weight: torch.Tensor) -> torch.Tensor:
        """A layer's weight, each group clamped to a range as wide as its levels.

        Rounding the zero point has moved those levels by up to half a step against the range that was searched. So the
        clamped range is the one next to them whose both ends the weights reach: min-max quantization of the clamped
        weights then gives the folder's own lattice, and training starts from that recipe's packed weights.

        Raises:
            ValueError: the layer is not packed there, or its groups are others.
        """
        name, blocks = quantizer.name, quantizer.blocks(weight)
        if name not in self.packed:
            raise ValueError(f"start: {self.folder} has no packed layer {name}")
        levels = self.packed[name].quantized().grid.levels()
        if tuple(blocks.shape[:2]) != tuple(levels.shape[:2]):
            raise ValueError(f"start: {self.folder} has other groups than this recipe in layer {name}")
        levels = levels.to(blocks.device)
        lowest, width = levels.amin(-1, keepdim=True), levels.amax(-1, keepdim=True) - levels.amin(-1, keepdim=True)
        half = width / (levels.shape[-1] - 1) / 2
        least = torch.maximum(blocks.amin(-1, keepdim=True).float(), lowest - half)
        most = torch.minimum(blocks.amax(-1, keepdim=True).float() - width, lowest + half)
        low = torch.minimum(torch.maximum(lowest, least), most)
        clamped = torch.minimum(torch.maximum(blocks.float(), low), low + width)
        return clamped.reshape(weight.shape).to(weight.dtype)
