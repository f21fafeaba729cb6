"""GPTQ on a GPU beside the reference implementation (IST-DASLab/gptq), layer by layer and for a whole random model.

    git clone https://github.com/IST-DASLab/gptq REFERENCE
    python -m benchmarks.gptq --reference REFERENCE [--model] [--out gptq.json]

Layers are random with Llama-7B's shapes and groups of 128; inputs are correlated and have a few large channels, as real
ones do. Both sides get the same Hessian and quantize to round-to-nearest levels. The reference quantizes one layer at a
time; here layers that read the same input share the factor of the Hessian and are quantized together, so the blocks'
times are compared, too. ``floor`` is the time of the arithmetic alone at the rate of a large float32 matrix product,
measured in the same run: the factor (two thirds of in^3 operations) and the updates of later columns (out * in^2).
"""

import argparse
import contextlib
import importlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from baselines._error_feedback import factorize, quantize_rows
from baselines.rtn import RTN
from r2q.kernels.feedback import Steps, feedback_plain
from r2q.kernels.feedback_triton import feedback_triton
from r2q.models.calibration import Calibration
from r2q.models.moments import output_errors
from r2q.models.targets import list_targets
from r2q.quantization.method import Recipe, make_method

GROUP = 128
TOKENS = 32768
SHAPES = {  # what reads the same input: rows of each layer, columns
    "q, k, v": ([4096, 4096, 4096], 4096),
    "o": ([4096], 4096),
    "gate, up": ([11008, 11008], 4096),
    "down": ([4096], 11008),
}
BLOCKS = 32


def timed(function: Callable[[], Any], runs: int = 3) -> tuple[float, float, Any]:
    """Seconds of the first run, the median of the others, and the last result."""
    seconds = []
    result = None
    for _ in range(runs + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = function()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[0], sorted(seconds[1:])[len(seconds[1:]) // 2], result


def float32_rate(size: int = 8192) -> float:
    """Operations per second of a large float32 matrix product without TF32."""
    a, b = torch.randn(2, size, size, device="cuda")
    _, seconds, _ = timed(lambda: a @ b)
    return 2 * size**3 / seconds


def make_hessian(width: int) -> torch.Tensor:
    """2/n sum x x^T of correlated inputs with a few large channels."""
    generator = torch.Generator("cuda").manual_seed(width)
    mix = torch.randn(width, width, device="cuda", generator=generator) / width**0.5
    mix += 2 * torch.eye(width, device="cuda")
    mix[:, :: width // 16] *= 10
    total = torch.zeros(width, width, device="cuda")
    for _ in range(TOKENS // 4096):
        x = torch.randn(4096, width, device="cuda", generator=generator) @ mix
        total.addmm_(x.t(), x)
    return total * (2 / TOKENS)


def make_weight(rows: int, width: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(rows + width)
    return torch.randn(rows, width, device="cuda", generator=generator) * 0.02


def reference_layer(module: Any, weight: torch.Tensor, hessian: torch.Tensor, half: bool) -> torch.Tensor:
    """The reference's result for one layer; ``half`` rounds its scales to 16 bits, as stored ones are."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="cuda")
    layer.weight.data = weight.clone()
    gptq = module.GPTQ(layer)
    gptq.H = hessian.clone()
    gptq.quantizer = module.Quantizer()
    gptq.quantizer.configure(2, perchannel=True, sym=False, mse=False)
    if half:
        find = gptq.quantizer.find_params

        def find_half(x: torch.Tensor, weight: bool = False) -> None:
            find(x, weight=weight)
            low, high = x.amin(1).clamp_max(0), x.amax(1).clamp_min(0)
            gptq.quantizer.scale = gptq.quantizer.scale.half().float()
            gptq.quantizer.zero = torch.round(-low[:, None] / gptq.quantizer.scale).clamp(0, 3)
            assert (high >= low).all()

        gptq.quantizer.find_params = find_half
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        gptq.fasterquant(percdamp=0.01, groupsize=GROUP)
    return layer.weight.data


def error(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    change = quantized - weight
    return float(((change @ hessian) * change).double().sum() / ((weight @ hessian) * weight).double().sum())


def ours(weights: list[torch.Tensor], hessian: torch.Tensor) -> torch.Tensor:
    lattice = RTN(Recipe("bench", "rtn", f"g{GROUP}"))
    codes, grid = quantize_rows(torch.cat(weights), factorize(hessian, 0.01), lattice, GROUP)
    return grid.decode(codes.reshape(*grid.shape, -1)).reshape(codes.shape)


def layers(reference: Any) -> list[dict[str, Any]]:
    """One row per group of layers with the same input."""
    rate = float32_rate()
    print(f"float32 matrix product: {rate / 1e12:.1f} TFLOP/s")
    rows = []
    for name, (outs, width) in SHAPES.items():
        hessian = make_hessian(width)
        weights = [make_weight(out, width) + i * 1e-4 for i, out in enumerate(outs)]
        first, seconds, result = timed(lambda w=weights, h=hessian: ours(w, h))
        factor_seconds = timed(lambda h=hessian: factorize(h, 0.01))[1]
        single = timed(lambda w=weights, h=hessian: ours(w[:1], h))[1]
        row: dict[str, Any] = {"layers": name, "rows": sum(outs), "columns": width, "first": first, "seconds": seconds}
        row |= {"factor": factor_seconds, "one_layer": single}
        row["floor"] = (2 / 3 * width**3 + sum(outs) * width**2) / rate
        parts = result.split(outs)
        row["error"] = error(weights[0], parts[0], hessian)
        if reference is not None:
            cold, warm, theirs = timed(lambda w=weights[0], h=hessian: reference_layer(reference, w, h, False), 1)
            exact = reference_layer(reference, weights[0], hessian, True)
            row |= {"peer_first": cold, "peer": warm * len(outs), "ratio": warm * len(outs) / seconds}
            row["peer_error"] = error(weights[0], theirs, hessian)
            row["peer_error_16_bit_scales"] = error(weights[0], exact, hessian)
            row["equal_weights"] = float((exact == parts[0]).float().mean())
        print(json.dumps(row))
        rows.append(row)
        del hessian, weights, result, parts
        torch.cuda.empty_cache()
    return rows


def kernels() -> None:
    """The kernel alone, in several shapes of its program, and that it gives its twin's bits."""
    n = 128
    for rows in (4096, 22016):
        values = torch.randn(n, rows, device="cuda")
        factor = (torch.randn(n, n, device="cuda") * 0.1 + torch.eye(n, device="cuda")).triu()
        rule = Steps(torch.rand(1, rows, device="cuda") + 0.5, torch.randint(4, (1, rows), device="cuda").float(), 3)
        groups = torch.zeros(n, dtype=torch.int32, device="cuda")
        want = feedback_plain(values.clone(), factor, rule, groups)
        for tile, warps in ((16, 1), (32, 1), (32, 2), (64, 2), (64, 4), (128, 4), (128, 8)):
            call = lambda t=tile, w=warps: feedback_triton(values, factor, rule, groups, t, w)  # noqa: B023, E731
            _, seconds, got = timed(call, 9)
            same = all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
            print(f"kernel rows {rows} tile {tile} warps {warps}: {seconds * 1e6:.0f} us, bits equal {same}")


def model() -> dict[str, Any]:
    """A random Llama-7B: calibration forward passes (128 x 2048 tokens), Hessians, quantization."""
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=BLOCKS, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32000, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    network = network.cpu()
    torch.cuda.empty_cache()
    tokens = torch.randint(3, 32000, (128 + 16, 2048), generator=torch.Generator().manual_seed(0))
    data = Calibration(tokens[:128], tokens[128:], {"sha256": "random"}, torch.device("cuda"))
    targets = list_targets(network)
    rows = {}
    torch.cuda.reset_peak_memory_stats()
    for lattice in ("rtn", "r2q"):
        method = make_method(Recipe("bench", "gptq", f"g{GROUP}", options={"quantizer": lattice}))
        start = time.perf_counter()
        with torch.no_grad():
            result = method.quantize(network, targets, data)
        torch.cuda.synchronize()
        rows[lattice] = time.perf_counter() - start
        print(f"model {lattice}: {rows[lattice]:.1f} s", flush=True)
    start = time.perf_counter()
    output_errors(network, targets, result.layers, data)
    rows["output_errors"] = time.perf_counter() - start
    rows["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps(rows))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gptq", description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="a checkout of IST-DASLab/gptq")
    parser.add_argument("--model", action="store_true", help="also quantize a whole random Llama-7B")
    parser.add_argument("--out", type=Path, help="also write all numbers there (JSON)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark needs a GPU")
    reference = None
    if options.reference:
        sys.path.insert(0, str(options.reference))
        if not hasattr(transformers, "Conv1D"):  # where the reference expects it
            from transformers.pytorch_utils import Conv1D

            transformers.Conv1D = Conv1D
        reference = importlib.import_module("gptq")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    kernels()
    numbers: dict[str, Any] = {"layers": layers(reference)}
    names = ("floor s", "ours s", "peer s", "ratio", "error", "peer")
    print(f"\n{'layers':10} {'rows x columns':>14} " + " ".join(f"{name:>9}" for name in names))
    for row in numbers["layers"]:
        size = f"{row['rows']} x {row['columns']}"
        print(
            f"{row['layers']:10} {size:>14} {row['floor']:9.4f} {row['seconds']:9.4f} {row.get('peer', 0):9.3f} "
            f"{row.get('ratio', 0):9.1f} {row['error']:9.6f} {row.get('peer_error', 0):9.6f}"
        )
    if options.model:
        numbers["model"] = model()
    if options.out:
        options.out.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
