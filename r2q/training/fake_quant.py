r"""Fake quantization: a latent weight goes through any weight method, its gradient comes straight through.

The forward pass is the method's own map: the numbers are those that the packed layer decodes, bit for bit. The backward
pass is a surrogate, for it is flat almost everywhere. With g the gradient of the quantized weight w^, w the latent
one, sigma(w) the finest step of the group's levels (affine: the scale; binary: the last alpha; codebook: range /
(levels - 1)) and M = 1 where w lies within half an outermost gap of the levels, else 0:

    identity         dL/dw = g
    clipped          dL/dw = M g
    through-scales   dL/dw = M g + (sum over the group of g (w^ - M w) / sigma) * dsigma/dw

``through-scales`` is what autograd gives when only the rounding is passed straight through and the levels move with
the weights: for min-max it is BitDistiller's quantizer (``sigma = (max - min) / 3``) and, for a learnt scale, LSQ's
rule. For two signs in a row it comes out the same: with b_i = sign(r_i) passed through as r_i / alpha_i, the terms of
alpha_1 cancel and (w^ - w) / alpha_2 * dalpha_2 stays. Along w itself it equals the true derivative, w^ (levels grow
with the weights); ``identity`` gives w there. dsigma/dw is autograd through the method's ``fit_groups``; its rounding
to 16 bits counts as the identity.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from r2q.models.products import Linear, linear
from r2q.models.targets import Target
from r2q.quantization.grid import BinaryGrid, Grid
from r2q.quantization.method import QuantizedWeight, WeightMethod, in_chunks
from r2q.training.fused import Map, compiles, one_pass
from r2q.training.options import Gradient
from r2q.training.processes import whole


def finest_step(grid: Grid) -> torch.Tensor:
    """sigma of the module's formulas: float32 ``[rows, groups]``."""
    if hasattr(grid, "scale"):  # evenly spaced
        return grid.scale.float()
    if isinstance(grid, BinaryGrid):
        return grid.alpha[..., -1].float()
    levels = grid.levels()
    return (levels.amax(-1) - levels.amin(-1)) / (levels.shape[-1] - 1)


def inside(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """M of the module's formulas: bool, in the shape of float32 ``values [rows, groups, n]``."""
    levels = grid.levels()
    low, high = levels.amin(-1, keepdim=True), levels.amax(-1, keepdim=True)
    return (values >= low - _least(levels - low) / 2) & (values <= high + _least(high - levels) / 2)


def _least(gaps: torch.Tensor) -> torch.Tensor:
    """The least gap that is one: levels may coincide, as three of a ternary method in four codes do; 0 if all do."""
    return gaps.masked_fill(gaps <= 0, torch.inf).amin(-1, keepdim=True).nan_to_num(posinf=0.0)


class Pass(NamedTuple):
    """What one quantization of a weight gives: values and codes in its shape, one grid per chunk of rows."""

    values: torch.Tensor
    codes: torch.Tensor
    grids: list[Grid]


class FakeQuantizer:
    """Quantizes the weight of one layer again and again.

    Args:
        method: any weight method; its granularity is the recipe's.
        name: the layer, for messages and for methods with random codes.
        gradient: the backward rule.

    Raises:
        ValueError: on use, when the group size does not divide or a weight is not finite; names the layer.
    """

    def __init__(self, method: WeightMethod, name: str, gradient: Gradient = "identity") -> None:
        self.method, self.name, self.gradient = method, name, gradient
        self.fused = gradient == "identity" and compiles(method)
        self._compiled: Map | None = None

    def blocks(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as ``[rows, groups, n]``."""
        return self.method.recipe.in_groups(weight, self.name)

    def chunks(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows of :meth:`blocks` that are handled at once, as in ``WeightMethod.quantize_weight``."""
        return in_chunks(self.blocks(weight))

    @torch.no_grad()
    def run(self, weight: torch.Tensor) -> Pass:
        """Quantize once."""
        values, codes, grids = [], [], []
        self.method.begin(self.name)
        with self.method.at(self.name):
            for chunk in self.chunks(weight):
                wide = chunk.float()
                grids.append(self.method.fit_groups(wide))
                codes.append(self.method.encode_groups(wide, grids[-1]))
                values.append(grids[-1].decode(codes[-1]).to(weight.dtype))
        return Pass(torch.cat(values).reshape(weight.shape), torch.cat(codes).reshape(weight.shape), grids)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The quantized weight, in the shape and dtype of the latent one, with the surrogate gradient."""
        if not self.fused or not (weight.is_cuda or torch.compiler.is_compiling()):
            return self.through(weight, self.run(weight).values)
        run = one_pass(self.method, weight.dtype)
        if not torch.compiler.is_compiling():
            run = self._compiled = self._compiled or torch.compile(run)
        groups = self.blocks(weight.detach()).flatten(0, 1)  # one size that changes from layer to layer, not two
        return self.through(weight, run(groups)[0].reshape(weight.shape))

    def through(self, weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What ``weight`` was quantized to (in any dtype), with the surrogate gradient."""
        if self.gradient == "identity":
            return _Identity.apply(weight, values)
        return _StraightThrough.apply(weight, values, self)

    def backward(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """dL/dw from dL/dw^, by the formulas of the module."""
        parts = []
        done = self.run(weight)
        chunks, slopes, values = self.chunks(weight), self.chunks(gradient), self.chunks(done.values)
        for chunk, slope, quantized, grid in zip(chunks, slopes, values, done.grids, strict=True):
            wide, g = chunk.float(), slope.float()
            mask = inside(wide, grid).float()
            result = mask * g
            if self.gradient == "through-scales":
                result += self._through_step(wide, g * (quantized.float() - mask * wide))
            parts.append(result.to(gradient.dtype))
        return torch.cat(parts).reshape(weight.shape)

    def _through_step(self, values: torch.Tensor, weighted: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = values.detach().clone().requires_grad_()
            step = finest_step(self.method.fit_groups(leaf * 1))
            if not step.requires_grad:
                raise RuntimeError(  # no divergence, as a ValueError in a step is
                    f"layer {self.name}: no gradient flows through the levels of {self.method.recipe.method}"
                )
            pull = torch.where(step > 0, weighted.sum(-1) / step, 0.0).detach()  # [rows, groups]
            return torch.autograd.grad(step, leaf, pull)[0]


class _Identity(torch.autograd.Function):
    """The second tensor's values with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        ctx.dtype = weight.dtype
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].to(ctx.dtype), None


class _StraightThrough(torch.autograd.Function):
    """The same with a quantizer's own rule."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, values: torch.Tensor, quantizer: FakeQuantizer) -> torch.Tensor:
        ctx.quantizer = quantizer
        ctx.save_for_backward(weight)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return ctx.quantizer.backward(weight, gradients[0].to(weight.dtype)), None, None


class Latent:
    """A layer whose latent weight is trained; its target is where it stands in the student."""

    def __init__(self, target: Target, method: WeightMethod, gradient: Gradient) -> None:
        self.target, self.quantizer = target, FakeQuantizer(method, target.name, gradient)
        self.values: torch.Tensor | None = None  # quantized, where that is done once a step (:mod:`r2q.training.fused`)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What of it can be trained."""
        weight = self.target.held
        assert isinstance(weight, nn.Parameter)
        yield weight

    def weight(self) -> torch.Tensor:
        """The weight that the layer computes with."""
        weight = self.target.weight
        if self.values is not None:
            return self.quantizer.through(weight, self.values)
        with torch.autocast(weight.device.type, enabled=False):  # as what is stored: that of layers is none of methods
            return self.quantizer(weight)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.quantizer.method.recipe.bits

    @torch.no_grad()
    def latent(self) -> torch.Tensor:
        """The whole weight under training."""
        return whole(self.target.weight.detach())

    def quantized(self) -> QuantizedWeight:
        """What is stored in the end."""
        return self.quantizer.method.quantize_weight(self.latent(), self.target.name)


class _RoundScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: torch.Tensor) -> torch.Tensor:
        return scale.to(torch.float16).float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


SCALES = ("scale", "alpha", "book")  # what of a grid is trained: the one that it has


class FrozenCodes:
    """A layer whose codes stay as they are, and whose scales are trained (EfficientQAT's second phase).

    The weight is linear in the scales, so the gradient is exact but for their rounding to 16 bits, which is passed
    straight through. Zero points stay, too.
    """

    def __init__(self, target: Target, weight: QuantizedWeight) -> None:
        self.target, self.start = target, weight
        self.grid, self.field = weight.grid, next(name for name in SCALES if hasattr(weight.grid, name))
        scale = nn.Parameter(getattr(weight.grid, self.field).float())
        target.owner.register_parameter(f"{target.parameter}_scales", scale)
        target.held.requires_grad_(False)

    def parameters(self) -> Iterator[nn.Parameter]:
        yield getattr(self.target.owner, f"{self.target.parameter}_scales")

    def weight(self) -> torch.Tensor:
        (scale,) = self.parameters()
        grid = replace(self.grid, **{self.field: _RoundScale.apply(scale)})
        codes = self.start.codes.to(scale.device).reshape(*self.grid.shape, -1)
        with torch.autocast(scale.device.type, enabled=False):
            return grid.decode(codes).reshape(self.start.shape).to(self.target.weight.dtype)

    @property
    def bits(self) -> int:
        return self.grid.bits

    @torch.no_grad()
    def latent(self) -> torch.Tensor:
        return self.quantized().dequantize().to(self.target.weight.dtype)

    def quantized(self) -> QuantizedWeight:
        (scale,) = self.parameters()
        grid = replace(self.grid, **{self.field: whole(scale.detach()).to(torch.float16)})
        return QuantizedWeight(self.start.packed, grid, self.start.shape)


Layer = Latent | FrozenCodes


class _FakeLinear(nn.Linear):
    """`nn.Linear` that computes with the quantized weight; parameters keep their names."""

    fake_layers: dict[str, Layer]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.fake_layers["weight"].weight(), self.bias)


def install(layers: Sequence[Layer]) -> None:
    """Make the student compute with quantized weights: its modules change class, not name or parameters.

    A stack of experts is quantized once per forward pass: while the module runs, an attribute of the same name hides
    the parameter.
    """
    for layer in layers:
        owner, name = layer.target.owner, layer.target.parameter
        if "fake_layers" not in owner.__dict__:
            owner.__dict__["fake_layers"] = {}
            owner.__class__ = _FakeLinear if type(owner) in (nn.Linear, Linear) else _hiding(type(owner))
        owner.__dict__["fake_layers"][name] = layer


def _hiding(base: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose forward pass sees the quantized weights under the names of its parameters."""

    def forward(self: Any, *args: Any, **keywords: Any) -> Any:
        layers = self.fake_layers.items()
        hidden = {name: layer.target.turned(layer.weight()).contiguous() for name, layer in layers}
        self.__dict__.update(hidden)
        try:
            return base.forward(self, *args, **keywords)
        finally:
            for name in hidden:
                del self.__dict__[name]

    return type(f"FakeQuantized{base.__name__}", (base,), {"forward": forward})
