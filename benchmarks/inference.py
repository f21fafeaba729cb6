"""Packed inference on one GPU beside PyTorch's bfloat16 and other 2-bit kernels, everything in one run.

    python benchmarks/inference.py OUT.csv [--peers]

Weights rotate so that each read comes from memory and not from the L2 cache; every time is a CUDA graph's, divided by
its calls: median and quartiles of 20 replays. Peers (gemlite, humming-kernels) have to be importable; gemlite is tuned
with "max" first, by several processes that fill Triton's cache, then by one that measures. Llama-7B and SmolLM2-135M
have random weights of the published shapes.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from r2q.bench import copy_bandwidth, measure
from r2q.kernels.matmul_triton import matmul_triton
from r2q.kernels.matvec import fixed_point, segment_words
from r2q.kernels.matvec_triton import matvec_triton
from r2q.kernels.planes import Planes, planes
from r2q.kernels.planes_triton import decode_triton
from r2q.kernels.quantize_pack_triton import launch
from r2q.models.packed import PackedLinear
from r2q.quantization.grid import BinaryGrid

SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008), (8192, 8192)]
LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
         "vocab_size": 32000, "max_position_embeddings": 4096}  # fmt: skip
SMOL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 4096,
        "tie_word_embeddings": True}  # fmt: skip
GROUP, CUDA = 128, torch.device("cuda")
COLUMNS = ("what", "shape", "who", "us", "first_quartile_us", "third_quartile_us", "terabytes_per_second",
           "tokens_per_second", "peak_bytes", "weight_bytes_read", "share_of_copy_bandwidth")  # fmt: skip
rows: list[dict[str, Any]] = []


def replay(call: Callable[[int], Any], n: int) -> list[float]:
    """Microseconds a call, of 20 replays of a graph of calls 0 .. n - 1."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for i in range(3):
            call(i % n)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(n):
            call(i)
    times = []
    for _ in range(22):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / n)
    return times[2:]


def record(what: str, shape: str, who: str, times: list[float], size: int | None = None) -> float:
    low, median, high = statistics.quantiles(times, n=4)
    row = {"what": what, "shape": shape, "who": who, "us": round(median, 2), "first_quartile_us": round(low, 2),
           "third_quartile_us": round(high, 2),
           "terabytes_per_second": round(size / median / 1e6, 3) if size else None}  # fmt: skip
    rows.append(row)
    print(*[value for value in row.values() if value is not None], flush=True)
    return median


def packed(out: int, width: int) -> Planes:
    codes = torch.randint(256, (out, width // 4), dtype=torch.uint8, device=CUDA)
    return planes(codes, BinaryGrid(torch.randn(out, width // GROUP, 2, device=CUDA).half()))


def rotated(out: int, width: int, bits: float) -> int:
    return max(4, int(160e6 / (out * width * bits / 8)))


def products(out: int, width: int) -> None:
    """Products of one shape, from one vector to 512."""
    shape, x = f"{out}x{width}", torch.randn(1, width, device=CUDA).bfloat16()
    n = rotated(out, width, 16)
    full = [torch.randn(out, width, device=CUDA, dtype=torch.bfloat16) for _ in range(n)]
    record("matvec", shape, "torch bf16", replay(lambda i: linear(x, full[i]), n), 2 * out * width)
    n, size = rotated(out, width, 2.25), out * width // 4 + out * width // GROUP * 4
    weights = [packed(out, width) for _ in range(n)]
    record("matvec", shape, "here", replay(lambda i: matvec_triton(weights[i], x), n), size)
    for batch in (4, 8, 16, 64, 512):
        several(batch, shape, full, weights)


def several(batch: int, shape: str, full: list[torch.Tensor], weights: list[Planes]) -> None:
    what, x = f"batch {batch}", torch.randn(batch, full[0].shape[1], device=CUDA).bfloat16()
    record(what, shape, "torch bf16", replay(lambda i: linear(x, full[i]), len(full)))
    if batch <= 16:
        record(what, shape, "here, matvec", replay(lambda i: matvec_triton(weights[i], x), len(weights)))
    if batch in (16, 64):
        record(what, shape, "here, matmul", replay(lambda i: matmul_triton(weights[i], x), len(weights)))
    if batch >= 64:
        record(what, shape, "here, decoded", replay(lambda i: linear(x, decode_triton(weights[i], x.dtype)), 4))


def accuracy() -> None:
    weight, x = packed(4096, 4096), torch.randn(1, 4096, device=CUDA).bfloat16()
    exact = x.double() @ decode_triton(weight, torch.float32).double().T
    error = (matvec_triton(weight, x).double() - exact).norm() / exact.norm()
    v, step = fixed_point(x, 16 * segment_words(weight))
    held = ((v * step.unsqueeze(-1)).flatten(-2).double() - x.double()).norm() / x.double().norm()
    print(f"relative error against float64: {float(error):.1e} (of x as held in 16 bits: {float(held):.1e})")


def packing(copy: float) -> None:
    weight = torch.randn(88064, 4096, device=CUDA, dtype=torch.bfloat16)  # 361 M
    for kind, side in (("r2q", 4), ("rtn", 3)):
        size = weight.numel() * 9 // 4 + weight.numel() // GROUP * side
        median = record("quantize_pack", "88064x4096", kind, replay(lambda i: launch(weight, GROUP, kind), 2), size)  # noqa: B023
        print(f"  {size / median / 1e6 / (copy / 1e12):.1%} of copy bandwidth")


def model_times(name: str, sizes: dict[str, Any], batches: tuple[int, ...], prefill: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    with CUDA:
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    torch.set_default_dtype(torch.float32)
    for who in ("torch bf16", "here"):
        if who == "here":
            shrink(model)
        for batch in batches:
            for phase in ("decode", "prefill") if prefill and batch == 1 else ("decode",):
                found = measure(model, phase, batch, 512, 20, COPY)
                row = {"what": f"{name} {phase}", "shape": f"batch {batch}", "who": who, "us": found["median_ms"] * 1e3,
                       "first_quartile_us": found["first_quartile_ms"] * 1e3,
                       "third_quartile_us": found["third_quartile_ms"] * 1e3,
                       "terabytes_per_second": None, "tokens_per_second": found["tokens_per_second"],
                       "peak_bytes": found["peak_bytes"], "weight_bytes_read": found["weight_bytes_read"],
                       "share_of_copy_bandwidth": found["share_of_copy_bandwidth"]}  # fmt: skip
                rows.append(row)
                print(*row.values(), flush=True)
    del model
    torch.cuda.empty_cache()


def shrink(model: Any) -> None:
    """Random packed layers in place of all but the head, in groups of 128 (or 64 where 128 does not divide)."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        out, width = module.weight.shape
        groups = width // (GROUP if width % GROUP == 0 else 64)
        spec = {"grid": "binary", "bits": 2, "shape": [out, width], "rows": out, "groups": groups,
                "float_zero": False, "in_scale": False}  # fmt: skip
        with CUDA:
            layer = PackedLinear(spec, torch.bfloat16)
        layer.codes.random_(256)
        layer.alpha.normal_(0, 0.01)
        model.set_submodule(name, layer)


def gemlite_layers(bits: int, out: int, width: int, n: int) -> list[Any]:
    from gemlite.helper import A16Wn_HQQ_INT

    made = []
    for _ in range(n):
        codes = torch.randint(2**bits, (out, width), dtype=torch.uint8, device=CUDA)
        scales = torch.rand(out * width // GROUP, 1, device=CUDA).half()
        zeros = torch.full_like(scales, 0.5 if bits == 1 else 1.5)
        made.append(
            A16Wn_HQQ_INT(device="cuda:0", dtype=torch.float16, W_nbits=bits).from_weights(codes, scales, zeros)
        )
    return made


def gemlite_part(part: int, parts: int) -> None:
    """Compile every parts-th configuration into Triton's cache."""
    import gemlite
    from triton.runtime.autotuner import Autotuner

    all_configs = Autotuner.prune_configs
    Autotuner.prune_configs = lambda self, values: all_configs(self, values)[part::parts]
    gemlite.set_autotune("max")
    for bits in (2, 1):
        for out, width in SHAPES:
            layer = gemlite_layers(bits, out, width, 1)[0]
            layer(torch.randn(1, width, device=CUDA).half())


def gemlite_times(out: int, width: int) -> None:
    import gemlite

    gemlite.set_autotune("max")
    shape, x = f"{out}x{width}", torch.randn(1, width, device=CUDA).half()
    n, start = rotated(out, width, 2.25), time.perf_counter()
    two = gemlite_layers(2, out, width, n)
    record("matvec", shape, "gemlite, 2 bits", replay(lambda i: two[i](x), n))
    one, other = gemlite_layers(1, out, width, n), gemlite_layers(1, out, width, n)
    record("matvec", shape, "gemlite, two of 1 bit", replay(lambda i: one[i](x) + other[i](x), n))
    print(f"  tuned and timed in {time.perf_counter() - start:.0f} s")


def humming_times(out: int, width: int) -> None:
    from humming.layer import HummingLayer

    n, x = rotated(out, width, 2.25), torch.randn(1, width, device=CUDA).half()
    kind = {"dtype": "int2", "group_size": GROUP}
    layers = []
    for _ in range(n):
        layer = HummingLayer(shape_n=out, shape_k=width, weight_config=kind, torch_dtype=torch.float16).cuda()
        layer.load_from_unquantized(torch.randn(out, width, device=CUDA, dtype=torch.float16))
        layer.transform()
        layers.append(layer)
    record("matvec", f"{out}x{width}", "humming, 2 bits", replay(lambda i: layers[i](x), n))


def peer(name: str, run: Callable[[int, int], None]) -> None:
    """All shapes of one peer; the reason where it cannot be run."""
    try:
        for shape in SHAPES:
            run(*shape)
    except Exception as error:
        why = f"{name}: could not be run: {type(error).__name__}: {error}"
        rows.append({"what": "matvec", "who": why[:300]})
        print(why, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--gemlite-part":
        gemlite_part(int(sys.argv[2]), int(sys.argv[3]))
        sys.exit()
    begun = time.perf_counter()
    parts = min(12, os.cpu_count() or 1)
    peers = "--peers" in sys.argv
    compiling = [
        subprocess.Popen([sys.executable, __file__, "--gemlite-part", str(i), str(parts)], stderr=subprocess.DEVNULL)
        for i in range(parts if peers else 0)
    ]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    try:
        for process in compiling:
            try:
                process.wait(max(1, 50 - (time.perf_counter() - begun)))
            except subprocess.TimeoutExpired:
                process.kill()
        print(f"peers compiled after {time.perf_counter() - begun:.0f} s", flush=True)
        COPY = copy_bandwidth(CUDA) or 0.0
        record("copy", "1 GiB", "torch", [2**31 / COPY * 1e6] * 2, 2**31)
        accuracy()
        for size in SHAPES:
            products(*size)
        packing(COPY)
        model_times("Llama-7B", LLAMA, (1, 4, 16), True)
        model_times("SmolLM2-135M", SMOL, (1, 4, 16), True)
        if peers:
            peer("humming", humming_times)
            peer("gemlite", gemlite_times)
    finally:
        with Path(sys.argv[1]).open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    print(f"{time.perf_counter() - begun:.0f} s")
