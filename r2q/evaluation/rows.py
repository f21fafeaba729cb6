"""Which token rows go through the model to score a list of continuations, and where each one is read.

Requests with the same input (a context with one-token choices) share a row, as in lm-eval. Nothing else is shared:
letting longer choices of one question share its context, by a mask and by positions, holds for plain causal attention
only, and gained nothing in 16-bit models and about a sixth of the time of evaluation in float32 ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

LOGITS_AT_ONCE = 1 << 28  # float32 logits held at once (1 GiB): bounds the memory of long windows and wide vocabularies
Request = tuple[object, list[int], list[int]]  # (strings or None, context tokens, continuation tokens)


def rows_at_once(batch_size: int, logits_per_row: int) -> int:
    """Rows of a batch: the fixed size, or fewer when their logits would not fit."""
    return max(1, min(batch_size, LOGITS_AT_ONCE // max(1, logits_per_row)))


@dataclass
class Row:
    """One row of a batch."""

    tokens: tuple[int, ...]  # its input ids
    reads: list[tuple[int, range]]  # (number of the request, positions whose logits predict its continuation)

    @property
    def first_read(self) -> int:
        """The first position whose logits are needed."""
        return min(positions.start for _, positions in self.reads)


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


def arrange(requests: Sequence[Request], longest: int) -> list[Row]:
    """Rows for all requests, longest first.

    Args:
        requests: contexts and continuations as token ids; neither may be empty.
        longest: positions of the model; what exceeds them is cut off in front.
    """
    rows: dict[tuple[int, ...], Row] = {}
    for number, (_, context, continuation) in enumerate(requests):
        tokens = (*context, *continuation[:-1])[-longest:]
        reads = range(len(tokens) - len(continuation), len(tokens))
        rows.setdefault(tokens, Row(tokens, [])).reads.append((number, reads))
    return sorted(rows.values(), key=lambda row: (-len(row.tokens), row.tokens))
