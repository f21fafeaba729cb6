"""A walk through the decoder blocks of a model, one at a time, with the inputs that calibration text gives them.

    for block in walk(model, targets, data):            # data: r2q.models.calibration.Calibration
        for group in block.groups:                      # targets that read the same tensor, in order of execution
            block.observe(visit, [group])               # visit(name, expert, x [tokens, in]), batch by batch
            block.set_weight(name, new)                 # what later groups, and the next block, then see

The model is never changed: ``block.module`` is a copy on the device, the rest stays where it is. The walk goes on with
the outputs of the copy as they are when the caller asks for the next block, so whether blocks see quantized or
full-precision inputs is up to the caller: whoever sets no weight gets full-precision ones.

Half-precision checkpoints are computed in float32 on the CPU; float16 ones in bfloat16 on a GPU, because OPT and badly
quantized models overflow float16. bfloat16 and float32 checkpoints keep their type on a GPU.

Experts: an expert sees the tokens that the router sends to it. One that gets fewer than ``minimum_tokens`` is instead
shown all tokens of the block (its Hessian would be singular otherwise); ``observe`` says which.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from r2q.models.calibration import Calibration
from r2q.models.capture import Call, check_chain, first_inputs, head_inputs, hidden_of, move
from r2q.models.products import speed_up
from r2q.models.rehearsal import MATMUL, take_experts_one_by_one
from r2q.models.targets import Target, decoder_blocks

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}
Visit = Callable[[str, int | None, torch.Tensor], None]


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The type that a block is computed in."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if stored == torch.float16 else stored


@dataclass
class Seen:
    """What ``observe`` showed of one target."""

    tokens: int | list[int] = 0  # how many; for a stack of experts, those that the router sent to each
    # experts below ``minimum_tokens``, which were shown all tokens instead
    shown_all: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Block:
    """One decoder block, or the output head, copied to the device."""

    index: int  # of the decoder block; -1 for the output head
    targets: Sequence[Target]  # its target layers; weights of the original model
    module: nn.Module  # the copy
    prefix: str  # its dotted name in the model
    # hidden states by batch, each ``[windows, window, width]``; in main memory when offloaded
    inputs: list[torch.Tensor]
    calls: list[Call]  # the block's other arguments, by batch
    data: Calibration

    def run(
        self, hidden: torch.Tensor, module: Callable[..., Any] | None = None, batch: int | None = None
    ) -> torch.Tensor:
        """Outputs of the copy (or of something else in its place) for one of the :attr:`inputs`, on the device.

        ``batch`` says the place in :attr:`inputs` whose text other hidden states belong to.
        """
        place = next(i for i, known in enumerate(self.inputs) if known is hidden) if batch is None else batch
        args, kwargs = move(self.calls[place], self.data.device, hidden.dtype, {})
        return hidden_of((self.module if module is None else module)(hidden.to(self.data.device), *args, **kwargs))

    def outputs(self) -> list[torch.Tensor]:
        """Outputs of the copy for all inputs, where these are kept; raises ValueError where one is not finite."""
        results = []
        for hidden in self.inputs:
            result = self.run(hidden)
            if not torch.isfinite(result).all():
                raise ValueError(f"{self.prefix}: its output on calibration text is not finite")
            results.append(result.to(hidden.device))
        return results

    def held(self, name: str) -> torch.Tensor:
        """A target's parameter in the copy."""
        owner, parameter = self._find(name)
        return getattr(owner, parameter)

    def weight(self, name: str) -> torch.Tensor:
        """A target's weight in the copy: ``[out, in]``, or ``[experts, out, in]``; a view."""
        return next(target for target in self.targets if target.name == name).turned(self.held(name))

    def set_weight(self, name: str, values: torch.Tensor) -> None:
        """Give a target of the copy another weight; rounded to the computing type."""
        self.weight(name).data.copy_(values)

    @cached_property
    def groups(self) -> list[list[Target]]:
        """Targets that read the very same tensor together, in order of execution; a stack is a group of its own."""
        seen: dict[str, torch.Tensor] = {}

        def note(name: str, expert: int | None, x: torch.Tensor) -> None:
            seen.setdefault(name, x)  # kept alive, so that no two of them share memory by accident

        with self._hooks(note, self.targets, {}):
            self.run(self.inputs[0])
        by_name = {target.name: target for target in self.targets}
        groups: dict[Any, list[Target]] = {}
        for name, x in seen.items():
            target = by_name[name]
            groups.setdefault(name if target.is_stack else (x.data_ptr(), x.shape), []).append(target)
        missing = [name for name in by_name if name not in seen]
        if missing:
            raise ValueError(f"{missing[0]}: not reached by any calibration token")
        return list(groups.values())

    def observe(self, visit: Visit, groups: Sequence[Sequence[Target]] | None = None) -> dict[str, Seen]:
        """Run all inputs through the copy and show what its targets read, float or half ``[tokens, in]``.

        Args:
            visit: called with the name of the first target of each group, the expert (None where there are none), and
                the tokens of one batch. It must not change them.
            groups: of :attr:`groups`; None = all.

        Returns:
            By the name of every target in the groups, how many tokens were shown.
        """
        chosen = self.groups if groups is None else groups
        first = [group[0] for group in chosen]
        counts = self._routed(first)
        few = {
            name: [e for e, n in enumerate(tokens) if n < self.data.minimum_tokens] for name, tokens in counts.items()
        }
        seen = {target.name: Seen() for target in first}

        def shown(name: str, expert: int | None, x: torch.Tensor) -> None:
            if expert is None:
                seen[name].tokens += len(x)  # type: ignore[operator]
            elif expert in few[name]:
                return
            visit(name, expert, x)

        self._run_all(shown, first, {})
        stacks = [target for target in first if target.is_stack and few[target.name]]
        if stacks:
            route = {self._find(target.name)[0]: few[target.name] for target in stacks}
            self._run_all(visit, stacks, route)
        for name, tokens in counts.items():
            seen[name] = Seen(tokens, few[name])
        return {target.name: seen[group[0].name] for group in chosen for target in group}

    def _find(self, name: str) -> tuple[nn.Module, str]:
        """Owner of a target's weight in the copy, and the parameter's name."""
        target = next(target for target in self.targets if target.name == name)
        local = name.removeprefix(self.prefix).removeprefix(".")
        if target.is_stack:
            local = local.removesuffix(target.parameter).removesuffix(".")
        return self.module.get_submodule(local), target.parameter

    def _routed(self, targets: Sequence[Target]) -> dict[str, list[int]]:
        """For each stack of experts among the targets, the tokens that the router sends to each expert."""
        stacks = [target for target in targets if target.is_stack]
        counts = {target.name: [0] * target.weight.shape[0] for target in stacks}

        def count(name: str, expert: int | None, x: torch.Tensor) -> None:
            counts[name][expert] += len(x)  # type: ignore[index]

        if stacks:
            self._run_all(count, stacks, {})
        return counts

    def _run_all(self, visit: Visit, targets: Sequence[Target], route: dict[nn.Module, list[int]]) -> None:
        """Run all inputs through the copy, with `_hooks` open."""
        with self._hooks(visit, targets, route):
            for hidden in self.inputs:
                self.run(hidden)

    @contextmanager
    def _hooks(self, visit: Visit, targets: Sequence[Target], route: dict[nn.Module, list[int]]) -> Iterator[None]:
        """While open, what the targets of the copy read goes to ``visit``; ``route`` sends all tokens to experts."""
        stacks: dict[int, tuple[str, int]] = {}
        with ExitStack() as stack:
            for target in targets:
                owner, parameter = self._find(target.name)
                if target.is_stack:
                    weight = getattr(owner, parameter)
                    stacks |= {weight[e].data_ptr(): (target.name, e) for e in range(len(weight))}
                    continue

                def before(_: nn.Module, args: tuple[Any, ...], name: str = target.name) -> None:
                    visit(name, None, args[0].flatten(0, -2))

                handle = owner.register_forward_pre_hook(before)
                stack.callback(handle.remove)
            for owner, experts in route.items():
                handle = owner.register_forward_pre_hook(_router(experts))
                stack.callback(handle.remove)
            if stacks:
                stack.enter_context(_ExpertInputs(stacks, visit))
            yield


def _router(experts: list[int]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """Sends every token to each of these experts, whatever the router said."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(args) < 3:
            raise ValueError(
                f"experts {experts} get fewer than calibration.minimum_tokens, and {type(module).__name__}, which does "
                "not take a choice of experts, cannot show them others; take more windows, or a smaller minimum"
            )
        hidden, chosen, weights, *rest = args
        everywhere = torch.tensor(experts, device=chosen.device, dtype=chosen.dtype).expand(len(chosen), -1)
        return hidden, everywhere, torch.ones_like(everywhere, dtype=weights.dtype), *rest

    return before


class _ExpertInputs(TorchFunctionMode):
    """Catches ``linear(x, stack[e])``, ``x @ stack[e]`` and ``bmm(x, stack)`` by where the weight's memory is.

    A product of all experts at once has zeros for tokens that the router did not send to an expert: no inputs.
    """

    def __init__(self, places: dict[int, tuple[str, int]], visit: Visit) -> None:
        super().__init__()
        self.places, self.visit = places, visit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        products = (nn.functional.linear, torch.bmm, *MATMUL)
        if func in products and len(args) > 1 and args[1].data_ptr() in self.places:
            name, expert = self.places[args[1].data_ptr()]
            if func is torch.bmm:
                for expert, x in enumerate(args[0]):
                    if x.any():
                        self.visit(name, expert, x[x.any(-1)])
            else:
                self.visit(name, expert, args[0].flatten(0, -2))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def walk(
    model: Any,  # a full-precision causal language model, on the CPU or anywhere
    targets: Sequence[Target],  # of :func:`r2q.models.targets.list_targets`
    data: Calibration,  # calibration text; says device and offloading
    tokens: torch.Tensor | None = None,  # other windows than ``data.tokens``, e.g. ``data.held_out``
    windows_at_once: int | None = None,  # windows in a batch; None = as many as a few thousand tokens
) -> Iterator[Block]:
    """Visit the decoder blocks in order, then the output head if it is a target.

    Raises:
        ValueError: blocks cannot be computed one at a time, or an output is not finite; names the block.
    """
    windows = data.tokens if tokens is None else tokens
    prefix, blocks = decoder_blocks(model)
    dtype = compute_dtype(next(blocks[0].parameters()).dtype, data.device)
    size = windows_at_once or max(1, TOKENS_AT_ONCE.get(data.device.type, 2048) // windows.shape[1])
    batches = list(windows.split(size))
    keep = torch.device("cpu") if data.offload else data.device
    check_chain(model)
    inputs, calls = first_inputs(model, blocks, batches, dtype, keep)
    for index, original in enumerate(blocks):
        of_block = [target for target in targets if target.block == index]
        copied = _copy(original, data.device, dtype)
        block = Block(index, of_block, copied, f"{prefix}.{index}", inputs, calls[index], data)
        yield block
        inputs = block.inputs = block.outputs()
    head = [target for target in targets if target.block == -1]
    if head:
        inputs = head_inputs(model, blocks, batches, inputs, dtype, keep)
        copied = _copy(head[0].owner, data.device, dtype)
        yield Block(-1, head, copied, head[0].name, inputs, [((), {})] * len(inputs), data)


def _copy(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy on the device, made without a second copy where the module is; experts run one by one."""
    memo: dict[int, Any] = {}
    for weight in module.parameters():
        memo[id(weight)] = nn.Parameter(weight.detach().to(device, dtype, copy=True), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.to(device, dtype if buffer.is_floating_point() else None, copy=True)
    copied = copy.deepcopy(module, memo)
    take_experts_one_by_one(copied)
    return speed_up(copied.eval())
