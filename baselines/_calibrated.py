"""What the methods that look at calibration text share: their checks, sampled layer inputs, the search for ranges."""

from collections.abc import Callable, Iterable, Sequence

import torch

from r2q.models.blocks import Block
from r2q.models.targets import Target
from r2q.quantization.grid import AffineGrid
from r2q.quantization.method import QuantizedWeight, Recipe, in_chunks

Lattice = Callable[[torch.Tensor, int], AffineGrid]  # values [rows, groups, n], bits
Inputs = dict[tuple[str, int | None], torch.Tensor]  # by target and expert: float32 [tokens, in]


def group_sizes(recipe: Recipe, targets: Sequence[Target]) -> dict[str, int]:
    """The group size of every target, before any work.

    Raises:
        ValueError: a group size does not divide a layer, with its name, or the granularity is the whole tensor, of
            which no part of an output can be told.
    """
    sizes = {}
    for target in targets:
        size = recipe.group_size(target.weight.shape[-1], target.name)
        if size is None:
            raise ValueError(
                f"recipe {recipe.name}: method {recipe.method} needs groups: g<size> or channel, not tensor"
            )
        sizes[target.name] = size
    return sizes


def is_query_or_key(name: str) -> bool:
    """Whether a layer makes queries or keys, alone or with values, whose ranges AWQ and BitDistiller leave alone."""
    last = name.rsplit(".", 1)[-1]
    return last.startswith(("q_", "k_", "kv_")) or any(word in last for word in ("qkv", "query", "key"))


def matrices(weight: torch.Tensor) -> list[tuple[int | None, torch.Tensor]]:
    """A weight as ``(expert, [out, in])``: itself without an expert, or every expert of a stack."""
    return [(None, weight)] if weight.dim() == 2 else list(enumerate(weight))


def sample_inputs(block: Block, groups: Sequence[Sequence[Target]], limit: int) -> Inputs:
    """Every ``n // limit``-th of the n tokens that a target (or an expert) reads: at least ``limit``, or all.

    As ``input[0::n // limit]`` in AWQ and BitDistiller, which fail for fewer than ``limit`` tokens. Targets of a group
    read the same, so it stands under the name of the first.

    Raises:
        ValueError: no token reaches some expert.
    """
    counts: dict[tuple[str, int | None], int] = {}

    def count(name: str, expert: int | None, x: torch.Tensor) -> None:
        counts[name, expert] = counts.get((name, expert), 0) + len(x)

    taken: dict[tuple[str, int | None], list[torch.Tensor]] = {}
    passed: dict[tuple[str, int | None], int] = {}

    def take(name: str, expert: int | None, x: torch.Tensor) -> None:
        place = name, expert
        step = max(1, counts[place] // limit)
        start = -passed.get(place, 0) % step
        passed[place] = passed.get(place, 0) + len(x)
        taken.setdefault(place, []).append(x[start::step].float())

    block.observe(count, groups)
    block.observe(take, groups)
    for target in (group[0] for group in groups):
        for expert in range(len(target.weight)) if target.is_stack else ():
            if (target.name, expert) in counts:
                continue
            if block.data.minimum_tokens:  # shown all tokens, and never multiplied: any range does
                taken[target.name, expert] = [torch.zeros(1, target.weight.shape[-1], device=block.data.device)]
            else:
                raise ValueError(
                    f"layer {target.name}: no calibration token reaches expert {expert}; use more windows, or a "
                    "calibration.minimum_tokens above 0"
                )
    return {place: torch.cat(parts) for place, parts in taken.items()}


def error_roots(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """For each group a matrix R with ``|R d|^2 = mean over tokens of (x . d)^2`` for every d.

    Args:
        inputs: ``[tokens, in]``.
        size: group size n.

    Returns:
        ``[groups, min(tokens, n), n]``: the tokens themselves, or, where it is smaller, R of their QR factorization.
    """
    tokens = inputs.reshape(len(inputs), -1, size).transpose(0, 1) / len(inputs) ** 0.5  # [groups, tokens, n]
    return torch.linalg.qr(tokens, mode="r").R if len(inputs) > size else tokens.contiguous()


def search_range(
    values: torch.Tensor,
    roots: torch.Tensor,
    ranges: Callable[[torch.Tensor], Iterable[tuple[torch.Tensor, torch.Tensor]]],
    lattice: Lattice,
    bits: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The range of each group whose clamped, quantized weights change the group's share of the output least.

    The error of a group is the mean over tokens of (x . (w~ - w))^2, the sum running over the group's weights only.

    Args:
        values: ``[rows, groups, n]``.
        roots: of :func:`error_roots`.
        ranges: candidates ``(low, high)``, each ``[rows, groups, 1]``, for some rows; the first of equals wins.
        lattice: levels for clamped values.
        bits: bits of a code.

    Returns:
        ``low`` and ``high``, each ``[rows, groups, 1]``.
    """
    lows, highs = [], []
    for part in in_chunks(values):
        least = part.new_full((*part.shape[:2], 1), float("inf"))
        best_low, best_high = torch.zeros_like(least), torch.zeros_like(least)
        for low, high in ranges(part):
            clamped = part.clamp(low, high)
            grid = lattice(clamped, bits)
            difference = (grid.decode(grid.encode(clamped)) - part).transpose(0, 1)  # [groups, rows, n]
            error = torch.bmm(difference, roots.mT).square_().sum(-1).mT.unsqueeze(-1)  # [rows, groups, 1]
            better = error < least
            least = torch.where(better, error, least)
            best_low, best_high = torch.where(better, low, best_low), torch.where(better, high, best_high)
        lows.append(best_low)
        highs.append(best_high)
    return torch.cat(lows), torch.cat(highs)


def encode(
    weight: torch.Tensor, values: torch.Tensor, lattice: Lattice, bits: int, in_scale: torch.Tensor | None = None
) -> QuantizedWeight:
    """``values [rows, groups, n]`` in place of ``weight`` (for its shape), quantized on their own lattice."""
    grid = lattice(values, bits)
    return QuantizedWeight.from_codes(grid.encode(values).reshape(weight.shape), grid, in_scale)
