r"""Losses per token, computed over a few tokens at a time.

With T and S the distributions of teacher and student at one position (vocabulary v), all in nats:

    forward_kl   KL(T || S) = sum_v T_v (log T_v - log S_v)         the usual distillation loss; also LLM-QAT's
    reverse_kl   KL(S || T)
    jsd          beta KL(T || M) + (1 - beta) KL(S || M), M = beta T + (1 - beta) S, beta = 1/2
    cakld        gamma KL(S || T) + (1 - gamma) KL(T || S)          BitDistiller (arXiv 2402.10631)
    ce           -log S_label                                        plain training

Everything is a mean over the predicted tokens that count. BitDistiller's code sums over tokens and means over rows, so
its curves and gradient norms grow with the length of a row; these do not, and a learning rate with Adam means the same
for both, but for the clipping of gradients.

gamma has two published meanings, both offered: BitDistiller's code takes the mean of the teacher's largest probability
(over its eleven first batches divided by ten, paddings included: about a tenth too high; here the mean of what was
counted), its paper the mean probability that the teacher gives to the label.

Logits of all tokens are never in memory at once: final hidden states are cut into chunks, and each chunk's logits are
made, used, and made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

Head = Callable[[torch.Tensor], torch.Tensor]
DISTILLING = ("forward_kl", "reverse_kl", "jsd", "cakld")


class Sums(NamedTuple):
    """Sums over the tokens that count: of the loss, of both divergences (NaN without a teacher), and their number."""

    loss: torch.Tensor
    forward_kl: torch.Tensor
    reverse_kl: torch.Tensor
    tokens: int


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(P || Q) per token from log probabilities ``[tokens, vocab]``; 0 log 0 = 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def js_divergence(log_t: torch.Tensor, log_s: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """The generalized Jensen-Shannon divergence per token."""
    weights = torch.tensor([beta, 1 - beta], device=log_t.device, dtype=log_t.dtype).log()
    middle = torch.logaddexp(log_t + weights[0], log_s + weights[1])
    return beta * divergence(log_t, middle) + (1 - beta) * divergence(log_s, middle)


def token_losses(
    kind: str, student: torch.Tensor, teacher: torch.Tensor | None, labels: torch.Tensor, gamma: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, KL(T || S) and KL(S || T) of each token.

    Args:
        kind: ``ce`` or one of ``DISTILLING``.
        student, teacher: logits ``[tokens, vocab]``; the teacher may be missing for ``ce``.
        labels: ``[tokens]``.
        gamma: the confidence coefficient of ``cakld``.
    """
    log_s = student.float().log_softmax(-1)
    if teacher is None:
        if kind != "ce":
            raise ValueError(f"loss {kind} needs a teacher")
        nll = -log_s.gather(-1, labels[:, None])[:, 0]
        return nll, torch.full_like(nll, torch.nan), torch.full_like(nll, torch.nan)
    log_t = teacher.float().log_softmax(-1)
    forward, reverse = divergence(log_t, log_s), divergence(log_s, log_t)
    if kind == "ce":
        loss = -log_s.gather(-1, labels[:, None])[:, 0]
    elif kind == "forward_kl":
        loss = forward
    elif kind == "reverse_kl":
        loss = reverse
    elif kind == "cakld":
        loss = gamma * reverse + (1 - gamma) * forward
    elif kind == "jsd":
        loss = js_divergence(log_t, log_s)
    else:
        raise ValueError(f"unknown loss {kind}: ce, {', '.join(DISTILLING)}")
    return loss, forward.detach(), reverse.detach()


def chunked_losses(
    kind: str,
    hidden: torch.Tensor,
    head: Head,
    teacher_hidden: torch.Tensor | None,
    teacher_head: Head | None,
    labels: torch.Tensor,
    gamma: float = 0.5,
    chunk: int = 4096,
) -> Sums:
    """Sums of :func:`token_losses`, ``chunk`` tokens at a time; gradients flow into ``hidden`` and the head's weights.

    Args:
        hidden, teacher_hidden: final hidden states ``[tokens, features]``.
        head, teacher_head: hidden states -> logits.
        labels: ``[tokens]``.
    """

    def part(h: torch.Tensor, t: torch.Tensor | None, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            teacher = None if t is None or teacher_head is None else teacher_head(t)
        return tuple(x.sum() for x in token_losses(kind, head(h), teacher, y, gamma))

    count = labels.shape[0]
    if count == 0:  # nothing counts; the sum of nothing keeps the graph, which all processes have to walk
        none = hidden.sum()
        return Sums(none, none.detach(), none.detach(), 0)
    sums = [torch.zeros((), device=hidden.device) for _ in range(3)]
    for start in range(0, count, chunk):
        rows = slice(start, start + chunk)
        t = None if teacher_hidden is None else teacher_hidden[rows]
        if count <= chunk or not torch.is_grad_enabled():
            found = part(hidden[rows], t, labels[rows])
        else:
            found = checkpoint(part, hidden[rows], t, labels[rows], use_reentrant=False)
        sums = [total + new for total, new in zip(sums, found, strict=True)]
    return Sums(sums[0], sums[1], sums[2], count)


def confidence(kind: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of the teacher's confidence: ``max_probability`` (code) or ``label_probability`` (paper)."""
    p = logits.float().softmax(-1)
    if kind == "max_probability":
        return p.amax(-1).sum()
    if kind == "label_probability":
        return p.gather(-1, labels[:, None]).sum()
    raise ValueError(f"unknown confidence {kind}: max_probability or label_probability")


class SplitModel:
    """A causal language model as decoder and head, so that logits are made for a few tokens at a time.

    Args:
        model: the model.
        run: runs a function as the model's forward pass (see :mod:`r2q.training.processes`); plain calls by default.

    Raises:
        ValueError: head(decoder(x)) are not the model's logits (scaled or capped logits): such a model needs more.
    """

    def __init__(self, model: Any, run: Callable[[Callable[[], Any]], Any] = lambda work: work()) -> None:
        self.model, self.base, self.run = model, model.base_model, run
        self.head: Head = model.get_output_embeddings()
        tokens = torch.arange(3, 7, device=model.device)[None]
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits
            if not torch.equal(run(lambda: self.head(self.hidden(tokens))), logits):
                raise ValueError(f"{type(model).__name__}: its logits are not its output layer's, not supported")

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids ``[rows, length]`` -> final hidden states ``[rows, length, features]``; inside of ``run``."""
        return self.base(input_ids=tokens, use_cache=False).last_hidden_state
