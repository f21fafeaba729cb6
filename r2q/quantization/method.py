"""The contract of a quantization method: what goes in, what comes out, what may not happen in between.

A method may not write files, choose layers or swallow numerical errors, and never silently becomes another method:
it raises with the layer's name, or records what it did in its notes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import torch

from r2q.config import NOT_ASKED, Config, MethodOptions, Needs, group_size, import_method, own_step
from r2q.kept import seed_of
from r2q.quantization.grid import Grid, check_grid
from r2q.quantization.packing import pack, packed_width, unpack

CHUNK = {"cpu": 1 << 19, "cuda": 1 << 26}  # weights handled at once: half the cache of a core; a small part of a GPU


def chunk_of(device: torch.device) -> int:
    """Weights that are handled at once on a device."""
    return CHUNK.get(device.type, CHUNK["cpu"])


def in_chunks(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows of ``[rows, groups, n]`` that are handled at once."""
    return values.split(max(1, chunk_of(values.device) // values[0].numel()))


@dataclass(frozen=True)
class Recipe:
    """A method with its options, as one row of a table."""

    name: str  # the row's name, e.g. ``r2q-g64``
    method: str  # a file of ``baselines/``, ``r2q``, or the dotted path of a class
    # ``g<size>`` (groups along in_features), ``channel`` (one group a row), ``tensor``, or None
    granularity: str | None = None
    bits: int = 2  # bits of a code
    seed: int = 0  # seeds everything random in the method
    options: dict[str, Any] = field(default_factory=dict)  # the method's own options, already checked
    lm_head: bool = False  # whether an untied output head is quantized too

    def group_size(self, in_features: int, layer: str) -> int | None:
        """Weights along in_features that share levels; None for the whole tensor.

        Raises:
            ValueError: the group size does not divide in_features; names the layer.
        """
        if self.granularity == "tensor":
            return None
        if self.granularity == "channel":
            return in_features
        if self.granularity is None:
            raise ValueError(f"recipe {self.name}: method {self.method} needs a granularity (g<size>, channel, tensor)")
        size = group_size(self.granularity)
        if size is None or in_features % size:
            raise ValueError(
                f"recipe {self.name}: group size {size} does not divide the {in_features} input features of {layer}"
            )
        return size

    def in_groups(self, weight: torch.Tensor, layer: str) -> torch.Tensor:
        """``[out, in]``, or a stack ``[experts, out, in]``, as ``[rows, groups, n]``; raises as :meth:`group_size`."""
        size = self.group_size(weight.shape[-1], layer)
        if size is None:
            return weight.reshape(1 if weight.dim() == 2 else weight.shape[0], 1, -1)
        return weight.reshape(-1, weight.shape[-1] // size, size)


@dataclass(frozen=True)
class QuantizedWeight:
    """One quantized weight matrix, or one stack of expert matrices."""

    packed: torch.Tensor  # uint8 ``[out, ceil(in * bits / 8)]``; ``[experts * out, ...]`` for a stack
    grid: Grid  # levels of its groups
    shape: tuple[int, ...]  # ``(out, in)`` or ``(experts, out, in)``
    # float16 ``[in]`` or None; the weight is the decoded one divided by it, column by column
    in_scale: torch.Tensor | None = None

    @classmethod
    def from_codes(cls, codes: torch.Tensor, grid: Grid, in_scale: torch.Tensor | None = None) -> Self:
        """From unpacked codes, uint8 ``[out, in]`` or ``[experts, out, in]``."""
        packed = pack(codes.reshape(-1, codes.shape[-1]), grid.bits)
        return cls(packed, grid, tuple(codes.shape), in_scale)

    @property
    def codes(self) -> torch.Tensor:
        """uint8, in the weight's shape."""
        return unpack(self.packed, self.grid.bits, self.shape[-1]).reshape(self.shape)

    def expert(self, number: int | torch.Tensor) -> "QuantizedWeight":
        """One matrix ``[out, in]`` of a stack."""

        def of_one(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.unflatten(0, (self.shape[0], -1))[number]

        grid = replace(self.grid, **{name: of_one(tensor) for name, tensor in self.grid.parts().items()})
        return replace(self, packed=of_one(self.packed), grid=grid, shape=self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored for this weight."""
        tensors = [self.packed, *self.grid.tensors().values()]
        if self.in_scale is not None:
            tensors.append(self.in_scale)
        return sum(t.numel() * t.element_size() for t in tensors)

    def formula_bits(self) -> int:
        """Bits of this weight by the formula: codes, then ``side_bits`` a group, then 16 a scaled input."""
        rows, groups = self.grid.shape
        code_bits = 8 * packed_width(self.shape[-1], self.grid.bits) * self.packed.shape[0]
        return code_bits + rows * groups * self.grid.side_bits + 16 * (0 if self.in_scale is None else self.shape[-1])

    def dequantize(self) -> torch.Tensor:
        """float32, in the weight's shape."""
        weight = self.grid.decode(self.codes.reshape(*self.grid.shape, -1)).reshape(self.shape)
        return weight if self.in_scale is None else weight / self.in_scale.float()


@dataclass(frozen=True)
class Quantized:
    """What a method made of a model."""

    layers: dict[str, QuantizedWeight]  # quantized weights by target name
    # full-precision tensors that the method changed, by parameter name
    other: dict[str, torch.Tensor] = field(default_factory=dict)
    # what the method has to say, JSON values only; ``notes["layers"][name]`` belongs to one layer
    notes: dict[str, Any] = field(default_factory=dict)
    # float32 weights by target name, as they were just before they were rounded, where they are to be left
    latent: dict[str, torch.Tensor] = field(default_factory=dict)


class Weighted(Protocol):
    """What a method sees of a target layer."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> torch.Tensor: ...


class Method(ABC):
    """A way to quantize a model."""

    needs: ClassVar[Needs] = "weights"  # what it works from; decides what data it is given
    stochastic: ClassVar[bool] = False  # whether the seed can change its result
    Options: ClassVar[type[MethodOptions]] = MethodOptions  # its options, closed, with defaults
    version: ClassVar[int] = 1  # raised whenever the numbers it produces can change
    # whether it is there to be held against: a control does not compete for the best value of a table
    control: ClassVar[bool] = False
    # whether it chooses levels; a method that does not takes no granularity and no bits
    quantizes: ClassVar[bool] = True
    # whether it can leave the weights that it rounded, for training to start from
    leaves_latent: ClassVar[bool] = False
    leave_latent = False  # set before :meth:`quantize`: it shall
    # whether its levels are those of a weight whose columns were scaled, or which was turned: no training starts there
    scales_inputs: ClassVar[bool] = False

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.options: Any = self.Options.read(recipe.options)

    def quantizer(self) -> "WeightMethod":
        """The method that the options name as `quantizer`, at this recipe's granularity, bits and seed."""
        name, options = self.options.quantizer, self.options.quantizer_options
        method = make_method(replace(self.recipe, method=name, options=options))
        if not isinstance(method, WeightMethod):
            raise ValueError(f"recipe {self.recipe.name}: quantizer {name} is no function of one weight")
        if step := own_step(type(method)):  # what is trained would not be stored
            raise ValueError(f"recipe {self.recipe.name}: quantizer {name} has a {step} of its own, {NOT_ASKED}")
        try:
            check_pure(method, method.example())
        except ValueError as error:
            raise ValueError(f"recipe {self.recipe.name}: quantizer {name} {error}") from None
        return method

    @contextmanager
    def at(self, layer: str) -> Iterator[None]:
        """Name recipe and layer in a ValueError that is raised inside; to another error they are added as a note."""
        where = f"recipe {self.recipe.name}, layer {layer}"
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        except (Exception, SystemExit) as error:
            error.add_note(where)
            raise

    @abstractmethod
    def quantize(self, model: torch.nn.Module, targets: Sequence[Weighted], data: Any) -> Quantized:
        """Quantize the target layers of ``model``, whose weights stay as they are."""


class WeightMethod(Method):
    """A method that is a pure function of one weight: also a fake quantizer for training and a lattice for GPTQ."""

    @abstractmethod
    def fit_groups(self, values: torch.Tensor) -> Grid:
        """Levels for the groups of float32 ``values [rows, groups, n]``."""

    def encode_groups(self, values: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Codes (uint8) of ``values [rows, groups, n]`` on ``grid``: the nearest levels, unless a method differs."""
        return grid.encode(values)

    @torch.no_grad()
    def quantize_weight(self, weight: torch.Tensor, name: str = "weight") -> QuantizedWeight:
        """Quantize one weight ``[out, in]``, or a stack of expert weights ``[experts, out, in]``.

        Raises:
            ValueError: the group size does not divide in_features, or the method's levels or codes are not as they are
                stored; names the layer.
        """
        groups, grids, codes = self.recipe.in_groups(weight, name), [], []
        self.begin(name)
        with self.at(name):
            for chunk in in_chunks(groups):
                values = chunk.float()
                grids.append(self.fit_groups(values))
                check_grid(grids[-1], self.recipe.bits, (values.shape[0], values.shape[1]))
                chosen = self.encode_groups(values, grids[-1])
                if getattr(chosen, "shape", None) != values.shape:
                    raise ValueError(f"codes have the shape of the weights, {list(values.shape)}")
                codes.append(pack(chosen.reshape(-1, weight.shape[-1]), self.recipe.bits))
        return QuantizedWeight(torch.cat(codes), type(grids[0]).cat(grids), tuple(weight.shape))

    def example(self) -> torch.Tensor:
        """Weights to try the method out on, always the same: float32 ``[4, groups, n]``, two groups a row where rows
        have several, n of a group if that is known."""
        size = group_size(self.recipe.granularity)
        shape = (4, 1 if size is None else 2, min(size or 256, 1 << 16))  # which need not be a layer's
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def begin(self, name: str) -> None:
        """Called before a layer is quantized; methods with random codes seed themselves here."""

    def quantize(self, model: torch.nn.Module, targets: Sequence[Weighted], data: Any) -> Quantized:
        return Quantized({target.name: self.quantize_weight(target.weight, target.name) for target in targets})


@torch.no_grad()
def check_pure(method: WeightMethod, values: torch.Tensor) -> None:
    """Refuse a method that is no function of a single group, as training and error feedback take it to be.

    Methods with random codes, which come in one stream, are only asked to leave ``values [rows, groups, n]`` alone.

    Raises:
        ValueError: its levels cannot be stored, it changes the values that it is given, the levels of a group depend on
            other groups or on what was fitted before, or codes on what was fitted last; the sentence lacks its subject.
    """
    given = values.clone()
    method.begin("weight")
    grid = method.fit_groups(given)
    try:
        check_grid(grid, method.recipe.bits, (values.shape[0], values.shape[1]))
    except ValueError as error:
        raise ValueError(f"gives what cannot be stored: {error}") from None
    codes, levels = method.encode_groups(given, grid), grid.levels()
    if not torch.equal(given, values):  # they are latent weights, or those that error feedback changes
        raise ValueError("changes the weights that it is given")
    if type(method).begin is not WeightMethod.begin:
        return

    def same(part: torch.Tensor, expected: torch.Tensor) -> bool:
        found = method.fit_groups(part.contiguous()).levels()
        return torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))

    half = len(values) // 2
    for row in (slice(half), slice(half, None)) if half else ():
        for group in range(values.shape[1]):
            at = row, slice(group, group + 1)
            if not same(values[at], levels[at]):
                raise ValueError("fits the levels of a group by other groups, or by its place among them")
    method.fit_groups(2 * values)
    if not torch.equal(method.encode_groups(values.clone(), grid), codes):
        raise ValueError("chooses codes by what fit_groups left behind, not by the values and levels it is given alone")
    if not same(values.clone(), levels):
        raise ValueError("fits levels by what it fitted before")


class CheckpointMethod(Method):
    """A method that quantizes nothing: it names a checkpoint, quantized by somebody else, to be taken as it is."""

    needs = "checkpoint"
    quantizes = False

    @abstractmethod
    def checkpoint(self) -> tuple[str, str | None]:
        """Folder or hub id of the checkpoint, and its revision."""

    def quantize(self, model: torch.nn.Module, targets: Sequence[Weighted], data: Any) -> Quantized:
        raise ValueError(f"recipe {self.recipe.name}: method {self.recipe.method} quantizes nothing by itself")


def recipe_of(config: Config, name: str, seed: int) -> Recipe:
    """A recipe of the config with every option filled in."""
    entry, options = config.recipes[name], config.options_of(name).model_dump(mode="json")
    return Recipe(name, entry.method, entry.granularity, entry.bits, seed, options, entry.lm_head)


def make_method(recipe: Recipe) -> Method:
    """The method that a recipe names, with its options checked. Raises ConfigError for a name that leads nowhere."""
    return import_method(recipe.method)(recipe)  # type: ignore[no-any-return]


def generator(seed: int, name: str) -> torch.Generator:
    """A random generator of its own for each (seed, layer), so that layers may be visited in any order."""
    return torch.Generator().manual_seed(seed_of(f"{seed}/{name}"))
