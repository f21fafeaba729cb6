"""What decoder blocks are called with, found out without running them: forward passes with the blocks replaced."""

from collections import UserDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers.cache_utils import Cache

from r2q.models.rehearsal import TOKENS, Watch, stand_in, without_cache
from r2q.models.targets import decoder_blocks

Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a block besides its hidden states
CPU = torch.device("cpu")


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
    device = model.get_input_embeddings().weight.device
    try:
        with without_cache(model):
            model(input_ids=tokens.to(device))
    except _Done:
        return
    raise AssertionError("the model never reached the place that was waited for")


def first_inputs(
    model: Any,
    blocks: nn.ModuleList,
    batches: list[torch.Tensor],
    dtype: torch.dtype,
    keep: torch.device,
) -> tuple[list[torch.Tensor], list[list[Call]]]:
    """Inputs of the first block by batch, and for each block its other arguments by batch.

    Arguments that are the same for a batch of the same size (masks and positions, as all windows have one length and
    no padding) are kept once; those that depend on the text are kept for each batch.
    """
    hidden_states: list[torch.Tensor] = []
    calls: list[list[Call]] = [[] for _ in blocks]
    moved: dict[int, Any] = {}  # tensors that all blocks share are moved once
    holding: list[Any] = []  # keeps what is known by its id

    def forward_of(index: int) -> Callable[..., Any]:
        def forward(hidden_states_: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if index == 0:
                moved.clear()
                holding.clear()
                hidden_states.append(hidden_states_.to(keep, dtype))
            holding.append((args, kwargs))
            call = move((args, kwargs), keep, dtype, moved)
            size = len(hidden_states_)
            known = (old for batch, old in zip(hidden_states, calls[index], strict=False) if len(batch) == size)
            calls[index].append(next((old for old in known if same(old, call)), call))
            if index == len(blocks) - 1:
                raise _Done
            return returned(hidden_states_)

        return forward

    returned = _returned(model, blocks, batches[0][:1, :4])
    with _replaced(blocks, [forward_of(index) for index in range(len(blocks))]):
        for batch in batches:
            _run_model(model, batch)
    return hidden_states, calls


class NotAlone(ValueError):
    """Blocks cannot be computed one at a time."""


@torch.no_grad()
def check_chain(model: Any) -> None:
    """Refuse a model whose blocks cannot be visited one at a time: rehearse both ways and compare.

    Raises:
        ValueError: a block does not read what the block before it gives, is called more than once, or computes
            something else when it is called with nothing of what the blocks before it leave behind; names the block.
    """
    twin = stand_in(model)
    prefix, blocks = decoder_blocks(twin)
    watch, tokens = Watch(twin), torch.full((1, TOKENS), 3)
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    reads: list[list[float]] = []
    order: list[int] = []

    def before(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if not args:
                refuse(index, "is given its hidden states by name")
            order.append(index)
            inputs.append(args[0].clone())
            watch.reads = []

        return hook

    def after(_: nn.Module, args: Any, output: Any) -> None:
        outputs.append(hidden_of(output).clone())
        reads.append([*watch.reads])

    def refuse(index: int, what: str) -> None:
        raise NotAlone(
            f"{type(model).__name__}: {prefix}.{index} {what}; methods that look at calibration text, and output "
            "errors, need blocks that can be computed one at a time"
        )

    handles = [block.register_forward_pre_hook(before(index)) for index, block in enumerate(blocks)]
    handles += [block.register_forward_hook(after) for block in blocks]
    with watch.hooks(), watch:
        with without_cache(twin):
            twin(input_ids=tokens)
        for handle in handles:
            handle.remove()
        if order != list(range(len(blocks))):
            refuse(next((i for i, n in enumerate(order) if n != i), len(order)), "is not called once, in its order")
        for index in range(1, len(blocks)):
            if not same(inputs[index], outputs[index - 1]):
                refuse(index, "reads something else than the output of the block before it")
        _, calls = first_inputs(twin, blocks, [tokens], torch.float32, CPU)
        for index, block in enumerate(blocks):
            args, kwargs = calls[index][0]
            watch.reads = []
            try:
                output = hidden_of(block(inputs[index], *args, **kwargs))
            except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
                refuse(index, f"needs what earlier blocks leave behind ({type(error).__name__}: {error})")
            if not same(output, outputs[index]) or not same(watch.reads, reads[index]):
                refuse(index, "computes something else when earlier blocks leave nothing behind for it")


def hidden_of(output: Any) -> torch.Tensor:
    """Hidden states out of what a block returns."""
    return output[0] if isinstance(output, tuple) else output


def same(one: Any, other: Any) -> bool:
    """Whether two arguments say the same, tensors by their values."""
    if torch.is_tensor(one) and torch.is_tensor(other):
        alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return one is other or (alike and bool(((one == other) | ((one != one) & (other != other))).all()))
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    shelf = isinstance(one, UserDict)  # where blocks leave keys and values for later ones: empty until they run
    return one is other or (type(one) is type(other) and not shelf and bool(one == other))


def _returned(model: Any, blocks: nn.ModuleList, tokens: torch.Tensor) -> Callable[[torch.Tensor], Any]:
    """Makes of hidden states what a block returns: them, or a tuple that begins with them."""
    outputs: list[Any] = []

    def after(_: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output)
        raise _Done

    handle = blocks[0].register_forward_hook(after)
    try:
        _run_model(model, tokens)
    finally:
        handle.remove()
    if torch.is_tensor(outputs[0]):
        return lambda hidden: hidden
    others = [None] * (len(outputs[0]) - 1)
    return lambda hidden: (hidden, *others)


def move(value: Any, device: torch.device, dtype: torch.dtype, moved: dict[int, Any]) -> Any:
    """Arguments on the device, floating ones in the computing type. A cache would grow from call to call: left out."""

    def one(part: Any) -> Any:
        if not torch.is_tensor(part):
            return None if isinstance(part, Cache) else part
        if id(part) not in moved:
            moved[id(part)] = part.to(device, dtype if part.is_floating_point() else None)
        return moved[id(part)]

    return tree_map(one, value, is_leaf=lambda part: isinstance(part, Cache))


def head_inputs(
    model: Any,
    blocks: nn.ModuleList,
    batches: list[torch.Tensor],
    hidden: list[torch.Tensor],
    dtype: torch.dtype,
    keep: torch.device,
) -> list[torch.Tensor]:
    """What the output head reads when the last block gives ``hidden``: the final norm and whatever else comes there."""
    inputs: list[torch.Tensor] = []
    stored = next(blocks[0].parameters()).dtype
    returned = _returned(model, blocks, batches[0][:1, :4])
    pending = iter(hidden)

    def passing(hidden_states_: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return returned(hidden_states_)

    def last(hidden_states_: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return returned(next(pending).to(hidden_states_.device, stored))

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0].to(keep, dtype))
        raise _Done

    handle = model.get_output_embeddings().register_forward_pre_hook(before)
    try:
        with _replaced(blocks, [passing] * (len(blocks) - 1) + [last]):
            for batch in batches:
                _run_model(model, batch)
    finally:
        handle.remove()
    return inputs
