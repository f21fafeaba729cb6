"""Block reconstruction: train what a quantized block is made of until its outputs are those of the original block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.func import functional_call

from r2q.models.blocks import Block, walk
from r2q.models.targets import Target

Parameters = Mapping[str, torch.Tensor]  # by their names in the block


def pairs(
    model: Any, targets: Sequence[Target], data: Any, batch: int
) -> Iterator[tuple[Block, Block, list[torch.Tensor]]]:
    """Every block that has targets, on the inputs that the quantized blocks before it give; its twin in the
    full-precision model; and the twin's outputs on its own, full-precision inputs. Batches are of ``batch`` windows.
    """
    twins = walk(model, targets, data, windows_at_once=batch)
    for block in walk(model, targets, data, windows_at_once=batch):
        twin = next(twins)
        with torch.no_grad():
            outputs = twin.outputs()
        if block.targets:
            yield block, twin, outputs


def held(block: Block, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by target name as parameters of the block's copy."""
    names = {id(parameter): name for name, parameter in block.module.named_parameters()}
    return {names[id(block.held(target.name))]: target.turned(weights[target.name]) for target in block.targets}


def run(block: Block, hidden: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """The block's output with other parameters in place of some of its own; gradients flow to them."""
    dtype = next(block.module.parameters()).dtype
    cast = {name: tensor.to(dtype) for name, tensor in parameters.items()}
    return block.run(hidden, lambda *args, **kwargs: functional_call(block.module, cast, args, kwargs))


@torch.no_grad()
def block_mse(block: Block, parameters: Parameters, references: Sequence[torch.Tensor]) -> float:
    """Mean squared difference between the block's outputs with these parameters and the references."""
    total = 0.0
    for hidden, target in zip(block.inputs, references, strict=True):
        output = run(block, hidden, parameters).float()
        total += float((output - target.to(output.device).float()).square().sum(dtype=torch.float64))
    return total / sum(target.numel() for target in references)


def fit(
    block: Block,  # with its inputs
    parameters: Callable[[], Parameters],  # makes the block's parameters from what is trained
    references: Sequence[Sequence[torch.Tensor]],  # outputs by batch; of several, the errors are added
    optimizer: torch.optim.Optimizer,  # over what is trained
    epochs: int,  # passes over the batches
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,  # stepped after every batch
) -> None:
    """Minimize the mean squared error of the block's outputs, one step a batch, batches in order.

    Raises:
        ValueError: a loss is not finite; names the block's first layer.
    """
    for epoch in range(epochs):
        for index, hidden in enumerate(block.inputs):
            with torch.enable_grad():
                output = run(block, hidden, parameters()).float()
                targets = [outputs[index].to(output.device).float() for outputs in references]
                loss = torch.stack([torch.nn.functional.mse_loss(output, target) for target in targets]).sum()
            if not torch.isfinite(loss):
                raise ValueError(
                    f"layer {block.targets[0].name}: its block's loss is not finite in epoch {epoch}, batch {index}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()


def round_through(x: torch.Tensor) -> torch.Tensor:
    """Rounding whose gradient is one."""
    return x + (x.round() - x).detach()


def clamp_through(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clamping whose gradient is one."""
    return x + (x.clamp(low, high) - x).detach()
