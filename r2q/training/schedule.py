"""Optimizer, learning rate of a step, number type of the arithmetic."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from r2q.training.options import TrainingOptions


def learning_rate(options: TrainingOptions, step: int) -> float:
    """Learning rate of a step, counted from 1; the last step still has one above zero."""
    if step <= options.warmup_steps:
        return options.learning_rate * step / options.warmup_steps
    steps = max(1, options.steps - options.warmup_steps)
    done = (step - options.warmup_steps) / steps  # 0 < done <= 1
    if options.schedule == "linear":
        return options.learning_rate * (1 - done + 1 / steps)
    if options.schedule == "cosine":
        return options.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
    return options.learning_rate


def compute_dtype(options: TrainingOptions, device: str) -> torch.dtype:
    """Number type of the layers' arithmetic."""
    name = options.compute if options.compute != "auto" else "bfloat16" if device == "cuda" else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def autocast(options: TrainingOptions, device: str) -> contextlib.AbstractContextManager[Any]:
    """Arithmetic in bfloat16 with latent weights in float32, where that is asked for."""
    if compute_dtype(options, device) == torch.bfloat16 and options.latent == "float32":
        return torch.autocast(device, torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def repeatable(options: TrainingOptions) -> Iterator[None]:
    """Have torch refuse kernels that do not repeat themselves, where that is asked for.

    cuBLAS reads its setting once, when a process makes its first product on a GPU: where another recipe did that before
    in the same process, set ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` outside.

    Raises:
        ValueError: an operation has no kernel that does; names it.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if options.deterministic and "eterministic" in str(error):
            raise ValueError(f"deterministic: {str(error).split('. ')[0]}") from error
        raise
    finally:
        torch.use_deterministic_algorithms(before)


def make_optimizer(
    options: TrainingOptions, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """AdamW, in one pass over the parameters on a GPU.

    Raises:
        ImportError: `optimizer: adamw_8bit` without torchao; a run is checked for it before any work.
    """
    betas = (0.9, options.beta2)
    if options.optimizer == "adamw":
        fused = device.type == "cuda"
        return torch.optim.AdamW(
            parameters, options.learning_rate, betas, weight_decay=options.weight_decay, fused=fused
        )
    from torchao.optim import AdamW8bit

    return AdamW8bit(parameters, options.learning_rate, betas, weight_decay=options.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give an optimizer the learning rate of a step; compiled ones hold it in a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
