"""Weights in bfloat16 learn as those in float32 do, whatever the rate."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from r2q.training.options import TrainingOptions
from r2q.training.schedule import RoundingAdamW, make_optimizer, rounded_by_chance, take_step
from r2q.training.state import Store
from tests.training.test_trainer import OPTIONS, assert_same, train

CPU = torch.device("cpu")


@pytest.mark.parametrize("value", [0.02, -0.02, 1 + 2**-10, 3e-39, -7e30, 0.5, 0.0])
def test_rounding_by_chance_goes_to_both_neighbours_and_is_right_on_average(value: float) -> None:
    many = torch.full((200_000,), value)
    found = rounded_by_chance(many).float()
    bits = many[:1].view(torch.int32) & -(1 << 16)
    low, high = bits.view(torch.float32).item(), (bits + (1 << 16)).view(torch.float32).item()  # towards zero, away
    part = (many[0].item() - low) / (high - low)
    assert set(found.tolist()) == ({low, high} if part else {low})
    spread = math.sqrt(part * (1 - part) / len(many))
    assert abs(float((found == high).double().mean()) - part) <= 5 * spread


def walk(latent: Any, steps: int, rate: float, **options: Any) -> torch.Tensor:
    """How far 10,000 weights of 5/256 go in steps along a gradient of one."""
    weight = nn.Parameter(torch.full((100, 100), 5 / 256, dtype=getattr(torch, latent)))
    wanted = TrainingOptions(latent=latent, learning_rate=rate, steps=steps, **options)
    optimizer = make_optimizer(wanted, [weight], CPU)
    for step in range(1, steps + 1):
        weight.grad = torch.ones_like(weight)
        take_step(optimizer, wanted, step, CPU)
    return 5 / 256 - weight.detach().double()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_far_below_the_digits_of_a_weight_add_up(decay: float) -> None:
    """AdamW moves by the rate a step; two bfloat16 numbers there are 1.2e-4 apart. To nearest nothing moved."""
    steps, rate = 50, 8e-6
    moved, exact = (walk(latent, steps, rate, weight_decay=decay) for latent in ("bfloat16", "float32"))
    assert float(exact.mean()) == pytest.approx(steps * rate * (1 + decay * 5 / 256), rel=1e-3)
    spread = math.sqrt(steps * rate * 2**-13 / moved.numel())
    assert abs(float(moved.mean() - exact.mean())) < 6 * spread < steps * rate / 20


def test_what_decays_decays() -> None:
    """Second moments lose a thousandth a step, half of what bfloat16 can tell: to nearest they kept their size."""
    weight = nn.Parameter(torch.zeros(10_000, dtype=torch.bfloat16))
    optimizer = RoundingAdamW([weight], 1e-3, (0.9, 0.999), 0.0)
    for step in range(500):
        weight.grad = torch.full_like(weight, float(step == 0))
        optimizer.step()
    square = optimizer.state[weight]["exp_avg_sq"].double().mean()
    assert float(square) == pytest.approx(1e-3 * 0.999**499, rel=0.02)


def test_in_float32_it_is_the_optimizer_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(7, 5, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    pair = (
        RoundingAdamW([ours], 1e-2, (0.9, 0.99), 0.1),
        torch.optim.AdamW([theirs], 1e-2, (0.9, 0.99), weight_decay=0.1),
    )
    for _ in range(20):
        ours.grad = torch.randn(7, 5, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in pair:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_chance_is_the_same_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIONS, "latent", "bfloat16")
    save = Store.save

    def save_and_stop(self: Store, name: str, state: Any) -> None:
        save(self, name, state)
        if state["step"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run")
    assert_same(train(tmp_path / "run"), train(tmp_path / "whole"))
