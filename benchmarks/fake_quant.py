"""What fake quantization costs on a GPU: a training step of Llama-7B decoder layers with and without it, and bandwidth.

    python -m benchmarks.fake_quant [--layers 4] [--tokens 8192] [--out fake_quant.json]

Forward, backward and AdamW step in bfloat16, with each quantizer in its modes, timed in turn (median of rounds), so
that a slow moment hits all; ``compiled`` compiles the decoder blocks, as that option does. ``reference`` is the min-max
quantizer as BitDistiller's training code writes it (groups of 128, gradient through the scales).

Bandwidth: 2 bytes read and 2 written a weight, as a share of that of a copy of the same size. Called from Python one
weight at a time, and replayed from a CUDA graph, which leaves the kernels alone.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.training import GROUP, LENGTH, SHAPES, configuration
from r2q.models.targets import Target
from r2q.quantization.method import Recipe, make_method
from r2q.training.fake_quant import Latent, install

SHAPE = SHAPES["7b"]


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


class Reference(Latent):
    def weight(self) -> torch.Tensor:
        return reference(self.target.weight)


class Eager(Latent):
    """The weight method's own code at every step, instead of the one-pass version."""

    def weight(self) -> torch.Tensor:
        self.quantizer.fused = False
        return self.quantizer(self.target.weight)


def method(name: str) -> Any:
    return make_method(Recipe(name, name, f"g{GROUP}"))


MODES: dict[str, Callable[[Target], Latent] | None] = {
    "none": None,
    "r2q": lambda target: Latent(target, method("r2q"), "identity"),
    "rtn": lambda target: Latent(target, method("rtn"), "identity"),
    "r2q eager": lambda target: Eager(target, method("r2q"), "identity"),
    "reference": lambda target: Reference(target, method("rtn"), "identity"),
}


def decoder(count: int) -> tuple[Any, list[Target]]:
    """A Llama without embeddings' cost: `count` decoder layers, and its linears."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.LlamaModel(configuration("7b", count))
        torch.set_default_dtype(torch.float32)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return model, [Target(name, module, "weight", 0) for name, module in layers]


def milliseconds(run: Callable[[], None], repeats: int = 3) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats


def step_times(count: int, tokens: int, rounds: int, compiled: bool) -> dict[str, list[float]]:
    """Milliseconds of a step by mode, round by round."""
    runs = {}
    for name, make in MODES.items():
        if compiled and name in ("r2q eager", "reference"):
            continue
        model, targets = decoder(count)
        if make is not None:
            install([make(target) for target in targets])
        if compiled:
            for block in model.layers:
                block.forward = torch.compile(block.forward)
        optimizer = torch.optim.AdamW(list(model.layers.parameters()), lr=1e-6, fused=True)
        hidden = torch.randn(tokens // LENGTH, LENGTH, SHAPE["hidden_size"], device="cuda", dtype=torch.bfloat16)

        def run(model: Any = model, optimizer: Any = optimizer, hidden: torch.Tensor = hidden) -> None:
            model(inputs_embeds=hidden, use_cache=False).last_hidden_state.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        for _ in range(3):
            run()
        runs[name] = run
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(milliseconds(run))
    return times


@torch.no_grad()
def copy_shares(rounds: int) -> dict[str, Any]:
    """Share of a copy's bandwidth, forward only, on one 11008 x 4096 weight of four in turn: called, and replayed."""
    weights = [torch.randn(11008, 4096, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(4)]
    outs = [torch.empty_like(w) for w in weights]
    runs: dict[str, Callable[[int], Any]] = {"copy": lambda i: outs[i].copy_(weights[i])}
    for mode in ("r2q", "rtn", "r2q eager"):
        make = MODES[mode]
        assert make is not None
        linears = [nn.Linear(1, 1, bias=False) for _ in weights]
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight = nn.Parameter(weight)
        layers = [make(Target("w", linear, "weight", 0)) for linear in linears]
        runs[mode] = lambda i, layers=layers: layers[i].weight()
    runs["reference"] = lambda i: reference(weights[i])
    called: dict[str, Callable[[], Any]] = {
        name: lambda run=run: [run(i) for i in range(4)]  # type: ignore[misc]
        for name, run in runs.items()
    }
    graphs: dict[str, Callable[[], Any]] = {}
    for name in ("copy", "r2q", "rtn"):
        called[name]()  # compiled by now
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            called[name]()
        graphs[name] = graph.replay
    shares: dict[str, Any] = {}
    for label, kind in (("called", called), ("replayed", graphs)):
        for run in kind.values():
            run()
        times: dict[str, list[float]] = {name: [] for name in kind}
        for _ in range(rounds):
            for name, run in kind.items():
                times[name].append(milliseconds(run))
        medians = {name: statistics.median(values) for name, values in times.items()}
        shares[label] = {name: medians["copy"] / time for name, time in medians.items()}
        shares[label]["copy, TB/s"] = 4 * sum(w.numel() for w in weights) / medians["copy"] / 1e9
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8192, help="a step; rows have 1024")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    numbers: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    numbers["share of copy bandwidth"] = copy_shares(given.rounds)
    for compiled in (True, False):
        times = step_times(given.layers, given.tokens, given.rounds, compiled)
        label = f"{given.layers} layers, {given.tokens} tokens, blocks " + ("compiled" if compiled else "eager")
        numbers[label] = {
            name: {
                "ms": round(statistics.median(values), 2),
                "ratio": round(statistics.median(a / b for a, b in zip(values, times["none"], strict=True)), 4),
            }
            for name, values in times.items()
        }
        torch.cuda.empty_cache()
    print(json.dumps(numbers, indent=1))
    if given.out:
        given.out.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
