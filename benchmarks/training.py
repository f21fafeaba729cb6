"""What fake quantization costs a training step on a GPU, and a whole distillation step of a random Llama-7B.

    python -m benchmarks.training [--layers 4] [--tokens 8192] [--model] [--out training.json]

First part: forward, backward and AdamW step of Llama-7B decoder layers in bfloat16, without quantization and with each
quantizer in its modes, timed in turn (median of rounds), so that a slow moment hits all. ``reference`` is the min-max
quantizer as BitDistiller's training code writes it (``train/qlinear.py``: groups of 128, gradient through the scales),
in eager PyTorch; ``copy`` is the share of the card's copy bandwidth at which weights go through the quantizer
(2 bytes read and 2 written a weight), against a copy of the same size.

Second part (``--model``): the trainer of this package on a random Llama-7B: teacher, student, loss on all tokens,
AdamW, activation checkpointing. Tokens a second and peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from r2q.models.apply import make_method
from r2q.models.targets import Target
from r2q.quantization.method import Recipe
from r2q.training.data import Rows, TrainingData
from r2q.training.fake_quant import Latent, install
from r2q.training.options import TrainingOptions
from r2q.training.student import Student, teacher_of
from r2q.training.trainer import Trainer

GROUP, LENGTH, VOCABULARY = 128, 1024, 32000
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "vocab_size": VOCABULARY,
    "attn_implementation": "sdpa",
}


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


def reference(weight: torch.Tensor) -> torch.Tensor:
    """Asymmetric min-max with everything in the autograd graph."""
    x = weight.reshape(-1, GROUP)
    high, low = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
    scales = (high - low).clamp(min=1e-5) / 3
    zeros = (-torch.round(low / scales)).clamp_(0, 3)
    return ((torch.clamp(_Round.apply(x / scales) + zeros, 0, 3) - zeros) * scales).reshape(weight.shape)


class _Reference(Latent):
    def weight(self) -> torch.Tensor:
        return reference(self.target.weight)


def method(name: str) -> Any:
    return make_method(Recipe(name, name, f"g{GROUP}"))


class Eager(Latent):
    """The weight method's own code at every step, instead of the one-pass version."""

    def weight(self) -> torch.Tensor:
        self.quantizer.fused = None
        return self.quantizer(self.target.weight)


MODES: dict[str, Callable[[Target], Latent] | None] = {
    "none": None,
    "r2q": lambda target: Latent(target, method("r2q"), "identity"),
    "rtn": lambda target: Latent(target, method("rtn"), "identity"),
    "r2q eager": lambda target: Eager(target, method("r2q"), "identity"),
    "reference": lambda target: _Reference(target, method("rtn"), "identity"),
}


def layers(count: int) -> tuple[nn.Module, list[Target]]:
    """A Llama without embeddings' cost: `count` decoder layers, and its linears."""
    config = transformers.LlamaConfig(**SHAPE, num_hidden_layers=count)
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.LlamaModel(config)
        torch.set_default_dtype(torch.float32)
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return model, [Target(name, module, "weight", 0) for name, module in found]


def milliseconds(run: Callable[[], None], repeats: int = 3) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats


def step_times(count: int, tokens: int, rounds: int, compiled: bool) -> dict[str, float]:
    """Median milliseconds of a step by mode."""
    runs = {}
    for name, make in MODES.items():
        if compiled and name in ("r2q eager", "reference"):
            continue
        model, targets = layers(count)
        if make is not None:
            install([make(target) for target in targets])
        parameters = list(model.layers.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
        hidden = torch.randn(tokens // LENGTH, LENGTH, SHAPE["hidden_size"], device="cuda", dtype=torch.bfloat16)
        forward = torch.compile(model) if compiled else model

        def run(forward: Any = forward, optimizer: Any = optimizer, hidden: torch.Tensor = hidden) -> None:
            forward(inputs_embeds=hidden, use_cache=False).last_hidden_state.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        for _ in range(3):
            run()
        runs[name] = run
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(milliseconds(run))
    return {name: statistics.median(found) for name, found in times.items()}


def copy_shares(rounds: int = 9) -> dict[str, float]:
    """Bandwidth of each quantizer over that of a copy, forward only, on one 11008 x 4096 weight of four in turn."""
    weights = [torch.randn(11008, 4096, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(4)]
    outs = [torch.empty_like(w) for w in weights]
    fused, eager = Latent, Eager
    runs: dict[str, Callable[[int], Any]] = {"copy": lambda i: outs[i].copy_(weights[i])}
    for name, kind, label in (("r2q", fused, "r2q"), ("rtn", fused, "rtn"), ("r2q", eager, "r2q eager")):
        made = [kind(Target("w", nn.Linear(1, 1), "weight", 0), method(name), "identity") for _ in weights]
        for one in made:
            if kind is eager:
                one.quantizer.fused = None
        runs[label] = lambda i, made=made: made[i].quantizer(weights[i])
    runs["reference"] = lambda i: reference(weights[i])
    found: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for run in runs.values():
            for i in range(4):
                run(i)
        for _ in range(rounds):
            for name, run in runs.items():
                found[name].append(milliseconds(lambda run=run: [run(i) for i in range(4)]))
    medians = {name: statistics.median(times) for name, times in found.items()}
    bytes_moved = 4 * sum(w.numel() for w in weights)
    shares = {name: medians["copy"] / time for name, time in medians.items()}
    return shares | {"copy_tb_per_s": bytes_moved / medians["copy"] / 1e9}


def whole_model(latent: str, rows: int, steps: int = 4) -> dict[str, float]:
    """Distillation of a random Llama-7B by the trainer: tokens a second, peak memory, milliseconds a step."""
    config = transformers.LlamaConfig(**SHAPE, num_hidden_layers=32)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    targets = [
        Target(name, module, "weight", 0)
        for name, module in model.model.layers.named_modules(prefix="model.layers")
        if isinstance(module, nn.Linear)
    ]
    options = TrainingOptions(
        quantizer="r2q",
        loss="cakld",
        coefficient=0.5,
        steps=steps,
        batch_rows=rows,
        latent=latent,  # type: ignore[arg-type]
        activation_checkpointing=True,
        evaluate_every=1000,
        checkpoint_every=0,
        gradients_every=0,
        flips_every=0,
    )
    tokens = torch.randint(3, VOCABULARY, (steps * rows + 1, LENGTH))
    made = Rows(tokens, torch.zeros(len(tokens), dtype=torch.int64), torch.full((len(tokens),), LENGTH))
    device = torch.device("cuda", 0)
    data = TrainingData(made[slice(0, steps * rows)], made[slice(steps * rows, None)], "text", "", device=device)
    torch.cuda.reset_peak_memory_stats()
    quantizer = make_method(Recipe("r2q", "r2q", f"g{GROUP}"))
    student = Student(model, targets, quantizer, "all", "identity", getattr(torch, latent), device)
    trainer = Trainer(student, teacher_of(model, torch.bfloat16, device), options, data, 0)
    trainer.run()
    seconds = statistics.median(row["seconds"] for row in trainer.rows[2:])
    return {
        "seconds_a_step": seconds,
        "tokens_per_second": rows * (LENGTH - 1) / seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "loss_first": trainer.rows[1]["loss"],
        "loss_last": trainer.rows[-1]["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8192, help="a step; rows have 1024")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", action="store_true", help="also the whole random Llama-7B")
    parser.add_argument("--rows", type=int, default=8, help="rows a step of the whole model")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}

    def note(name: str, value: Any) -> None:
        found[name] = value
        print(name, json.dumps(value), flush=True)
        if given.out:
            given.out.write_text(json.dumps(found, indent=1) + "\n")

    note("share of copy bandwidth", copy_shares())
    for compiled in (True, False):
        times = step_times(given.layers, given.tokens, given.rounds, compiled)
        label = f"{given.layers} layers, {given.tokens} tokens, " + ("compiled" if compiled else "eager")
        note(label, {name: [time, time / times["none"]] for name, time in times.items()})
        torch.cuda.empty_cache()
    if given.model:
        for latent in ("bfloat16", "float32"):
            try:
                note(f"Llama-7B, latent {latent}, {given.rows} rows", whole_model(latent, given.rows))
            except torch.OutOfMemoryError as error:
                note(f"Llama-7B, latent {latent}, {given.rows} rows", str(error).split(".")[0])
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
