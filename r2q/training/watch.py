"""What is recorded of a student's quantized layers while it trains: gradient norms, codes that flip, drift."""

from __future__ import annotations

import math
from typing import Any

import torch

from r2q.quantization.packing import unpack
from r2q.training.processes import whole
from r2q.training.student import Student


def gradient_norms(student: Student, step: int) -> list[dict[str, Any]]:
    """Norm of each layer's gradient, as rows of ``gradients.csv``; every process has to ask for them."""
    found = []
    for name, layer in student.layers.items():
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(whole(g.float().square().sum())) for g in grads))
        found.append({"step": step, "layer": name, "gradient_norm": norm})
    return found


@torch.no_grad()
def flipped(student: Student, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Share of the codes that differ between two states, packed codes by layer."""
    different = total = 0
    for name, layer in student.layers.items():
        width, bits = layer.target.weight.shape[-1], layer.bits
        for old, new in zip(before[name].split(1 << 14), after[name].split(1 << 14), strict=True):
            different += int((unpack(old, bits, width) != unpack(new, bits, width)).sum())
            total += old.shape[0] * width
    return different / total


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
            weight = full[name if name in full else f"{name}.{layer.target.parameter}"]
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
