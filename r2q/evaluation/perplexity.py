"""Token perplexity on joined windows: GPTQ's convention, the number that papers print.

Documents are joined with two newlines (or what the config says) and tokenized once, with whatever the tokenizer puts in
front; the ids are cut into floor(N / window) windows, the tail is dropped; each window stands alone and predicts its
last window - 1 tokens; the value is exp of the mean negative log-likelihood. Llama-2-7B on WikiText-2: 5.47 at 2048,
5.12 at 4096. It is not comparable with lm-eval's word perplexity (8.79 for the same model), nor between tokenizers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from r2q.evaluation.adapter import NotFinite
from r2q.evaluation.errors import delta_exp_mean
from r2q.evaluation.rows import rows_at_once


@dataclass(frozen=True)
class TokenPerplexity:
    """A perplexity and what it was measured on."""

    value: float  # exp(mean negative log-likelihood per token)
    stderr: float | None  # by the delta method over windows; None for a single window
    windows: int  # how many were scored
    tokens: int  # of the whole text, the dropped tail included
    first_token: int  # id of the text's first token, which tells whether a begin-of-text token stands there
    losses: list[float]  # mean negative log-likelihood per token of each window, in nats


def cut(ids: Sequence[int], window: int, windows: int | None = None) -> torch.Tensor:
    """The first `windows` windows of a text, or all: int64 [windows, window]; raises ValueError where it has none."""
    count = len(ids) // window
    if count == 0:
        raise ValueError(f"the text has {len(ids)} tokens, fewer than one window of {window}")
    count = count if windows is None else min(count, windows)
    return torch.tensor(ids[: count * window]).view(count, window)


@torch.no_grad()
def window_logits(model: Any, inputs: torch.Tensor, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits [window - 1, vocabulary], the tokens that they predict [window - 1]) of every window, on its device.

    Args:
        model: a causal language model.
        inputs: int64 [windows, window].
        batch_size: windows at once, at most; fewer when their logits would not fit.
    """
    size = rows_at_once(batch_size, inputs.shape[1] * model.config.get_text_config().vocab_size)
    for batch in inputs.split(size):
        batch = batch.to(model.device)
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]  # [rows, window - 1, vocabulary]
        yield from zip(logits, batch[:, 1:], strict=True)


def token_perplexity(
    model: Any, ids: Sequence[int], window: int, windows: int | None = None, batch_size: int = 1
) -> TokenPerplexity:
    """Perplexity of a text, or of its first ``windows`` windows; raises as `cut`, and NotFinite."""
    inputs = cut(ids, window, windows)
    means: list[float] = []
    for logits, targets in window_logits(model, inputs, batch_size):
        logits = logits.float()
        nll = logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]  # [window - 1]
        means.append(float(nll.double().mean()))
    if not all(map(math.isfinite, means)):
        raise NotFinite("token perplexity: a window's negative log-likelihood is not finite")
    value = math.exp(math.fsum(means) / len(means))  # OverflowError is an ArithmeticError: a failed row
    return TokenPerplexity(value, delta_exp_mean(means), len(means), len(ids), int(ids[0]), means)
