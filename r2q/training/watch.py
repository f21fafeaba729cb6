"""What is recorded of a student's quantized layers while it trains: gradient norms, codes that flip, drift."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from r2q.quantization.packing import unpack
from r2q.training.processes import whole
from r2q.training.student import Student


def gradient_norms(student: Student, step: int) -> list[dict[str, Any]]:
    """Norm of each layer's gradient, as rows of ``gradients.csv``; every process has to ask for them."""
    squares = []
    for layer in student.layers.values():
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        squares.append(sum(whole(g.float().square().sum()) for g in grads))
    norms = torch.stack([torch.as_tensor(square) for square in squares]).tolist()  # one wait for the device
    return [
        {"step": step, "layer": name, "gradient_norm": math.sqrt(norm)}
        for name, norm in zip(student.layers, norms, strict=True)
    ]


@torch.no_grad()
def flipped(student: Student, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """Share of the codes that differ between two states, packed codes ``[rows, bytes]`` of the latent weights."""
    different = []
    for old, new in zip(before, after, strict=True):
        bits = next(iter(student.layers.values())).bits
        for changed in (old ^ new).split(max(1, (1 << 24) // old.shape[-1])):
            different.append((unpack(changed, bits, changed.shape[-1] * 8 // bits) != 0).sum())
    total = sum(layer.target.weight.numel() for layer in student.layers.values())
    return float(sum(different)) / total


class Drift:
    """Mean squared distance of every layer, and of the output head, to full precision."""

    def __init__(self, model: Any, student: Student) -> None:
        self.model, self.student = model, student
        self.rows: dict[str, dict[str, Any]] = {}

    @torch.no_grad()
    def measure(self, when: str) -> None:
        """Fill the columns ``latent_<when>`` and ``quantized_<when>``; after training also ``latent_moved``."""
        full = dict(self.model.named_parameters())
        for name, layer in self.student.layers.items():
            weight = layer.target.turned(full[layer.target.weight_name])
            row, latent = self._row(name, weight), layer.latent()
            row[f"latent_{when}"] = _distance(latent, weight)
            if when == "after":
                row["latent_moved"] = _distance(latent, self.student.started(name, weight))
            row[f"quantized_{when}"] = _distance(layer.quantized().dequantize(), weight)
        head, own = self.model.get_output_embeddings(), self.student.model.get_output_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is head)
        if name not in self.student.layers:
            row = self._row(name, head.weight)
            row[f"latent_{when}"] = _distance(whole(own.weight), head.weight)
            if when == "after":
                row["latent_moved"] = _distance(whole(own.weight), head.weight.to(self.student.dtype))

    def _row(self, name: str, weight: torch.Tensor) -> dict[str, Any]:
        power = {"layer": name, "weights": weight.numel(), "power": float(weight.float().square().mean())}
        return self.rows.setdefault(name, power)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.to(a.device).float()).square().mean())
