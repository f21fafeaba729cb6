"""Second moments of layer inputs, and what they say about the output error of a quantized layer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from r2q.models.blocks import Block, Seen, walk
from r2q.models.calibration import Calibration
from r2q.models.products import linear
from r2q.models.targets import Target
from r2q.quantization.method import QuantizedWeight


@contextmanager
def exact_float32() -> Iterator[None]:
    """While open, float32 matrix products on a GPU are float32 products, not TF32 ones."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def add_moment(total: torch.Tensor, x: torch.Tensor) -> None:
    """Add ``x^T x`` of ``x [tokens, in]`` to the float32 ``total [in, in]``, accumulated in float32.

    Products of two 16-bit floats are exact in float32, so on a GPU half-precision inputs go through the tensor cores
    as they are, an order of magnitude faster than float32 arithmetic. Their float32 sums are truncated, not rounded:
    1e-5 of the whole on an H200 (4096 tokens), where float32 arithmetic has 1e-7 and TF32 inputs would cost 3e-4.
    """
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
        total += torch.mm(x.t(), x, out_dtype=torch.float32)
    else:
        x = x.float().t()
        total += linear(x, x)


@torch.no_grad()
def second_moments(
    block: Block, groups: Sequence[Sequence[Target]] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Seen]]:
    """Mean of ``2 x x^T`` over the tokens that each group of targets reads: GPTQ's Hessian of the layer's output error.

    Returns:
        By the name of the first target of each group, float32 ``[in, in]`` (``[experts, in, in]`` for a stack) on the
        device; and, by the name of every target, what was seen. An expert that is never multiplied, even where it is
        shown all tokens (LongCat-Flash's identities), has nothing to weigh its inputs by: they count alike.

    Raises:
        ValueError: an input is not finite; names the layer.
    """
    chosen = block.groups if groups is None else groups
    totals: dict[str, torch.Tensor] = {}
    counts: dict[str, torch.Tensor] = {}
    for group in chosen:
        weight = block.weight(group[0].name)
        shape = *weight.shape[:-2], weight.shape[-1], weight.shape[-1]
        totals[group[0].name] = torch.zeros(shape, device=weight.device)
        counts[group[0].name] = torch.zeros(shape[:-2])

    def visit(name: str, expert: int | None, x: torch.Tensor) -> None:
        total, count = totals[name], counts[name]
        add_moment(total if expert is None else total[expert], x)
        (count if expert is None else count[expert]).add_(len(x))

    with exact_float32():
        seen = block.observe(visit, chosen)
    for name, total in totals.items():
        if block.data.minimum_tokens:  # then an expert that no token reaches is one that the model never multiplies
            total[counts[name] == 0] = torch.eye(total.shape[-1], device=total.device)
        total *= (2 / counts[name].clamp_min(1)).to(total.device)[..., None, None]
        if not torch.isfinite(torch.diagonal(total, dim1=-2, dim2=-1)).all():
            raise ValueError(f"{name}: its inputs on calibration text are not finite, or too large for float32")
    return totals, seen


@torch.no_grad()
def output_error(
    moment: torch.Tensor, weight: torch.Tensor, decoded: torch.Tensor, tokens: int | Sequence[int] = 1
) -> float:
    """Squared error of a layer's output over its squared output: ``tr(D H D^T) / tr(W H W^T)``, with D the difference.

    Args:
        moment: mean second moment of the inputs, ``[in, in]`` or ``[experts, in, in]``, up to a factor.
        weight, decoded: ``[out, in]`` or ``[experts, out, in]``.
        tokens: how many each expert sees, which is what it weighs; any number where there are none.
    """
    weight = weight.float()
    change = decoded.to(weight.device).float() - weight
    share = torch.as_tensor(tokens, dtype=torch.float64, device=weight.device)
    with exact_float32():
        error, power = (float(((m @ moment).mul_(m).double().sum((-1, -2)) * share).sum()) for m in (change, weight))
    return error / power if power else 0.0


@torch.no_grad()
def output_errors(
    model: Any, targets: Sequence[Target], layers: Mapping[str, QuantizedWeight], data: Calibration
) -> dict[str, float]:
    """Relative output error of every quantized layer on the held-out windows, each with the inputs that it has in the
    full-precision model: one yardstick for all methods, whatever they looked at.
    """
    errors = {}
    for block in walk(model, targets, replace(data, minimum_tokens=0), data.held_out):
        moments, seen = second_moments(block)
        for group in block.groups:
            for target in group:
                decoded = layers[target.name].dequantize()
                moment, tokens = moments[group[0].name], seen[target.name].tokens
                errors[target.name] = output_error(moment, block.weight(target.name), decoded, tokens)
    return errors
