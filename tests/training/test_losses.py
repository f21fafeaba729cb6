"""Losses against direct sums, and in chunks against the whole."""

import math

import pytest
import torch

from r2q.training.losses import SplitModel, chunked_losses, confidence, token_losses
from tests.models.tiny import tiny_model

KINDS = ["ce", "forward_kl", "reverse_kl", "jsd", "cakld"]


def logits(tokens: int, vocabulary: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vocabulary", [2, 3, 7])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_losses_are_direct_sums(vocabulary: int, gamma: float) -> None:
    student, teacher = logits(5, vocabulary, 0), logits(5, vocabulary, 1)
    labels = torch.tensor([0, 1, 0, 1, 1])
    for row in range(5):
        s, t = (
            [math.exp(x) / sum(map(math.exp, z[row].tolist())) for x in z[row].tolist()] for z in (student, teacher)
        )
        kl = {
            "forward_kl": sum(a * math.log(a / b) for a, b in zip(t, s, strict=True)),
            "reverse_kl": sum(b * math.log(b / a) for a, b in zip(t, s, strict=True)),
            "ce": -math.log(s[int(labels[row])]),
            "jsd": sum(
                0.5 * a * math.log(a / ((a + b) / 2)) + 0.5 * b * math.log(b / ((a + b) / 2))
                for a, b in zip(t, s, strict=True)
            ),
        }
        kl["cakld"] = gamma * kl["reverse_kl"] + (1 - gamma) * kl["forward_kl"]
        for kind in KINDS:
            loss, forward, reverse, _ = token_losses(kind, student, teacher, labels, gamma)
            assert float(loss[row]) == pytest.approx(kl[kind], rel=1e-4, abs=1e-6)
            assert float(forward[row]) == pytest.approx(kl["forward_kl"], rel=1e-4, abs=1e-6)
            assert float(reverse[row]) == pytest.approx(kl["reverse_kl"], rel=1e-4, abs=1e-6)


def test_impossible_tokens_cost_nothing() -> None:
    """A probability that underflows to 0 adds 0, not NaN, to a divergence."""
    teacher = torch.tensor([[0.0, -torch.inf, 1.0]])
    student = torch.tensor([[0.0, 3.0, 1.0]])
    loss, _, _, slope = token_losses("forward_kl", student, teacher, torch.tensor([0]), 0.5)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_give_the_loss_and_gradients_of_the_whole(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    head, teacher_head = torch.nn.Linear(8, 11), torch.nn.Linear(8, 11)
    labels = torch.randint(11, (13,), generator=generator)
    teacher_hidden = torch.randn(13, 8, generator=generator)
    results = []
    for chunk in (100, 4):
        hidden = torch.randn(13, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        head.zero_grad()
        if chunk == 100:  # the whole, by autograd alone
            plain = token_losses(kind, head(hidden), teacher_head(teacher_hidden).detach(), labels, 0.4)
            (1.5 * plain[0].sum()).backward()
            results.append([*(x.sum() for x in plain[:3]), hidden.grad, head.weight.grad, head.bias.grad])
            hidden.grad = None
            head.zero_grad()
        sums = chunked_losses(
            kind, hidden, (head.weight, head.bias), teacher_hidden, teacher_head, labels, 0.4, chunk, scale=0.5
        )
        (3 * sums.objective).backward()
        results.append([sums.loss, sums.forward_kl, sums.reverse_kl, hidden.grad, head.weight.grad, head.bias.grad])
    assert sums.tokens == 13
    assert teacher_head.weight.grad is None
    for whole, *parts in zip(*results, strict=True):
        for part in parts:
            torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-6)


def test_both_confidences() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    labels = torch.tensor([1, 2])
    assert float(confidence("max_probability", p.log(), labels)) == pytest.approx(0.7 + 0.6)
    assert float(confidence("label_probability", p.log(), labels)) == pytest.approx(0.2 + 0.6)


def test_without_a_teacher_only_plain_training_works() -> None:
    student, labels = logits(2, 5, 0), torch.tensor([0, 4])
    loss, forward, *_ = token_losses("ce", student, None, labels, 0.5)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(student, labels, reduction="none"))
    assert forward.isnan().all()
    with pytest.raises(ValueError, match="cakld needs a teacher"):
        token_losses("cakld", student, None, labels, 0.5)


def test_a_model_that_scales_its_logits_is_refused() -> None:
    model = tiny_model("llama")
    SplitModel(model)
    forward = model.forward

    def scaled(*args: object, **keywords: object) -> object:
        found = forward(*args, **keywords)
        found.logits = found.logits * 0.5
        return found

    model.forward = scaled
    with pytest.raises(ValueError, match="not its output layer's"):
        SplitModel(model)
