"""What a model does with its weights, found out by a forward pass that computes almost nothing.

A rehearsal runs a copy of the model whose parameters take no memory (one number, seen as every shape) on a few tokens.
``linear`` and ``embedding`` return numbers drawn from the parameter's place in the model instead of computing, so that
it takes about as long for 70 billion weights as for 7, works on the meta device, and says the same of a model before
and after its weights are read. Nothing here knows a model or a layer by its name.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from r2q.failures import one_line

TOKENS = 24
_TENSOR: Any = torch.Tensor
PLAIN = (_TENSOR.shape.__get__, _TENSOR.dtype.__get__)  # what a packed weight tells as a parameter does
MATMUL = (torch.matmul, _TENSOR.matmul, _TENSOR.__matmul__)


@dataclass
class Use:
    """How a forward pass uses the parameters, each by its name."""

    # matrices ``[out, in]`` of called ``nn.Linear`` modules, and stacks of experts, indexed by expert or multiplied all
    # at once; both for nothing but ``x W^T``
    linear: set[str] = field(default_factory=set)
    stacks: set[str] = field(default_factory=set)  # those of them that are stacks, ``[experts, out, in]``
    transposed: set[str] = field(default_factory=set)  # those that are ``[experts, in, out]``, for ``x W``
    # parameters with another use, and the torch function that makes it
    other: dict[str, str] = field(default_factory=dict)
    # matrices whose output reaches the output of the model, and what other matrices read, only through the selection
    # and the weights of experts; also those that only such matrices read
    idle: set[str] = field(default_factory=set)
    feeding: set[str] = field(default_factory=set)  # matrices whose output reaches what experts read


def stand_in(model: Any) -> Any:
    """A copy of the model without its weights, on the CPU in float32; experts one by one, no cache."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(_constant(parameter), requires_grad=False)
    for module in model.modules():
        for tensor in (*module._buffers.values(), *vars(module).values()):
            if torch.is_tensor(tensor):
                known = (
                    tensor.detach().to("cpu", copy=True) if tensor.device.type != "meta" else _constant(tensor).clone()
                )
                memo.setdefault(id(tensor), known.float() if known.is_floating_point() else known)
    twin = copy.deepcopy(model, memo)
    take_experts_one_by_one(twin)
    return twin.eval()


def _constant(tensor: torch.Tensor) -> torch.Tensor:
    """One number in every place: it has a storage of its own, by which its views are known."""
    value = torch.full((), 0.5) if tensor.is_floating_point() else torch.zeros((), dtype=tensor.dtype)
    return value.expand(tensor.shape)


def take_experts_one_by_one(model: nn.Module) -> None:
    """Choose the implementation that indexes a stack of experts, wherever a module of the model keeps its choice."""
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if getattr(config, "_experts_implementation", None) is not None:
            config._experts_implementation = "eager"


@contextmanager
def without_cache(model: Any) -> Iterator[None]:
    """While open, the configurations of the model ask for no cache, for forwards that have no such parameter."""
    configs: dict[int, Any] = {
        id(c): c for part in model.modules() if hasattr(c := getattr(part, "config", None), "use_cache")
    }
    before = {key: config.use_cache for key, config in configs.items()}
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for key, config in configs.items():
            config.use_cache = before[key]


def observe_use(model: Any, experts: set[str]) -> Use:
    """Rehearse a forward pass and note what every parameter is used for.

    Args:
        model: a causal language model, its weights read or on the meta device.
        experts: parameters that may belong to experts; their outputs count as zero for :attr:`Use.idle`.

    Raises:
        ValueError: the forward pass does not run on plain token ids.
    """
    twin = stand_in(model)
    watch = Watch(twin, experts)
    logits = _rehearse(twin, watch).logits
    with torch.enable_grad(), watch:
        watch.note("", logits)
    with torch.enable_grad():  # also for a caller who wants none
        return watch.result()


def decoder_of(model: Any) -> Any:
    """What gives the hidden states that the output layer reads: the base model, or (Llama 4) the first model inside."""
    parts = (part for part in model.children() if hasattr(part, "get_input_embeddings"))
    return model.base_model if model.base_model is not model else next(parts, model)


def has_plain_logits(model: Any) -> bool:
    """Whether a model's logits are its linear output layer on what its decoder gives, neither of them scaled or capped.

    A decoder that gives nothing on token ids alone has none.
    """
    twin = stand_in(model)
    head, watch = twin.get_output_embeddings(), Watch(twin)
    if not isinstance(head, nn.Linear):
        return False
    passed: list[tuple[torch.Tensor, torch.Tensor]] = []  # what the head reads and gives
    head.register_forward_hook(lambda _, args, output: passed.append((args[0], output)))
    logits = _rehearse(twin, watch).logits
    try:
        hidden = _rehearse(decoder_of(twin), watch).last_hidden_state
    except (ValueError, AttributeError):
        return False
    return len(passed) == 1 and torch.equal(passed[0][0], hidden) and torch.equal(passed[0][1], logits)


def _rehearse(twin: Any, watch: "Watch") -> Any:
    """What a model, or its decoder, gives on a few tokens, watched; raises ValueError where it does not run."""
    with watch.hooks(), without_cache(twin), torch.enable_grad(), watch:
        try:
            return twin(input_ids=torch.full((1, TOKENS), 3))
        except Exception as error:
            raise ValueError(
                f"{type(twin).__name__}: its forward pass cannot be followed on token ids alone "
                f"({type(error).__name__}: {one_line(error)[:200]})"
            ) from None


class Watch(TorchFunctionMode):
    """Stands in for ``linear`` and ``embedding``, and notes every function that is given a parameter."""

    def __init__(self, twin: nn.Module, experts: set[str] | None = None) -> None:
        super().__init__()
        self.twin, self.experts, self.use = twin, experts or set(), Use()
        self.parameters = {p.untyped_storage().data_ptr(): (name, p) for name, p in twin.named_parameters()}
        self.number = {name: index for index, (name, _) in enumerate(twin.named_parameters())}
        for name, parameter in twin.named_parameters(remove_duplicate=False):
            if (first := self.parameters[parameter.untyped_storage().data_ptr()][0]) != name:
                self.use.other |= dict.fromkeys((first, name), "several layers, which share it")
        self.active: list[str] = []  # the weights of the linear modules that are being called
        self.outputs: dict[str, list[torch.Tensor]] = {}
        self.read: dict[str, torch.Tensor] = {}  # sum of what each matrix reads, and what the model gives
        self.reads: list[float] = []  # the same, one by one
        self.given = torch.zeros(())  # sum of what experts read

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """While open, calls of linear modules are known."""
        handles = []
        for name, module in self.twin.named_modules():
            if isinstance(module, nn.Linear) and _computes_linear(module):
                handles += [
                    module.register_forward_pre_hook(self._enter(f"{name}.weight")),
                    module.register_forward_hook(self._leave),
                ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.active.append(name)
            if args:
                self.use.linear.add(name)
            else:
                self.use.other[name] = "a call without positional input"

        return before

    def _leave(self, *_: Any) -> None:
        self.active.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        places = [self._parameter(value) for value in tree_leaves((args, kwargs))]
        if func is F.embedding and len(args) > 1 and self._parameter(args[1]):
            name, table = self._parameter(args[1])  # type: ignore[misc]
            return self._draw(name, (*args[0].shape, table.shape[1]))
        if func is F.linear and len(args) > 1 and (place := self._parameter(args[1])):
            return self._linear(*place, args[0], args[1])
        if (func in MATMUL or func is torch.bmm) and len(args) > 1 and (place := self._parameter(args[1])):
            name, parameter = place
            shape = parameter.shape if func is torch.bmm else parameter.shape[1:]  # all experts, or one
            if parameter.dim() == 3 and args[1].shape == shape and name not in self.use.other:
                return self._linear(name, parameter, args[0], args[1].mT, True)
        for name, parameter in filter(None, places):
            indexed = func is torch.Tensor.__getitem__ and parameter.dim() == 3 and _is_one(args[1])
            if name not in self.active and not (parameter.dim() == 3 and (indexed or func in PLAIN)):
                self.use.other.setdefault(name, getattr(func, "__name__", str(func)))
        return func(*args, **kwargs)

    def _parameter(self, value: Any) -> tuple[str, torch.Tensor] | None:
        if not torch.is_tensor(value):
            return None
        with torch._C.DisableTorchFunction():
            return self.parameters.get(value.untyped_storage().data_ptr())

    def _linear(
        self, name: str, parameter: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, transposed: bool = False
    ) -> torch.Tensor:
        if x.shape[-1] != weight.shape[-1]:
            raise ValueError(f"{name} reads {weight.shape[-1]} values and is given {x.shape[-1]}")
        shape = (*x.shape[:-1], weight.shape[-2])
        held = parameter.mT if transposed else parameter
        stacked = parameter.dim() == 3 and weight.shape in (held.shape, held.shape[1:])
        stacked &= name not in self.use.stacks or transposed == (name in self.use.transposed)  # always the same way
        if stacked:
            self.use.linear.add(name)
            self.use.stacks.add(name)
            self.use.transposed |= {name} if transposed else set()
        elif name not in self.active:
            self.use.other.setdefault(name, "linear, outside of an nn.Linear")
        if stacked or name in self.experts:
            self.given = self.given + (x * self._draw(name, x.shape)).sum()
            return x.new_zeros(shape)
        self.note(name, x)
        output = self._draw(name, shape).requires_grad_(torch.is_grad_enabled())
        self.outputs.setdefault(name, []).append(output)
        return output * 1  # a copy, which may be changed in place

    def note(self, name: str, x: torch.Tensor) -> None:
        """Remember what a matrix reads, or, without a name, what the model gives."""
        read = (x * self._draw(name, x.shape)).sum()
        self.reads.append(float(read.detach()))
        if read.requires_grad:
            self.read[name] = self.read.get(name, 0) + read

    def _draw(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        number = self.number.get(name, len(self.number))
        return torch.randn(shape, generator=torch.Generator().manual_seed(number))

    def result(self) -> Use:
        """What was noted, once the forward pass is over."""
        self.use.linear -= self.use.other.keys()
        self.use.stacks &= self.use.linear
        places = [(name, x) for name, outputs in self.outputs.items() for x in outputs if x.requires_grad]
        idle: set[str] | None = None
        while "" in self.read and idle != self.use.idle:
            idle = self.use.idle
            read = sum(value for name, value in self.read.items() if name not in idle)
            self.use.idle = self.outputs.keys() - _moving(read, places)
        if self.given.requires_grad:
            self.use.feeding = _moving(self.given, places)
        return self.use


def _moving(total: Any, places: list[tuple[str, torch.Tensor]]) -> set[str]:
    """Names of those outputs that a sum follows."""
    gradients = torch.autograd.grad(total, [x for _, x in places], retain_graph=True, allow_unused=True)
    return {name for (name, _), g in zip(places, gradients, strict=True) if g is not None and g.any()}


def _is_one(index: Any) -> bool:
    return isinstance(index, int) or (torch.is_tensor(index) and index.dim() == 0)


def _computes_linear(module: nn.Linear) -> bool:
    """Whether a call gives ``x W^T + b`` and nothing else: subclasses also make groups of it, or choose experts."""
    if type(module).forward is nn.Linear.forward:
        return True
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((2, 6, 4), (5, 4), (5,)))
    given = {"weight": weight} | ({} if module.bias is None else {"bias": bias})
    try:
        output = functional_call(module, given, (x,))
    except Exception:  # it needs more than an input and a weight of any shape: no linear map
        return False
    wanted = F.linear(x, weight, given.get("bias"))
    return torch.is_tensor(output) and output.shape == wanted.shape and torch.allclose(output, wanted, atol=1e-5)
