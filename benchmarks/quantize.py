"""Time to quantize one weight, beside a plain copy-and-abs-mean pass over it: what any per-group scale has to cost.

    python benchmarks/quantize.py [--shape 4096 11008] [--group 128] [--repeats 9] [--threads 2] [--device cpu]

Each method is timed in turn with the pass (pairs), so a slow moment of the machine hits both; printed are medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from r2q.quantization.method import Recipe, make_method

METHODS = {
    "r2q": ("r2q", {}),
    "r2q-refit": ("r2q", {"refine": "refit"}),
    "r2q-alternating (15 rounds)": ("r2q", {"refine": "alternating"}),
    "rtn": ("rtn", {}),
    "rtn-clip (81 factors)": ("rtn", {"clip": "mse"}),
}


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of one call, the device's queue included."""
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 11008), metavar=("OUT", "IN"))
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weight = torch.randn(*args.shape, device=args.device)

    def floor() -> torch.Tensor:
        return weight.clone().reshape(args.shape[0], -1, args.group).abs().mean(-1)

    print(f"weight {list(args.shape)} float32 ({weight.nbytes / 1e6:.0f} MB), g{args.group}, {args.device}, ", end="")
    print(f"{args.threads} threads, torch {torch.__version__}, medians of {args.repeats} pairs")
    print(f"{'method':30} {'seconds':>9} {'pass':>9} {'ratio':>7}")
    for name, (method, options) in METHODS.items():
        quantizer = make_method(Recipe(name, method, f"g{args.group}", options=options))
        repeats = args.repeats if not options else 1
        floor(), quantizer.quantize_weight(weight[:64])  # warm-up
        pairs = [
            (seconds(floor, args.device), seconds(lambda q=quantizer: q.quantize_weight(weight), args.device))
            for _ in range(repeats)
        ]
        ratio = statistics.median(ours / plain for plain, ours in pairs)
        plain, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:30} {ours:9.3f} {plain:9.3f} {ratio:7.2f}", flush=True)


if __name__ == "__main__":
    main()
