"""Packed inference on one GPU beside PyTorch's bfloat16 and other 2-bit kernels, everything in one run.

    python benchmarks/inference.py FOLDER [STEP ...]

Steps, in this order (all but the peers unless some are named): tests (tests/kernels and tests/models/test_joined.py on
the GPU, in several processes, one log each in FOLDER), tiles (candidates of the kernels), products (from one vector to
512), models, packing, humming, compiled (whole models through ``torch.compile``), gemlite. FOLDER/inference.csv gets
each row as it is measured.

Weights rotate so that each read comes from memory and not from the L2 cache; every time is a CUDA graph's, divided by
its calls: median and quartiles of 20 replays. Peers (gemlite, humming-kernels) have to be importable; gemlite is tuned
with "max" first. Processes fill Triton's cache before anything is timed. Llama-7B and SmolLM2-135M have random weights
of the published shapes.
"""

import csv
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from r2q.bench import copy_bandwidth, measure
from r2q.kernels.matmul_triton import Tile, matmul_triton, pick_tile
from r2q.kernels.matvec import matvec
from r2q.kernels.matvec_bits_triton import Strip, matvec_bits, multiprocessors, pick_strip
from r2q.kernels.matvec_triton import Split, matvec_triton, pick_split
from r2q.kernels.planes import Planes, decode_plain, planes
from r2q.kernels.planes_triton import decode_triton
from r2q.kernels.quantize_pack_triton import quantize_triton
from r2q.models.joined import join
from r2q.models.packed import PackedLinear
from r2q.quantization.grid import AffineGrid, BinaryGrid

STEPS = ("tests", "tiles", "products", "models", "packing", "humming", "compiled", "gemlite")
SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008), (8192, 8192)]
LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
         "vocab_size": 32000, "max_position_embeddings": 4096}  # fmt: skip
JOINED = [(12288, 4096), (22016, 4096)]  # query, key and value, gate and up
SMOL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 4096,
        "tie_word_embeddings": True}  # fmt: skip
SMALL = [(576, 576), (1536, 576), (576, 1536)]  # SmolLM2's
GROUP, CUDA = 128, torch.device("cuda")
ONE = [Strip(rows, warps, resident) for rows in (16, 32) for warps in (2, 4, 8, 16) for resident in (0, 2, 3)]
FEW = [Split(rows, warps, ahead) for rows in (16, 32) for warps in (2, 4, 8, 16) for ahead in (True, False)]
SOME = [Tile(rows, batch, 8, programs, warps) for rows in (64, 128) for batch in (32, 64) for programs in (264, 528)
        for warps in (4, 8)]  # fmt: skip
MANY = [Tile(rows, 128, 8, programs, warps) for rows in (64, 128) for programs in (132, 264) for warps in (4, 8)]
TILES = {1: ONE, 4: FEW, 8: FEW, 16: SOME, 64: SOME, 128: MANY, 256: MANY}  # vectors: candidates
DECODE = [(8, 64, 4), (8, 64, 8), (4, 64, 4), (4, 128, 4), (2, 128, 4), (8, 32, 4), (16, 32, 4), (4, 256, 8)]
COLUMNS = ("what", "shape", "who", "us", "first_quartile_us", "third_quartile_us", "terabytes_per_second",
           "tokens_per_second", "peak_bytes", "weight_bytes_read", "share_of_copy_bandwidth")  # fmt: skip
SIDES = "torch bf16", "here"
OUT, COPY = Path(), 0.0


def write(row: dict[str, Any]) -> None:
    with (OUT / "inference.csv").open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, COLUMNS).writerow(row)
    print(*[value for value in row.values() if value is not None], flush=True)


def replay(call: Callable[[int], Any], n: int) -> list[float]:
    """Microseconds a call, of 20 replays of a graph of calls 0 .. n - 1."""
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
    write(row)
    return median


def packed(out: int, width: int, affine: bool = False) -> Planes:
    codes = torch.randint(256, (out, width // 4), dtype=torch.uint8, device=CUDA)
    scale = torch.randn(out, width // group_of(width), 2, device=CUDA).half()
    if affine:
        zero = torch.randint(4, scale.shape[:2], dtype=torch.uint8, device=CUDA)
        return planes(codes, AffineGrid(scale[..., 0].contiguous(), zero, 2))
    return planes(codes, BinaryGrid(scale))


def group_of(width: int) -> int:
    return GROUP if width % GROUP == 0 else 64


def rotated(out: int, width: int, bits: float) -> int:
    return max(4, int(160e6 / (out * width * bits / 8)))


def prepared(part: int, parts: int) -> None:
    """Every parts-th candidate, run once: fills Triton's cache."""
    every = [(batch, shape, tile) for batch, shape, tried in candidates() for tile in tried]
    for batch, (out, width), tile in every[part::parts]:
        try:
            product(packed(out, width), torch.randn(batch, width, device=CUDA).bfloat16(), tile)
        except Exception as error:
            print(f"{tile}: {type(error).__name__}: {error}")


def candidates() -> Iterator[tuple[int, tuple[int, int], list[Any]]]:
    """Vectors, shape of the weight, what may be fastest there."""
    for batch, tried in TILES.items():
        for shape in SHAPES + (JOINED if batch == 1 else []) + SMALL if batch <= 8 else SHAPES:
            yield batch, shape, tried


def product(weight: Planes, x: torch.Tensor, tile: Tile | Split | Strip) -> torch.Tensor:
    if isinstance(tile, Strip):
        return matvec_bits(weight, x, tile)
    return matvec_triton(weight, x, tile) if isinstance(tile, Split) else matmul_triton(weight, x, tile)


def picked(out: int, width: int, batch: int) -> Tile | Split | Strip:
    if batch == 1:
        return pick_strip(packed(out, width), multiprocessors(CUDA))
    return pick_split(out, width, batch) if batch <= 8 else pick_tile(batch)


def tiles() -> None:
    """Candidates of the kernels, and what the package picks of them."""
    for batch, (out, width), tried in candidates():
        weights = [packed(out, width) for _ in range(min(400, rotated(out, width, 2.25)))]
        x = torch.randn(batch, width, device=CUDA).bfloat16()
        found = {}
        for tile in tried:
            try:
                times = replay(lambda i: product(weights[i], x, tile), len(weights))  # noqa: B023
            except Exception as error:  # too much shared memory
                print(f"{tile}: {type(error).__name__}: {str(error)[:100]}")
                continue
            found[tile] = record(f"tile, batch {batch}", f"{out}x{width}", str(tile), times)
        best = min(found, key=lambda tile: found[tile])
        print(f"best of batch {batch}, {out}x{width}: {best} {found[best]:.2f}; picked {picked(out, width, batch)}")
    weight = packed(11008, 4096)
    for shape in DECODE:
        record("decode", "11008x4096", str(shape), replay(lambda i: decode_triton(weight, torch.bfloat16, shape), 4))  # noqa: B023


def products() -> None:
    """Products of all shapes, from one vector to 512, and the bounds of the operator that they speak for."""
    total: dict[tuple[str, int], float] = defaultdict(float)
    batches = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    for out, width in SHAPES + JOINED:
        full = [torch.randn(out, width, device=CUDA, dtype=torch.bfloat16) for _ in range(rotated(out, width, 16))]
        weights, affine = ([packed(out, width, a) for _ in range(rotated(out, width, 2.25))] for a in (False, True))
        for batch in batches if (out, width) in SHAPES else (1,):
            x = torch.randn(batch, width, device=CUDA).bfloat16()

            def timed(who: str, call: Callable[[int], Any], n: int, size: int | None = None) -> None:
                what = f"batch {batch}"  # noqa: B023
                total[who, batch] += record(what, f"{out}x{width}", who, replay(call, n), size)  # noqa: B023

            timed("torch bf16", lambda i: linear(x, full[i]), len(full), 2 * out * width)  # noqa: B023
            size, n = out * width // 4 + out * width // GROUP * 4, len(weights)
            if batch <= 16:
                timed("here, matvec", lambda i: matvec(weights[i], x), n, size)  # noqa: B023
            if batch == 1:
                timed("here, affine", lambda i: matvec(affine[i], x), n)  # noqa: B023
                other = statistics.median(replay(lambda i: torch.add(x, 1), n))  # noqa: B023
                pairs = replay(lambda i: matvec(weights[i], torch.add(x, 1)), n)  # noqa: B023
                record("batch 1", f"{out}x{width}", "here, after another kernel", [pair - other for pair in pairs])
            if batch >= 4:
                timed("here, matmul", lambda i: matmul_triton(weights[i], x), n, size)  # noqa: B023
            if batch >= 64:
                timed("here, decoded", lambda i: linear(x, decode_triton(weights[i], x.dtype)), 4)  # noqa: B023
    few = takewhile(lambda b: b < 4 or (b <= 16 and total["here, matvec", b] < total["here, matmul", b]), batches)
    some = takewhile(lambda b: b < 64 or total["here, matmul", b] <= total["here, decoded", b], batches)
    print("MATVEC, MATMUL =", max(few, default=0), max(some))


def accuracy() -> None:
    weight, x = packed(4096, 4096), torch.randn(1, 4096, device=CUDA).bfloat16()
    exact = x.double() @ decode_plain(weight, torch.float64).T
    for who, found in (("matvec", matvec(weight, x)), ("matmul", matmul_triton(weight, x))):
        print(f"{who}: relative error against float64: {float((found.double() - exact).norm() / exact.norm()):.1e}")


def packing(copy: float) -> None:
    weight = torch.randn(88064, 4096, device=CUDA, dtype=torch.bfloat16)  # 361 M
    for kind, side in (("r2q", 4), ("rtn", 3)):
        size = weight.numel() * 9 // 4 + weight.numel() // GROUP * side
        times = replay(lambda i: quantize_triton(weight, GROUP, kind), 2)  # noqa: B023
        median = record("quantize_pack", "88064x4096", kind, times, size)
        print(f"  {size / median / 1e6 / (copy / 1e12):.1%} of copy bandwidth")
    block = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    whole = [torch.randn(*shape, device=CUDA, dtype=torch.bfloat16) for shape in 32 * block]
    times = replay(lambda i: quantize_triton(whole[i], GROUP, "r2q"), len(whole))
    size = sum(w.numel() * 9 // 4 + w.numel() // GROUP * 4 for w in whole)
    record("quantize_pack", "Llama-7B", "r2q", [len(whole) * each for each in times], size)


def model_times(
    name: str,
    sizes: dict[str, Any],
    batches: tuple[int, ...],
    prefill: bool,
    compiled: bool = False,
    whose: tuple[str, ...] = SIDES,
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    with CUDA:
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    torch.set_default_dtype(torch.float32)
    for who in whose:
        if who == "here":
            shrink(model)
        for batch in batches:
            for phase in ("decode", "prefill") if prefill and batch < 16 else ("decode",):
                found = measure(model, phase, batch, 512, 20, COPY, compiled)
                quantiles = "median", "first_quartile", "third_quartile"
                median, low, high = (round(found[f"{which}_ms"] * 1e3, 1) for which in quantiles)
                row = {"what": f"{name} {phase}", "shape": f"batch {batch}", "who": who, "us": median,
                       "first_quartile_us": low, "third_quartile_us": high,
                       "terabytes_per_second": None, "tokens_per_second": found["tokens_per_second"],
                       "peak_bytes": found["peak_bytes"], "weight_bytes_read": found["weight_bytes_read"],
                       "share_of_copy_bandwidth": found["share_of_copy_bandwidth"]}  # fmt: skip
                write(row)
    del model
    torch.cuda.empty_cache()


def shrink(model: Any) -> None:
    """Random packed layers in place of all but the head, in groups of 128 (or 64 where 128 does not divide), joined."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        out, width = module.weight.shape
        groups = width // group_of(width)
        spec = {"grid": "binary", "bits": 2, "shape": [out, width], "rows": out, "groups": groups,
                "float_zero": False, "in_scale": False}  # fmt: skip
        with CUDA:
            layer = PackedLinear(spec, torch.bfloat16)
        layer.codes.random_(256)
        layer.alpha.normal_(0, 0.01)
        model.set_submodule(name, layer)
    join(model)


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
    """Compile every parts-th configuration into Triton's cache; nothing is timed."""
    import gemlite
    from triton.runtime.autotuner import Autotuner

    all_configs = Autotuner.prune_configs
    Autotuner.prune_configs = lambda self, values: all_configs(self, values)[part::parts]

    def run_once(_: Any, call: Callable[[], None], quantiles: tuple[float, ...]) -> list[float]:
        call()
        return [1.0] * len(quantiles)

    Autotuner.do_bench = run_once
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
        write({"what": "matvec", "who": why[:300]})


def background() -> dict[str, subprocess.Popen[bytes]]:
    """Processes that come before what is timed: tests, and what fills Triton's cache."""
    cores, commands = min(16, os.cpu_count() or 1), {}
    if "tests" in steps:
        path = ["-m", "pytest", "-q", "tests/kernels"]
        for kinds in ("binary and 576", "binary and not 576", "affine", "float", "symmetric", "tensor"):
            commands[f"tests-{kinds.replace(' ', '-')}"] = [*path, "-k", f"on_a_gpu and {kinds}"]
        commands["tests-other"] = [*path, "-k", "not on_a_gpu and not interpreter"]
        commands["tests-joined"] = ["-m", "pytest", "-q", "tests/models/test_joined.py"]
    if "tiles" in steps:
        parts = max(1, cores - len(commands))
        commands |= {f"tiles-{i}": [__file__, str(OUT), "--part", str(i), str(parts)] for i in range(parts)}
    if "compiled" in steps:
        for who in SIDES:
            folder = OUT / f"compiling-{who.split()[0]}"
            commands[folder.name] = [__file__, str(folder), "--compile", who]
    if "gemlite" in steps:
        commands |= {f"gemlite-{i}": [__file__, str(OUT), "--gemlite", str(i), str(cores)] for i in range(cores)}
    begun = {}
    for name, command in commands.items():
        with (OUT / f"{name}.log").open("wb") as log:
            begun[name] = subprocess.Popen([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT)
    return begun


def whole_models(compiled: bool = False, whose: tuple[str, ...] = SIDES) -> None:
    for name, sizes in (("Llama-7B", LLAMA), ("SmolLM2-135M", SMOL)):
        if compiled:
            model_times(f"{name}, compiled,", sizes, (1,), False, True, whose)
        else:
            model_times(name, sizes, (1, 4, 16), True)


def finished(processes: dict[str, subprocess.Popen[bytes]], limit: float) -> None:
    for name, process in processes.items():
        try:
            code = process.wait(max(1, limit - (time.perf_counter() - begun)))
        except subprocess.TimeoutExpired:
            process.kill()
            code = -9
        if "tests" in name or code:
            last = (OUT / f"{name}.log").read_text(errors="replace").strip().splitlines()[-1:]
            print(f"{name}: exit {code}:", *last, flush=True)


if __name__ == "__main__":
    OUT, begun = Path(sys.argv[1]), time.perf_counter()
    if "--part" in sys.argv:
        prepared(*map(int, sys.argv[3:]))
        sys.exit()
    if "--gemlite" in sys.argv:
        gemlite_part(*map(int, sys.argv[3:]))
        sys.exit()
    if "--compile" in sys.argv:
        OUT.mkdir(parents=True, exist_ok=True)
        whole_models(compiled=True, whose=(sys.argv[3],))  # fills the compiler's cache; its rows are nobody's
        sys.exit()
    steps = sys.argv[2:] or [step for step in STEPS if step not in ("humming", "gemlite")]
    if unknown := set(steps) - set(STEPS):
        sys.exit(f"{', '.join(sorted(unknown))}: no step; they are {', '.join(STEPS)}")
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "inference.csv").open("w", newline="", encoding="utf-8") as csv_file:
        csv.DictWriter(csv_file, COLUMNS).writeheader()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    finished(background(), 300)
    print(f"ready after {time.perf_counter() - begun:.0f} s", flush=True)
    COPY = copy_bandwidth(CUDA) or 0.0
    record("copy", "1 GiB", "torch", [2**31 / COPY * 1e6] * 2, 2**31)
    accuracy()
    actions: dict[str, Callable[[], None]] = {
        "tiles": tiles,
        "products": products,
        "models": whole_models,
        "compiled": lambda: whole_models(compiled=True),
        "packing": lambda: packing(COPY),
        "humming": lambda: peer("humming", humming_times),
        "gemlite": lambda: peer("gemlite", gemlite_times),
    }  # fmt: skip
    for step in STEPS[1:]:
        if step in steps:
            actions[step]()
            print(f"{step}: done after {time.perf_counter() - begun:.0f} s", flush=True)
