"""A method applied to a model: its target layers replaced by packed ones, each described."""

import json
import math
import time
from dataclasses import fields
from typing import Any

import torch

from r2q.models.calibration import Calibration
from r2q.models.calibration import describe as describe_calibration
from r2q.models.capture import NotAlone
from r2q.models.moments import output_errors
from r2q.models.packed import PackedWeight, replace
from r2q.models.targets import Target
from r2q.quantization.grid import SCALE_DTYPE, SMALLEST_SCALE, check_grid
from r2q.quantization.method import Method, Quantized, QuantizedWeight, Recipe, WeightMethod
from r2q.quantization.packing import packed_width
from r2q.records import Layer, LayerRow

MEASURED = {part.name for kind in (Layer, LayerRow) for part in fields(kind)} - {"seconds"}  # no notes' names
OF_THE_MODEL = "of the model that it is given; what it changes belongs into its result"
ROW = 1024  # words of a tensor that are summed up as one row
FAILURES = (ValueError, ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError)  # a row, not a crash


@torch.no_grad()
def apply(
    method: Method,
    model: Any,
    targets: list[Target],
    device: torch.device,
    data: Calibration | None = None,
    training: Any = None,
    latent: dict[str, torch.Tensor] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Quantize the targets of ``model`` in place.

    Weights are visited one by one where the method allows it. Without calibration data each is let go as soon as it
    is packed (the peak is the model plus one layer); with it, all stay until the output errors are measured. ``latent``
    is filled with the weights as the method left them just before they were rounded.

    Returns:
        One description per layer (see :func:`describe`), and the method's notes.

    Raises:
        ValueError: the method needs calibration or training data and there is none, a weight is not finite, the method
            changes the model by itself, or gives what :class:`Quantized` does not allow.
    """
    if method.needs == "calibration" and data is None:
        raise ValueError(f"recipe {method.recipe.name}: method {method.recipe.method} needs calibration tokens")
    method.leave_latent = latent is not None
    if isinstance(method, WeightMethod) and type(method).quantize is WeightMethod.quantize:
        result, layers = _one_by_one(method, model, targets, device, keep=data is not None)
    else:
        given = {"calibration": data, "training": training}.get(method.needs)  # text is also there to measure errors on
        result, layers = _all_at_once(method, model, targets, given)
    if latent is not None:
        latent |= _left(method, targets, result)
    notes = dict(result.notes)
    of_layers = notes.pop("layers", {})
    errors: dict[str, float] = {}
    try:
        errors = output_errors(model, targets, result.layers, data) if data is not None and result.layers else {}
    except NotAlone as error:  # of a method that does not look at calibration text: its weights are none the worse
        notes["output_errors"] = f"not measured: {error}"
    for layer in layers:
        name = layer["name"]
        layer |= ({"output_error": errors[name]} if name in errors else {}) | of_layers.get(name, {})
    if data is not None:
        notes["calibration"] = describe_calibration(data)
    parameters = dict(model.named_parameters())
    for name, tensor in result.other.items():
        parameters[name].data.copy_(tensor)
    by_name = {target.name: target for target in targets}
    for name, quantized in result.layers.items():
        replace(model, by_name[name], to_cpu(quantized))
    return layers, notes


def checksum(tensor: torch.Tensor) -> tuple[int | bytes, ...]:
    """What tells a changed tensor, also one whose values only moved, at 6 GB/s of a core; alike on every device.

    Sums over rows and over columns of its bytes, 1,024 words of eight a row, in which each place counts by an odd
    number of its own, and the bytes that fill no row. Not by `Tensor._version`, which does not count what is done to
    `.data`, nor by address: methods move parts to a GPU. On the device `meta` its size stands for the values.
    """
    if tensor.is_meta:
        return (tensor.numel(),)
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()
    whole = data.numel() // (8 * ROW) * 8 * ROW
    words = data[:whole].view(torch.int64).view(-1, ROW)
    odd = [2 * torch.arange(size, device=data.device) + 1 for size in words.shape]
    sums = int((words.sum(0) * odd[1]).sum()), int((words.sum(1) * odd[0]).sum())
    return *sums, data[whole:].cpu().numpy().tobytes()


def _given(model: Any) -> dict[str, Any]:
    """What a method may not change of a model: tensors, and settings, which are stored with it, by name."""
    tensors = {name: checksum(tensor) for name, tensor in model.state_dict().items()}
    return tensors | {name: str(getattr(model, name)) for name in ("config", "generation_config", "training")}


def _refuse_other_than_said(method: Method, model: Any, targets: list[Target], result: Quantized) -> None:
    """Raises ValueError where a result leaves layers out, or holds what could not be stored as it is.

    Levels and codes of a :class:`WeightMethod` are checked as they come.
    """
    who = f"recipe {method.recipe.name}"
    if not isinstance(result, Quantized):
        raise ValueError(f"{who}: quantize gives a Quantized, not {type(result).__name__}")
    by_name = {target.name: target for target in targets}
    if method.quantizes and (wrong := sorted(by_name.keys() ^ result.layers.keys())):
        which = "is not quantized" if wrong[0] in by_name else "is none of the layers to quantize"
        raise ValueError(f"{who}: {wrong[0]} {which} ({len(wrong)} such)")
    for name, quantized in result.layers.items():
        with method.at(name):
            _check_weight(method.recipe, by_name[name], quantized)
    taken = {id(target.held) for target in targets}
    left = {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in taken}
    for name, tensor in result.other.items():
        if name not in left:
            only = "and a packed folder holds codes, levels and parameters of the model alone"
            raise ValueError(f"{who}: {name}, which it changes, is no parameter that stays in full precision, {only}")
        shape, dtype = left[name].shape, left[name].dtype
        if tensor.shape != shape or not tensor.to(dtype).isfinite().all():
            raise ValueError(f"{who}: {name}, which it changes, is finite {dtype} {list(shape)}")
    try:
        json.dumps(result.notes, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{who}: notes are plain JSON ({error})") from None
    for name, said in result.notes.get("layers", {}).items():
        if name not in by_name:
            raise ValueError(f"{who}: notes speak of {name}, which is none of the layers to quantize")
        if wrong := sorted(MEASURED & said.keys()):
            raise ValueError(f"{who}: notes of {name}: {wrong[0]} is measured, no note; give it another name")


def _left(method: Method, targets: list[Target], result: Quantized) -> dict[str, torch.Tensor]:
    """The weights that a method left for training to start from; raises ValueError where it promises what it lacks."""
    for target in targets if method.leaves_latent else ():
        latent, shape = result.latent.get(target.name), list(target.weight.shape)
        if latent is None or [*latent.shape] != shape or latent.dtype != torch.float32 or not latent.isfinite().all():
            said = f"finite torch.float32 {shape}, for training to start from"
            raise ValueError(f"recipe {method.recipe.name}: latent[{target.name!r}] is {said}")
    return result.latent


def _check_weight(recipe: Recipe, target: Target, quantized: QuantizedWeight) -> None:
    shape = tuple(target.weight.shape)
    rows, width = math.prod(shape[:-1]), shape[-1]
    if quantized.shape != shape:
        raise ValueError(f"the weight is {list(shape)}, not {list(quantized.shape)}")
    size = recipe.group_size(width, target.name)
    check_grid(quantized.grid, recipe.bits, (math.prod(shape[:-2]), 1) if size is None else (rows, width // size))
    if quantized.packed.shape != (rows, packed_width(width, recipe.bits)) or quantized.packed.dtype != torch.uint8:
        raise ValueError("codes are packed as r2q.quantization.packing.pack does")
    scale = quantized.in_scale
    if scale is not None and (scale.shape != (width,) or scale.dtype != SCALE_DTYPE):
        raise ValueError(f"in_scale is {SCALE_DTYPE} [{width}], not {scale.dtype} {list(scale.shape)}")
    if scale is not None and not ((scale > 0) & scale.isfinite()).all():
        raise ValueError("in_scale is finite and above zero")


def _refuse_not_finite(method: Method, name: str, weight: torch.Tensor) -> None:
    """Whatever a method would make of NaN and infinities; what is on the device `meta` holds nothing."""
    if not weight.is_meta and not torch.stack(weight.aminmax()).isfinite().all():
        raise ValueError(f"recipe {method.recipe.name}, layer {name}: weights are not finite")


def _one_by_one(
    method: WeightMethod, model: Any, targets: list[Target], device: torch.device, keep: bool
) -> tuple[Quantized, list[dict[str, Any]]]:
    """Quantize each weight on its own; each is replaced at once unless the weights are to be kept for later."""
    layers = []
    packed = {}
    for target in targets:
        start = time.perf_counter()
        weight = target.weight.to(device)
        _refuse_not_finite(method, target.name, weight)
        before = checksum(weight)
        quantized = method.quantize_weight(weight, target.name)
        if checksum(weight) != before:
            raise ValueError(f"recipe {method.recipe.name}: quantize_weight changes {target.name} {OF_THE_MODEL}")
        seconds = round(time.perf_counter() - start, 4)
        layers.append(describe(target.name, quantized, weight) | {"seconds": seconds})
        del weight
        if keep:
            packed[target.name] = quantized
        else:
            replace(model, target, to_cpu(quantized))
    return Quantized(packed), layers


def _all_at_once(
    method: Method, model: Any, targets: list[Target], data: Any
) -> tuple[Quantized, list[dict[str, Any]]]:
    """Let a method see the whole model, which has to be as before when it is done, and check what it gives."""
    for target in targets if method.quantizes else ():
        _refuse_not_finite(method, target.name, target.weight)
    before, buffers = _given(model), {name: buffer.clone() for name, buffer in model.named_buffers()}
    result = method.quantize(model, targets, data)
    for name, buffer in model.named_buffers():  # a model may count its passes in one
        if name in buffers and buffer.shape == buffers[name].shape:
            buffer.copy_(buffers[name])
    if changed := dict(before.items() ^ _given(model).items()):
        raise ValueError(f"recipe {method.recipe.name}: quantize changes {min(changed)} {OF_THE_MODEL}")
    _refuse_other_than_said(method, model, targets, result)
    weights = {target.name: target.weight for target in targets}
    return result, [describe(name, quantized, weights[name]) for name, quantized in result.layers.items()]


def to_cpu(weight: QuantizedWeight) -> QuantizedWeight:
    """The same quantized weight in main memory."""
    moved = {name: tensor.cpu() for name, tensor in weight.grid.tensors().items()}
    grid = type(weight.grid).from_tensors(moved, weight.grid.bits, weight.grid.shape)
    in_scale = None if weight.in_scale is None else weight.in_scale.cpu()
    return QuantizedWeight(weight.packed.cpu(), grid, weight.shape, in_scale)


def describe(name: str, quantized: QuantizedWeight, weight: torch.Tensor) -> dict[str, Any]:
    """Error and size of one layer: ``mse`` per weight, and ``relative_error`` = squared error / squared weights.

    ``clipped_error`` is the part of the latter that lies beyond the outermost levels of a group, in the space where it
    is rounded: squared distance of its weights to the range of its levels, over the squared weights.
    """
    refuse_underflow(name, quantized, weight)
    beyond, inside = _beyond(quantized, weight)
    bits = quantized.formula_bits() / weight.numel()
    return compare(name, weight, quantized.dequantize(), bits) | {"clipped_error": beyond / inside if inside else 0.0}


@torch.no_grad()
def compare(name: str, weight: torch.Tensor, decoded: torch.Tensor, bits: float) -> dict[str, Any]:
    """What is said of any layer: the first part of `describe`."""
    error = power = 0.0
    width = weight.shape[-1]
    rows_at_once = max(1, (1 << 20) // width)
    full = weight.reshape(-1, width).to(decoded.device).split(rows_at_once)
    for rows, back in zip(full, decoded.reshape(-1, width).split(rows_at_once), strict=True):
        error += float((back - rows.float()).double().square().sum())
        power += float(rows.double().square().sum())
    return {
        "name": name,
        "shape": list(weight.shape),
        "mse": error / weight.numel(),
        "relative_error": error / power if power else 0.0,
        "bits_per_weight": bits,
        "status": "ok",
    }


def _beyond(quantized: QuantizedWeight, weight: torch.Tensor) -> tuple[float, float]:
    """Squared distance of the weights to the range of their levels, and squared weights, both as they are rounded."""
    device = quantized.packed.device
    scale = None if quantized.in_scale is None else quantized.in_scale.to(device).float()
    rows, groups = quantized.grid.shape
    levels = quantized.grid.levels()  # [rows, groups, 2^bits]
    beyond = power = 0.0
    flat = weight.reshape(rows, -1)
    for start in range(0, rows, step := max(1, (1 << 20) // flat.shape[1])):
        values = flat[start : start + step].to(device).float()
        values = (values if scale is None else values * scale.repeat(values.shape[1] // len(scale))).unflatten(
            1, (groups, -1)
        )
        near = levels[start : start + step]
        inside = values.clamp(near.amin(-1, keepdim=True), near.amax(-1, keepdim=True))
        beyond += float((values - inside).double().square().sum())
        power += float(values.double().square().sum())
    return beyond, power


def refuse_underflow(name: str, quantized: QuantizedWeight, weight: torch.Tensor) -> None:
    """Refuse groups too small for a 16-bit scale, whose levels are no better than zeros; groups of zeros are fine."""
    values = weight if quantized.in_scale is None else weight * quantized.in_scale.to(weight)
    groups = values.reshape(math.prod(quantized.grid.shape), -1)  # [rows * groups, n]
    exact = torch.promote_types(groups.dtype, torch.float32)
    mean = torch.linalg.vector_norm(groups, 1, -1, dtype=exact) / groups.shape[-1]
    tiny = (mean > 0) & (mean < SMALLEST_SCALE)
    if not tiny.any():
        return
    original = weight.reshape(groups.shape)[tiny].double()
    decoded = quantized.dequantize().reshape(groups.shape).to(weight.device)[tiny].double()
    lost = int(((decoded - original).square().sum(-1) >= original.square().sum(-1)).sum())
    if lost:
        raise ValueError(
            f"layer {name}: {lost} of {len(groups)} groups are not zero, but below the smallest 16-bit scale (6e-8): "
            "nothing of them would be left"
        )


def formula_bytes(model: Any) -> int:
    """Bytes that the tensors of a model take on disk: codes and scales by their formula, the rest as it is."""
    total, seen = 0.0, set()
    inside = set()
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight):
            total += module.quantized().formula_bits() / 8
            inside |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers(recurse=False)}
    for name, tensor in model.state_dict().items():
        if name not in inside and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            total += tensor.numel() * tensor.element_size()
    return math.ceil(total)
