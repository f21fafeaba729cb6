"""Which token rows go through the model to score a list of continuations, and where each one is read.

Two savings, neither of which asks the model for anything else:

- requests with the same input (a context with one-token choices) share a row, as in lm-eval;
- the choices of one question share its context: context, choice 1, choice 2, ... stand in one row, each choice with the
  positions it would have behind the context alone, and a mask that hides the other choices. In exact arithmetic this is
  the same computation; in float32 it agrees to about 1e-6, so it is used in float32 only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

Request = tuple[object, list[int], list[int]]  # (strings or None, context tokens, continuation tokens)

# Plain causal attention over explicit positions, and nothing that mixes tokens in another way (tested on each).
SHARING_FAMILIES = frozenset({"llama", "opt", "qwen2", "qwen3", "mistral", "mixtral", "qwen2_moe", "qwen3_moe"})
WORTH = 0.2  # share contexts where this part of the tokens is saved


@dataclass
class Row:
    """One row of a batch.

    Attributes:
        tokens: its input ids.
        branches: length of the shared context, then of each branch; empty for a plain causal row.
        reads: (number of the request, positions whose logits predict its continuation).
    """

    tokens: tuple[int, ...]
    branches: list[int]
    reads: list[tuple[int, list[int]]]

    @property
    def first_read(self) -> int:
        """The first position whose logits are needed."""
        return min(position for _, positions in self.reads for position in positions)


def split_long(requests: Sequence[Request], longest: int) -> tuple[list[Request], list[int]]:
    """Cut continuations that exceed the model's positions into pieces that do not; lm-eval stops with an assertion.

    As in lm-eval's rolling windows, the first piece follows the context, each further one the token before it, so that
    every token is predicted exactly once.

    Returns:
        The pieces, and for each the number of its request.
    """
    pieces: list[Request] = []
    owners: list[int] = []
    for number, (text, context, continuation) in enumerate(requests):
        start = 0
        while start < len(continuation):
            before = context if start == 0 else continuation[start - 1 : start]
            rest = len(continuation) - start
            count = rest if rest <= longest else max(1, longest + 1 - len(before))
            pieces.append((text, before, continuation[start : start + count]))
            owners.append(number)
            start += count
    return pieces, owners


def arrange(requests: Sequence[Request], longest: int, share: bool) -> list[list[Row]]:
    """Rows for all requests, longest first: those with a mask, those without.

    Args:
        requests: contexts and continuations as token ids; neither may be empty.
        longest: positions of the model; what exceeds them is cut off in front.
        share: let the continuations of one context share it.
    """
    groups: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for number, (_, context, continuation) in enumerate(requests):
        groups.setdefault(tuple(context), {}).setdefault(tuple(continuation[:-1]), []).append(number)
    shared: list[Row] = []
    plain: dict[tuple[int, ...], Row] = {}
    for shared_context, branches in groups.items():
        ends = [len(branch) for branch in branches]
        length = len(shared_context)
        fits = length + max(ends) <= longest
        saved = (len(branches) - 1) * length
        if share and fits and saved >= WORTH * (len(branches) * length + sum(ends)):
            shared.append(_shared_row(shared_context, branches, requests))
            continue
        for branch, numbers in branches.items():
            tokens = (*shared_context, *branch)[-longest:]
            row = plain.setdefault(tokens, Row(tokens, [], []))
            for number in numbers:
                count = len(requests[number][2])
                row.reads.append((number, list(range(len(tokens) - count, len(tokens)))))
    return [sorted(rows, key=lambda row: (-len(row.tokens), row.tokens)) for rows in (shared, list(plain.values()))]


def _shared_row(
    context: tuple[int, ...], branches: dict[tuple[int, ...], list[int]], requests: Sequence[Request]
) -> Row:
    row = Row(context, [len(context)], [])
    for branch, numbers in branches.items():
        start = len(row.tokens)
        row.tokens += branch
        row.branches.append(len(branch))
        positions = [len(context) - 1, *range(start, start + len(branch))]
        row.reads += [(number, positions) for number in numbers]
    return row


def inputs(rows: Sequence[Row], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the model reads: `input_ids` [rows, longest]; for shared rows also `position_ids` and `attention_mask`.

    The mask [rows, 1, longest, longest] is added to the scores: 0 where a token may look, the least number elsewhere.
    """
    ids = pad_sequence([torch.tensor(row.tokens) for row in rows], batch_first=True)
    if not rows[0].branches:
        return {"input_ids": ids}
    segments, positions = [], []
    for row in rows:
        context, ends = row.branches[0], row.branches[1:]
        segments.append(torch.tensor([0] * context + [i for i, n in enumerate(ends, 1) for _ in range(n)]))
        positions.append(torch.tensor([*range(context), *(context + i for n in ends for i in range(n))]))
    segment = pad_sequence(segments, batch_first=True, padding_value=-1)  # [rows, longest]
    keys, queries = segment[:, None, :], segment[:, :, None]
    seen = ((keys == 0) | (keys == queries)).tril()  # [rows, longest, longest]
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return {
        "input_ids": ids,
        "position_ids": pad_sequence(positions, batch_first=True),
        "attention_mask": mask[:, None],
    }
