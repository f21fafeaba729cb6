r"""Losses per token, computed over a few tokens at a time.

With T and S the distributions of teacher and student at one position (vocabulary v), all in nats:

    forward_kl   KL(T || S) = sum_v T_v (log T_v - log S_v)         the usual distillation loss; also LLM-QAT's
    reverse_kl   KL(S || T)
    jsd          KL(T || M) / 2 + KL(S || M) / 2, M = (T + S) / 2
    cakld        gamma KL(S || T) + (1 - gamma) KL(T || S)          BitDistiller (arXiv 2402.10631)
    ce           -log S_label                                        plain training

Everything is a mean over the predicted tokens that count. BitDistiller's code sums over tokens and means over rows, so
its curves and gradient norms grow with the length of a row; these do not, and a learning rate with Adam means the same
for both, but for the clipping of gradients.

gamma has two published meanings, both offered: BitDistiller's code takes the mean of the teacher's largest probability
(over its eleven first batches divided by ten, paddings included: about a tenth too high; here the mean of what was
counted), its paper the mean probability that the teacher gives to the label.

Logits of all tokens are never in memory at once: final hidden states are cut into chunks, and each chunk's gradient is
taken while its logits are there, so that nothing is computed twice (as Liger-Kernel's fused linear losses do). On a GPU
the losses of a chunk are compiled: a few passes over logits in the number type of the layers' arithmetic, sums in
float32.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, get_args

import torch

from r2q.models.products import linear
from r2q.models.rehearsal import decoder_of
from r2q.training.options import Loss

Head = Callable[[torch.Tensor], torch.Tensor]
DISTILLING = tuple(loss for loss in get_args(Loss) if loss != "ce")


class Sums(NamedTuple):
    """Sums over the tokens that count: of the loss, of both divergences (NaN without a teacher), and their number.

    ``objective`` is the sum of the loss times the scale that was asked for; gradients flow from it alone.
    """

    loss: torch.Tensor
    forward_kl: torch.Tensor
    reverse_kl: torch.Tensor
    tokens: int
    objective: torch.Tensor


def _terms(p: torch.Tensor, log_ratio: torch.Tensor) -> torch.Tensor:
    """What each word adds to KL(P || Q), from P and log P - log Q ``[tokens, vocab]``; 0 log 0 = 0."""
    return torch.where(p > 0, p * log_ratio, 0.0)


def token_losses(
    kind: str, student: torch.Tensor, teacher: torch.Tensor | None, labels: torch.Tensor, gamma: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, KL(T || S) and KL(S || T) of each token, and the loss's gradient for the student's logits.

    With d KL(S || Q) / d logits = terms - S KL(S || Q), for a Q that is fixed, and for jsd's middle, too (what moves it
    cancels), and d KL(T || S) / d logits = S - T.

    Args:
        kind: ``ce`` or one of ``DISTILLING``.
        student, teacher: logits ``[tokens, vocab]``; the teacher may be missing for ``ce``.
        labels: ``[tokens]``.
        gamma: the confidence coefficient of ``cakld``.
    """
    log_s = student.float().log_softmax(-1)
    s, label = log_s.exp(), labels[:, None]
    if teacher is None:
        if kind != "ce":
            raise ValueError(f"loss {kind} needs a teacher")
        forward = reverse = torch.full_like(log_s[:, 0], torch.nan)
    else:
        log_t = teacher.float().log_softmax(-1)
        t, log_ratio = log_t.exp(), log_s - log_t
        terms = _terms(s, log_ratio)
        forward, reverse = -_terms(t, log_ratio).sum(-1), terms.sum(-1)
    if kind == "ce":
        loss, slope = -log_s.gather(-1, label)[:, 0], s.scatter_add(-1, label, torch.full_like(s[:, :1], -1))
    elif kind == "forward_kl":
        loss, slope = forward, s - t
    elif kind == "reverse_kl":
        loss, slope = reverse, terms - s * reverse[:, None]
    elif kind == "cakld":
        loss = gamma * reverse + (1 - gamma) * forward
        slope = (gamma * terms).addcmul(s, (1 - gamma - gamma * reverse)[:, None]).sub(t, alpha=1 - gamma)
    elif kind == "jsd":
        middle = torch.logaddexp(log_t, log_s) - math.log(2)
        terms = _terms(s, log_s - middle)
        own = terms.sum(-1)
        loss, slope = (_terms(t, log_t - middle).sum(-1) + own) / 2, (terms - s * own[:, None]) / 2
    else:
        raise ValueError(f"unknown loss {kind}: ce, {', '.join(DISTILLING)}")
    return loss, forward, reverse, slope


def _sums(*args: Any) -> tuple[torch.Tensor, ...]:
    """Sums of :func:`token_losses`."""
    return tuple(x.sum() for x in token_losses(*args)[:3])


def _sums_and_slope(*args: Any) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Sums of :func:`token_losses`, and the gradient of the loss's sum for the student's logits, in their type."""
    *losses, slope = token_losses(*args)
    return tuple(x.sum() for x in losses), slope.to(args[1].dtype)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same in a few passes over the logits."""
    return torch.compile(function)


class Job(NamedTuple):
    """What :func:`chunked_losses` is asked for, but for what gradients flow into."""

    kind: str
    teacher_hidden: torch.Tensor | None
    teacher_head: Head | None
    labels: torch.Tensor
    gamma: float
    chunk: int
    scale: torch.Tensor  # a number

    def slices(self) -> list[slice]:
        """The chunks."""
        return [slice(start, start + self.chunk) for start in range(0, len(self.labels), self.chunk)]

    @torch.no_grad()
    def part(self, function: Callable[..., Any], rows: slice, logits: torch.Tensor) -> Any:
        """One of the functions above, for some tokens, given the student's logits ``[tokens, vocab]``."""
        known = self.teacher_hidden is not None and self.teacher_head is not None
        teacher = self.teacher_head(self.teacher_hidden[rows]) if known else None  # type: ignore[misc, index]
        labels = self.labels[rows]
        if logits.is_cuda:
            function = _compiled(function)
            for tensor in (logits, labels) if teacher is None else (logits, teacher, labels):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return function(self.kind, logits, teacher, labels, self.gamma)


class _GradientAtOnce(torch.autograd.Function):
    """Loss of a linear head, whose gradient is taken chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, job: Job
    ) -> tuple[torch.Tensor, ...]:
        learns = ctx.needs_input_grad[1:3]
        inputs = [None if x is None else x.detach() for x in (weight, bias)]
        learn = [x.requires_grad_() for x, needed in zip(inputs, learns, strict=True) if x is not None and needed]
        slopes = [torch.zeros_like(x) for x in learn]
        of_hidden = torch.empty_like(hidden)
        sums = torch.zeros(3, device=hidden.device)
        for rows in job.slices():
            with torch.enable_grad():
                part = hidden[rows].detach().requires_grad_()
                logits = linear(part, *inputs)  # type: ignore[arg-type]
            found, slope = job.part(_sums_and_slope, rows, logits.detach())
            of_hidden[rows], *gradients = torch.autograd.grad(logits, [part, *learn], slope)
            for total, gradient in zip(slopes, gradients, strict=True):
                total += gradient
            sums += torch.stack(found)
        ctx.save_for_backward(job.scale, of_hidden, *slopes)
        ctx.mark_non_differentiable(sums)
        return sums[0] * job.scale, sums

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale, *found = ctx.saved_tensors
        of_hidden, *slopes = (gradients[0] * scale * slope for slope in found)
        of_head = [slopes.pop(0) if needed else None for needed in ctx.needs_input_grad[1:3]]
        return of_hidden, *of_head, None


def chunked_losses(
    kind: str,
    hidden: torch.Tensor,  # final hidden states ``[tokens, features]``
    head: tuple[torch.Tensor, torch.Tensor | None],  # weight ``[vocab, features]`` and bias of the output layer
    teacher_hidden: torch.Tensor | None,
    teacher_head: Head | None,  # hidden states -> logits
    labels: torch.Tensor,  # ``[tokens]``
    gamma: float = 0.5,
    chunk: int = 4096,
    scale: float = 1.0,  # factor of the objective
) -> Sums:
    """Sums of :func:`token_losses`, ``chunk`` tokens at a time; gradients flow into ``hidden`` and the head."""
    factor = torch.full((), scale, device=hidden.device)
    job = Job(kind, teacher_hidden, teacher_head, labels, gamma, chunk, factor)
    count = labels.shape[0]
    if count == 0:  # nothing counts; the sum of nothing keeps the graph, which all processes have to walk
        none = hidden.sum()
        return Sums(none.detach(), none.detach(), none.detach(), 0, none)
    if torch.is_grad_enabled():
        objective, sums = _GradientAtOnce.apply(hidden, *head, job)
    else:
        sums = torch.zeros(3, device=hidden.device)
        for rows in job.slices():
            sums += torch.stack(job.part(_sums, rows, linear(hidden[rows], *head)))
        objective = sums[0] * factor
    return Sums(sums[0], sums[1], sums[2], count, objective)


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
        ValueError: its output layer is not linear, or head(decoder(x)) are not the model's logits (scaled or capped
            logits): such a model needs more.
    """

    def __init__(self, model: Any, run: Callable[[Callable[[], Any]], Any] = lambda work: work()) -> None:
        self.model, self.base, self.run = model, decoder_of(model), run
        self.head: Head = model.get_output_embeddings()
        tokens = torch.arange(3, 7, device=model.device)[None]
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits
            linear = isinstance(self.head, torch.nn.Linear)
            if not linear or not torch.equal(run(lambda: self.head(self.hidden(tokens))), logits):
                raise ValueError(f"{type(model).__name__}: its logits are not its output layer's, not supported")

    def hidden(self, tokens: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids ``[rows, length]`` -> final hidden states, of all places or of the counted ones of the flattened
        rows; ``[..., features]``. Inside of ``run``."""
        found = self.base(input_ids=tokens, use_cache=False).last_hidden_state
        return found if counted is None else found.flatten(0, 1).index_select(0, counted)
