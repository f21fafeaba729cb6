"""What decoder blocks are called with, found out without running them: forward passes with the blocks replaced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Calls = dict[int, tuple[tuple[Any, ...], dict[str, Any]]]  # other arguments of a block, by the windows in a batch


class _Done(Exception):
    """Ends a forward pass of which no more is needed."""


@contextmanager
def _replaced(blocks: nn.ModuleList, forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """While open, the blocks compute something else."""
    for block, forward in zip(blocks, forwards, strict=True):
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _run_model(model: Any, tokens: torch.Tensor) -> None:
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    device = model.get_input_embeddings().weight.device
    try:
        model(input_ids=tokens.to(device), **options)
    except _Done:
        return
    raise AssertionError("the model never reached the place that was waited for")


def first_inputs(
    model: Any,
    blocks: nn.ModuleList,
    batches: list[torch.Tensor],
    dtype: torch.dtype,
    keep: torch.device,
    device: torch.device,
) -> tuple[list[torch.Tensor], list[Calls]]:
    """Inputs of the first block by batch, and for each block its other arguments by the number of windows in a batch.

    Windows are all of one length without padding, so masks and positions depend on nothing but the batch's size.
    """
    hidden_states: list[torch.Tensor] = []
    calls: list[Calls] = [{} for _ in blocks]
    moved: dict[int, Any] = {}  # tensors that all blocks share are moved once
    holding: list[Any] = []

    def forward_of(index: int) -> Callable[..., Any]:
        def forward(hidden_states_: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            size = len(hidden_states_)
            if index == 0:
                hidden_states.append(hidden_states_.to(keep, dtype))
            if size not in calls[index]:
                holding.extend([args, kwargs])
                calls[index][size] = (_move(args, device, dtype, moved), _move(kwargs, device, dtype, moved))
            if index == len(blocks) - 1:
                raise _Done
            return hidden_states_ if plain else (hidden_states_,)

        return forward

    plain = _returns_tensor(model, blocks, batches[0][:1, :4])
    with _replaced(blocks, [forward_of(index) for index in range(len(blocks))]):
        for batch in batches:
            _run_model(model, batch)
    return hidden_states, calls


def _returns_tensor(model: Any, blocks: nn.ModuleList, tokens: torch.Tensor) -> bool:
    """Whether a block returns its hidden states bare; older versions of transformers return a tuple."""
    found: list[bool] = []

    def after(_: nn.Module, args: Any, output: Any) -> None:
        found.append(torch.is_tensor(output))
        raise _Done

    handle = blocks[0].register_forward_hook(after)
    try:
        _run_model(model, tokens)
    finally:
        handle.remove()
    return found[0]


def _move(value: Any, device: torch.device, dtype: torch.dtype, moved: dict[int, Any]) -> Any:
    """Arguments on the device, floating ones in the computing type."""
    if torch.is_tensor(value):
        if id(value) not in moved:
            moved[id(value)] = value.to(device, dtype if value.is_floating_point() else None)
        return moved[id(value)]
    if isinstance(value, tuple | list):
        return type(value)(_move(item, device, dtype, moved) for item in value)
    if isinstance(value, dict):
        return {name: _move(item, device, dtype, moved) for name, item in value.items()}
    return value


def head_inputs(
    model: Any,
    blocks: nn.ModuleList,
    batches: list[torch.Tensor],
    hidden: list[torch.Tensor],
    dtype: torch.dtype,
    keep: torch.device,
) -> list[torch.Tensor]:
    """What the output head reads when the last block gives ``hidden``: the final norm and whatever else comes there."""
    found: list[torch.Tensor] = []
    stored = next(blocks[0].parameters()).dtype
    plain = _returns_tensor(model, blocks, batches[0][:1, :4])
    pending = iter(hidden)

    def passing(hidden_states_: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states_ if plain else (hidden_states_,)

    def last(hidden_states_: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = next(pending).to(hidden_states_.device, stored)
        return result if plain else (result,)

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0].to(keep, dtype))
        raise _Done

    handle = model.get_output_embeddings().register_forward_pre_hook(before)
    try:
        with _replaced(blocks, [passing] * (len(blocks) - 1) + [last]):
            for batch in batches:
                _run_model(model, batch)
    finally:
        handle.remove()
    return found
