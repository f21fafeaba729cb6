"""The four kinds of levels that a packed weight may use, each with 16-bit parameters per group.

A weight of ``rows * groups * n`` numbers is read, in memory order, as ``[rows, groups, n]``: the numbers of one group
share one set of ``2**bits`` levels. ``rows`` is out_features for group and channel granularity, 1 for a whole tensor,
and the number of experts for a whole tensor of stacked experts.

Parameters are rounded to float16 when a grid is made, so codes are always chosen for the levels that are stored.
Arithmetic on them is float32.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch

from r2q.quantization.packing import pack, packed_width, unpack

SCALE_DTYPE = torch.float16
SMALLEST_SCALE = 2.0**-24  # the smallest positive float16: a divisor that stays positive in storage


def stored(values: torch.Tensor) -> torch.Tensor:
    """Round scales to the 16 bits that are stored.

    In compiled code nothing is checked: what leaves the range becomes infinite there, and so does what is made of it.
    Where a gradient is asked for, the rounded values stay float32: the gradient of a float16 would be a float16, too.

    Raises:
        ValueError: a value is not finite, or above the largest float16 (65504).
    """
    rounded = values.to(SCALE_DTYPE)
    if torch.compiler.is_compiling():  # a compiler drops a conversion there and back, but no operation on integers
        return (rounded.view(torch.int16) & -1).view(SCALE_DTYPE)
    if not torch.isfinite(rounded).all():
        kind = "are not finite" if not torch.isfinite(values).all() else "exceed 65504, the largest 16-bit scale"
        raise ValueError(f"weights {kind}")
    if torch.is_grad_enabled() and values.requires_grad:
        return values + (rounded.float() - values).detach()
    return rounded


def nearest_rank(levels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Rank of the nearest of the ascending ``levels [..., k]`` for each of ``values [..., n]``; ties go up (uint8)."""
    middles = (levels[..., 1:] + levels[..., :-1]) / 2
    rank = torch.zeros(values.shape, dtype=torch.uint8, device=values.device)
    for j in range(middles.shape[-1]):
        rank += values >= middles[..., j : j + 1]
    return rank


@dataclass(frozen=True)
class Grid(ABC):
    """Levels of every group of one weight. ``bits`` is the width of a code."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def bits(self) -> int: ...

    @property
    @abstractmethod
    def side_bits(self) -> int:
        """Bits stored for one group besides its codes."""

    @abstractmethod
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes uint8 ``[rows, groups, n]`` -> float32 levels of the same shape."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, groups)``."""
        first = getattr(self, fields(self)[0].name)
        return first.shape[0], first.shape[1]

    def levels(self) -> torch.Tensor:
        """float32 ``[rows, groups, 2**bits]``, in the order of the codes."""
        device = getattr(self, fields(self)[0].name).device
        codes = torch.arange(2**self.bits, dtype=torch.uint8, device=device)
        return self.decode(codes.expand(*self.shape, -1))

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Codes (uint8) of the nearest levels of float32 ``values [rows, groups, n]``; ties go to the upper level."""
        levels, order = self.levels().sort(-1)
        rank = nearest_rank(levels, values)
        return order.to(torch.uint8).gather(-1, rank.long())

    def parts(self) -> dict[str, torch.Tensor]:
        """The tensors that it is made of, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if torch.is_tensor(getattr(self, f.name))}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored, by name."""
        return self.parts()

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], bits: int, shape: tuple[int, int]) -> Self:
        """The inverse of :meth:`tensors`."""
        return cls(**{f.name: bits if f.name == "width" else tensors[f.name] for f in fields(cls)})

    @classmethod
    def cat(cls, grids: list[Self], dim: int = 0) -> Self:
        """One grid of consecutive rows, or, with ``dim`` 1, of neighbouring groups."""
        if len(grids) == 1:
            return grids[0]
        parts = {name: torch.cat([getattr(grid, name) for grid in grids], dim) for name in grids[0].parts()}
        return replace(grids[0], **parts)


@dataclass(frozen=True)
class AffineGrid(Grid):
    """Evenly spaced levels ``(code - zero) * scale``."""

    scale: torch.Tensor  # float16 ``[rows, groups]``
    zero: torch.Tensor  # ``[rows, groups]``; uint8 below ``2**bits`` (stored at ``bits`` bits) or float16
    width: int  # bits of a code

    kind: ClassVar[str] = "affine"

    @property
    def bits(self) -> int:
        return self.width

    @property
    def side_bits(self) -> int:
        return 16 + (self.width if self.zero.dtype == torch.uint8 else 16)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes.float() - self.zero.float().unsqueeze(-1)) * self.scale.float().unsqueeze(-1)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """``clamp(round(values / scale) + zero)``, the rule of every published round-to-nearest quantizer."""
        steps, zero = values / self.scale.float().unsqueeze(-1), self.zero.float().unsqueeze(-1)
        codes = steps.round_().add_(zero) if self.zero.dtype == torch.uint8 else steps.add_(zero).round_()
        return codes.clamp_(0, 2**self.width - 1).to(torch.uint8)

    def tensors(self) -> dict[str, torch.Tensor]:
        packed = {"zero": pack(self.zero.flatten(), self.width)} if self.zero.dtype == torch.uint8 else {}
        return self.parts() | packed

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], bits: int, shape: tuple[int, int]) -> Self:
        if (zero := tensors["zero"]).dtype == torch.uint8:
            tensors = tensors | {"zero": unpack(zero, bits, shape[0] * shape[1]).reshape(shape)}
        return super().from_tensors(tensors, bits, shape)


@dataclass(frozen=True)
class SymmetricGrid(Grid):
    """Evenly spaced levels around zero, ``(code - (2**bits - 1) / 2) * scale``: none of them zero, no zero point."""

    scale: torch.Tensor  # float16 ``[rows, groups]``
    width: int  # bits of a code

    kind: ClassVar[str] = "symmetric"

    @property
    def bits(self) -> int:
        return self.width

    @property
    def side_bits(self) -> int:
        return 16

    @property
    def middle(self) -> float:
        """The code, halfway between two, that would be zero."""
        return (2**self.width - 1) / 2

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes.float() - self.middle) * self.scale.float().unsqueeze(-1)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """``clamp(round(values / scale + middle))``; a group whose scale is zero has only one level."""
        scale = self.scale.float().clamp_min(SMALLEST_SCALE).unsqueeze(-1)
        return (values / scale).add_(self.middle).round_().clamp_(0, 2**self.width - 1).to(torch.uint8)


@dataclass(frozen=True)
class BinaryGrid(Grid):
    """Sums of signed scales ``±alpha_0 ± alpha_1 ...``; bit ``i`` of a code is the sign of ``alpha_i`` (set: plus)."""

    alpha: torch.Tensor  # float16 ``[rows, groups, bits]``

    kind: ClassVar[str] = "binary"

    @property
    def bits(self) -> int:
        return self.alpha.shape[-1]

    @property
    def side_bits(self) -> int:
        return 16 * self.bits

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        alpha = self.alpha.float()
        total = torch.zeros(codes.shape, dtype=torch.float32, device=codes.device)
        for i in range(self.bits):
            sign = ((codes >> i) & 1).float().mul_(2).sub_(1)
            total += sign.mul_(alpha[..., i : i + 1])
        return total


@dataclass(frozen=True)
class CodebookGrid(Grid):
    """Any ``2**bits`` levels per group."""

    book: torch.Tensor  # float16 ``[rows, groups, 2**bits]``

    kind: ClassVar[str] = "codebook"

    @property
    def bits(self) -> int:
        return self.book.shape[-1].bit_length() - 1

    @property
    def side_bits(self) -> int:
        return 16 * self.book.shape[-1]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.book.float().gather(-1, codes.long())


GRIDS: dict[str, type[Grid]] = {grid.kind: grid for grid in (AffineGrid, SymmetricGrid, BinaryGrid, CodebookGrid)}
READ_BACK = ("bits", "side_bits", "decode", "levels", "shape", "parts", "tensors")  # what a stored grid has of its kind


def stored_shapes(
    kind: str, bits: int, shape: tuple[int, int], float_zero: bool
) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of what a grid of ``shape`` (rows, groups) stores, without making one."""
    if kind not in GRIDS:
        raise ValueError(f"unknown grid {kind!r}: one of {', '.join(GRIDS)}")
    name, levels = {"binary": ("alpha", (bits,)), "codebook": ("book", (2**bits,))}.get(kind, ("scale", ()))
    shapes = {name: (torch.Size([*shape, *levels]), SCALE_DTYPE)}
    if kind == "affine":
        packed = torch.Size([packed_width(shape[0] * shape[1], bits)]), torch.uint8
        shapes["zero"] = (torch.Size(shape), SCALE_DTYPE) if float_zero else packed
    return shapes


def check_grid(grid: Grid, bits: int, shape: tuple[int, int]) -> None:
    """Refuse what is no grid of ``bits`` for ``shape`` (rows, groups), or would not be stored as it is."""
    if not isinstance(grid, Grid):
        raise ValueError(f"levels are a Grid of r2q.quantization.grid, not {type(grid).__name__}")
    kind = GRIDS.get(grid.kind)
    own = kind and any(getattr(type(grid), name, None) is not getattr(kind, name) for name in READ_BACK)
    if kind is not None and (own or not isinstance(grid, kind)):
        raise ValueError(
            f"levels are stored as {kind.__name__}, from which {type(grid).__name__} may differ in `encode`"
        )
    if grid.bits != bits or grid.shape != shape:
        raise ValueError(
            f"levels are for {grid.bits} bits and {list(grid.shape)} [rows, groups], not {bits} bits and {list(shape)}"
        )
    tensors, zero = grid.tensors(), getattr(grid, "zero", None)
    floats = torch.is_tensor(zero) and zero.dtype != torch.uint8
    for name, (size, dtype) in stored_shapes(grid.kind, bits, shape, floats).items():
        found = tensors[name]
        if found.shape != size or found.dtype != dtype:
            raise ValueError(f"{name} is stored as {dtype} {list(size)}, not {found.dtype} {list(found.shape)}")
        if not torch.isfinite(found).all():
            raise ValueError(f"{name} is not finite, or beyond {torch.finfo(dtype).max:.0f}, the largest {dtype}")
