"""Products of float32 weights on a CPU, through oneDNN, in float32 throughout; sums are in another order.

Torch takes MKL for them, which does without AVX-512 on AMD's processors: 100 GFLOP/s a core for oneDNN's 240 (Zen 5).
"""

import os
from typing import Any

import torch
from torch import nn

LESS = "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"  # oneDNN would compute in fewer bits
AVAILABLE = torch.backends.mkldnn.is_available() and not any(name in os.environ for name in LESS)
PLAIN = torch.Tensor, nn.Parameter  # no part of a distributed, compiled or imagined one


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear``: ``x [..., in]``, ``weight [out, in]``, ``bias [out]`` -> ``[..., out]``."""
    fits = AVAILABLE and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    fits = fits and type(x) in PLAIN and type(weight) in PLAIN and x.dim() > 1 and x.numel() > 0
    if not fits or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return nn.functional.linear(x, weight, bias)
    if torch._C._are_functorch_transforms_active():  # vmap and jvp, which a method may use on a block
        return nn.functional.linear(x, weight, bias)
    return _Product.apply(x, weight, bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, Any], output: torch.Tensor) -> None:
        x, weight, _ = inputs
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = slope.flatten(0, -2)
        return (
            None if weight is None else linear(slope, weight.t()),
            None if x is None else linear(rows.t(), x.flatten(0, -2).t()),
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


def speed_up(model: Any) -> Any:
    """Let the linear layers of a model on a CPU compute by :func:`linear`; returns the model."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            module.__class__ = Linear
    return model
