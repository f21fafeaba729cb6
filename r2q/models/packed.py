"""Layers that hold packed codes and 16-bit scales instead of a weight, and compute with the decoded weight."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from r2q.kernels.linear import DTYPES, MATMUL, linear
from r2q.kernels.planes import stored_form, supports
from r2q.models.rehearsal import without_cache
from r2q.models.targets import Target
from r2q.quantization.grid import GRIDS, SCALE_DTYPE, stored_shapes
from r2q.quantization.method import QuantizedWeight
from r2q.quantization.packing import packed_width


def layer_spec(weight: QuantizedWeight) -> dict[str, Any]:
    """What has to be known to rebuild an empty packed layer; JSON values. Kept in config.json for every layer."""
    zero = weight.grid.tensors().get("zero")
    return {
        "grid": weight.grid.kind,
        "bits": weight.grid.bits,
        "shape": list(weight.shape),
        "rows": weight.grid.shape[0],
        "groups": weight.grid.shape[1],
        "float_zero": zero is not None and zero.dtype == SCALE_DTYPE,
        "in_scale": weight.in_scale is not None,
    }


class PackedWeight(nn.Module):
    """The stored tensors of one weight. Indexing gives one expert's weight, so it can stand where a stack stood.

    Args:
        spec: see :func:`layer_spec`; with ``transposed`` where the model's stack is ``[experts, in, out]``.
        dtype: dtype of decoded experts; follows ``.to(dtype)``, while codes and scales never change theirs.
    """

    def __init__(self, spec: dict[str, Any], dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.spec = spec
        shape = tuple(spec["shape"])
        self.shape = (*shape[:-2], shape[-1], shape[-2]) if spec.get("transposed") else shape  # as the model's was
        grid_shape = (spec["rows"], spec["groups"])
        rows, width = math.prod(shape[:-1]), packed_width(shape[-1], spec["bits"])
        self.register_buffer("codes", torch.empty(rows, width, dtype=torch.uint8))
        for name, (size, kind) in stored_shapes(spec["grid"], spec["bits"], grid_shape, spec["float_zero"]).items():
            self.register_buffer(name, torch.empty(size, dtype=kind))
        if spec["in_scale"]:
            self.register_buffer("in_scale", torch.empty(shape[-1], dtype=SCALE_DTYPE))
        self.dtype = dtype or torch.get_default_dtype()

    def fill(self, weight: QuantizedWeight) -> None:
        """Copy the tensors of ``weight``: what layers share in memory would be saved once, as if it were tied."""
        self.codes = weight.packed.clone()
        for name, tensor in weight.grid.tensors().items():
            setattr(self, name, tensor.clone())
        if weight.in_scale is not None:
            self.in_scale = weight.in_scale.clone()

    def quantized(self) -> QuantizedWeight:
        """The stored tensors as a quantized weight."""
        spec = self.spec
        tensors = dict(self.named_buffers())
        grid = GRIDS[spec["grid"]].from_tensors(tensors, spec["bits"], (spec["rows"], spec["groups"]))
        return QuantizedWeight(self.codes, grid, tuple(spec["shape"]), getattr(self, "in_scale", None))

    @torch.compiler.disable
    def dequantize(self, dtype: torch.dtype, expert: int | torch.Tensor | None = None) -> torch.Tensor:
        """The weight, or that of one expert, as the model held it, decoded in float32 and rounded once to ``dtype``.

        As it stands also where all else is compiled: a compiler stops at the views that codes are unpacked through, and
        begins anew for every shape.

        Raises:
            RuntimeError: ``torch.jit.trace``, which has no such views.
        """
        if torch.jit.is_tracing():
            raise RuntimeError("torch.jit.trace cannot follow packed layers: trace model.dequantize(), or torch.export")
        weight = self.quantized()
        decoded = (weight if expert is None else weight.expert(expert)).dequantize().to(dtype)
        return decoded.mT.contiguous() if self.spec.get("transposed") else decoded

    def __getitem__(self, expert: int | torch.Tensor) -> torch.Tensor:
        if isinstance(expert, int) or expert.dim() == 0:
            return self.dequantize(self.dtype, expert)
        return self.dequantize(self.dtype)[expert]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """``torch.bmm(x, stack)``, of models that multiply all experts at once; decodes the whole stack."""
        if func is not torch.bmm:
            return NotImplemented
        return func(*(x.dequantize(x.dtype) if isinstance(x, cls) else x for x in args), **(kwargs or {}))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        """Move, but never cast: 16-bit scales stay what the codes were chosen for under ``.to(torch.bfloat16)``."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        for name, buffer in self.named_buffers(recurse=False):
            moved = fn(buffer)
            setattr(self, name, moved if moved.dtype == buffer.dtype else buffer.to(moved.device))
        return self

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, {self.spec['grid']}, bits={self.spec['bits']}, groups={self.spec['groups']}"


class PackedLinear(PackedWeight):
    """``nn.Linear`` with a packed weight ``[out, in]``; the bias keeps its dtype."""

    def __init__(self, spec: dict[str, Any], dtype: torch.dtype | None = None, bias: bool = False) -> None:
        super().__init__(spec, dtype)
        self.out_features, self.in_features = self.shape
        self.kernels = supports(spec["grid"], spec["bits"], self.shape, spec["groups"])  # else PyTorch, on a GPU, too
        self.bias = nn.Parameter(torch.empty(self.out_features, dtype=dtype), requires_grad=False) if bias else None
        self.joined: tuple[Any, int] | None = None  # with the layers of r2q.models.joined, and its place there

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernels and x.is_cuda and x.dtype in DTYPES and not (torch.is_grad_enabled() and x.requires_grad):
            return self.multiply(x)
        return nn.functional.linear(x, self.dequantize(x.dtype), self.bias)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """By the kernels: many vectors one layer at a time, as these decode its weight into memory."""
        joined = self.joined if x.numel() <= MATMUL * self.in_features else None
        out = joined[0].product(joined[1], x) if joined else self.product(x)
        return out if self.bias is None else out + self.bias

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """The result of the operator, without bias."""
        form, first, second = stored_form(self.spec["grid"], self._buffers)
        scale, rows, groups = getattr(self, "in_scale", None), self.spec["rows"], self.spec["groups"]
        return linear(x, self.codes.view(torch.int32), first, second, scale, form, rows, groups)

    def dense(self) -> nn.Linear:
        """A plain layer with the decoded weight, and the same bias."""
        dense = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        dense.weight = nn.Parameter(self.dequantize(self.dtype), requires_grad=False)
        if self.bias is not None:
            dense.bias = self.bias
        return dense

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        self.joined = None
        if self.bias is not None:
            self.bias = nn.Parameter(fn(self.bias.data), requires_grad=False)
        return self


def replace(model: Any, target: Target, weight: QuantizedWeight) -> None:
    """Put packed tensors where the target's weight was, and let go of the weight."""
    replace_empty(model, target, layer_spec(weight) | ({"transposed": True} if target.transposed else {}))
    packed = model.get_submodule(target.name)
    if isinstance(packed, PackedLinear) and isinstance(target.owner, nn.Linear):
        packed.bias = target.owner.bias
        if packed.bias is not None:
            packed.bias.requires_grad_(False)
    packed.fill(weight)


def replace_empty(model: Any, target: Target, spec: dict[str, Any]) -> None:
    """Put an empty packed layer where the target's weight was; on the meta device when the weight is there."""
    weight = target.weight
    with torch.device(weight.device):
        if target.is_stack:
            packed: PackedWeight = PackedWeight(spec, weight.dtype)
            delattr(target.owner, target.parameter)
            target.owner.add_module(target.parameter, packed)
            model.config._experts_implementation = "eager"  # the one that indexes experts instead of batching them
        else:
            packed = PackedLinear(spec, weight.dtype, target.owner.bias is not None)
            model.set_submodule(target.name, packed)


def make_dense(model: Any) -> Any:
    """Replace every packed layer by its decoded weight in the model's dtype: the same numbers, faster to reuse.

    The configuration remembers it (``dequantized_from``), so such a model is never quantized again. Saved by
    transformers, its tensors are called as in checkpoints of the model, whatever the packed folder called them.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            model.set_submodule(name, module.dense())
        elif isinstance(module, PackedWeight):
            owner, parameter = name.rsplit(".", 1)
            parent = model.get_submodule(owner)
            delattr(parent, parameter)
            parent.register_parameter(parameter, nn.Parameter(module.dequantize(module.dtype), requires_grad=False))
    model.config.dequantized_from = "r2q"
    vars(model).pop("_weight_conversions", None)  # what reading took; else saving would undo that, and no more
    return model


@torch.no_grad()
def make_dense_checked(model: Any) -> Any:
    """:func:`make_dense`, refused where packed layers, which users load, do not run or give other logits.

    A model that does not run with dense layers either is given back: whatever is asked of it will say so.
    """
    tokens = torch.arange(4, 12, device=model.device).remainder(model.config.get_text_config().vocab_size)[None]
    for module in model.modules():  # kernels are held against this path by their own tests
        if isinstance(module, PackedLinear):
            module.kernels = False
    lost: Exception | None = None
    with without_cache(model):
        try:
            packed = model(input_ids=tokens).logits.float()
        except (AttributeError, TypeError, RuntimeError) as error:
            lost = error
        make_dense(model)
        try:
            dense = model(input_ids=tokens).logits.float()
        except Exception:
            if lost is None:
                raise
            return model
    if lost is not None:
        raise ValueError(f"{type(model).__name__} does not run with packed layers: {lost}") from lost
    if not torch.allclose(packed, dense, rtol=1e-3, atol=1e-3 * float(dense.nan_to_num().abs().max()), equal_nan=True):
        difference = float((packed - dense).norm() / dense.norm())
        raise ValueError(f"{type(model).__name__}: logits of packed layers differ from dense ones by {difference:.2g}")
    return model
