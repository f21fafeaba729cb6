"""Optimizer, learning rate of a step, number type of the arithmetic."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from r2q.training.options import TrainingOptions
from r2q.training.processes import own


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


AT_ONCE = 1 << 24  # numbers of a parameter that are in memory as float32


def rounded_by_chance(values: torch.Tensor) -> torch.Tensor:
    """Float32 values as bfloat16, up or down with the probabilities that make the mean right."""
    bits = values.view(torch.int32)  # bfloat16 is the upper half
    bits = bits + torch.randint(0, 1 << 16, bits.shape, device=bits.device, dtype=torch.int32)
    return (bits & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def stepped(factors: torch.Tensor, *stored: torch.Tensor) -> list[torch.Tensor]:
    """AdamW's step: weights and both moments after it, from weights, gradients and moments.

    Args:
        factors: float32 ``[6]``: of the weights, the new mean, the old and the new square, the step, the square.
        stored: float32 or bfloat16, of one shape.
    """
    keep, new_mean, old_square, new_square, move, correct = factors.unbind()
    weight, gradient, mean, square = (tensor.float() for tensor in stored)
    mean = mean + new_mean * (gradient - mean)
    square = old_square * square + new_square * gradient * gradient
    weight = keep * weight - move * mean / ((correct * square).sqrt() + 1e-8)
    by_chance = stored[0].dtype == torch.bfloat16
    return [rounded_by_chance(value) if by_chance else value for value in (weight, mean, square)]


class RoundingAdamW(torch.optim.Optimizer):
    """AdamW in float32 on bfloat16 weights and moments, which are then rounded by chance.

    To nearest, bfloat16 loses every change below 1/512 of a number: at a rate of 1e-5 nearly all steps of the weights,
    and the decay of the second moments.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                state["step"] += 1
                tensors = parameter.detach(), parameter.grad, state["exp_avg"], state["exp_avg_sq"]
                stored = [torch.atleast_1d(own(tensor)) for tensor in tensors]
                factors = self._factors(group, float(state["step"])).to(stored[0].device, non_blocking=True)
                rows = max(1, AT_ONCE * len(stored[0]) // max(1, stored[0].numel()))
                for part in zip(*(tensor.split(rows) for tensor in stored), strict=True):
                    for place, value in zip((part[0], *part[2:]), stepped(factors, *part), strict=True):
                        place.copy_(value)

    def _factors(self, group: dict[str, Any], step: float) -> torch.Tensor:
        """Those of :func:`stepped`, for a step counted from 1."""
        (first, second), rate = group["betas"], group["lr"]
        keep, move = 1 - rate * group["weight_decay"], rate / (1 - first**step)
        return torch.tensor([keep, 1 - first, second, 1 - second, move, 1 / (1 - second**step)])


def take_step(optimizer: torch.optim.Optimizer, options: TrainingOptions, step: int, device: torch.device) -> None:
    """An optimizer's step; what is rounded by chance depends on the number of the step alone."""
    if options.latent == "float32":
        optimizer.step()
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(step)
        optimizer.step()


def make_optimizer(
    options: TrainingOptions, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """AdamW, in one pass over the parameters on a GPU; of bfloat16 weights one that rounds by chance.

    Raises:
        ImportError: `optimizer: adamw_8bit` without torchao; a run is checked for it before any work.
    """
    betas, by_chance = (0.9, options.beta2), options.latent == "bfloat16"
    if options.optimizer == "adamw" and by_chance:
        return RoundingAdamW(parameters, options.learning_rate, betas, options.weight_decay)
    if options.optimizer == "adamw":
        fused = device.type == "cuda"
        return torch.optim.AdamW(
            parameters, options.learning_rate, betas, weight_decay=options.weight_decay, fused=fused
        )
    from torchao.optim import AdamW8bit

    return AdamW8bit(
        parameters, options.learning_rate, betas, weight_decay=options.weight_decay, bf16_stochastic_round=by_chance
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give an optimizer the learning rate of a step; compiled ones hold it in a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
