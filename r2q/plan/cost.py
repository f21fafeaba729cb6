"""What single jobs cost: seconds and bytes from the shape of a model, the settings, and some measured rates.

Time is arithmetic (products, at a rate), passes over activations, and launches where there is little to compute; memory
is what is kept, parameter by parameter, and what a pass needs on top. The rates stand in `rates.csv`;
`benchmarks/costs.py` fits them to `benchmarks/costs.csv`, and says how far measurements are off that were held back. No
torch.
"""

import csv
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from r2q.evaluation.rows import LOGITS_AT_ONCE
from r2q.plan.shapes import Shape
from r2q.training.options import TrainingOptions

FILE = Path(__file__).with_name("rates.csv")
GIB, FLOAT = 2**30, 4
COMPILE_SECONDS = 2.0  # of torch.compile for a block, at most: a job with Llama-7B's 32, packed and decoded, took 127
Rates = Mapping[str, float]


@cache
def rates() -> Rates:
    """The committed rates by name."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return {row["name"]: float(row["value"]) for row in csv.DictReader(file)}


def bytes_of(dtype: str) -> int:
    """Bytes of a number."""
    return FLOAT if dtype == "float32" else 2


# Passes


def arithmetic(shape: Shape, tokens: float, context: int, head: bool = True) -> float:
    """Operations of one forward pass over `tokens`, in causal windows of `context`."""
    products = shape.active + (shape.vocabulary * shape.width if head else 0)
    return tokens * (2 * products + 2 * context * shape.attention * shape.layers)


def forward_seconds(
    r: Rates, device: str, shape: Shape, tokens: float, context: int, passes: float = 0, head: bool = True
) -> float:
    """Forward passes over `tokens` in all, eager: what they compute, or their launches where that is more."""
    work = arithmetic(shape, tokens, context, head) / r[f"{device}.products"]
    if device == "cpu":
        return work
    work += tokens * shape.layers * shape.width * (r["gpu.activations"] + r["gpu.eager"])
    return max(work, passes * shape.layers * r["gpu.launch"])


def generate_seconds(r: Rates, device: str, shape: Shape, rows: float, batch: int, tokens: int) -> float:
    """`rows` rows of `tokens` new tokens each, `batch` at once."""
    batch = min(batch, max(1, math.ceil(rows)))
    if device == "cpu":
        return forward_seconds(r, device, shape, rows * tokens, tokens)
    row = batch * shape.width * r["gpu.decode_row"]
    return math.ceil(rows / batch) * tokens * shape.layers * (r["gpu.decode"] + row)


def cache_bytes(shape: Shape, rows: int, tokens: int) -> float:
    """Keys and values of `rows` rows, and those of one block once more, which are being joined."""
    return rows * tokens * 2 * shape.keys * shape.bytes_each * (shape.layers + 2)


# Training


def step_seconds(r: Rates, device: str, shape: Shape, options: TrainingOptions, length: int, processes: int) -> float:
    """An optimizer step: the teacher's pass, the student's there and back, and once more where it is checkpointed."""
    tokens, passes = options.batch_rows * length, 4 + options.activation_checkpointing
    passes -= options.loss == "ce"
    work = passes * arithmetic(shape, tokens, length) / r[f"{device}.products"]
    if device == "gpu":
        work += passes * tokens * shape.layers * shape.width * r["gpu.activations"]
        if not options.compiled:
            work += passes * tokens * shape.layers * shape.width * r["gpu.eager"]
        work += 7 * shape.total * bytes_of(options.latent) * r["gpu.optimizer"]  # w, g, m, v are read; w, m, v written
        work += shape.total * r["gpu.eight_bit"] if options.optimizer == "adamw_8bit" else 0
    return work / processes * (1 if processes == 1 else 1 + r["gpu.split"])


def train_seconds(
    r: Rates, device: str, shape: Shape, options: TrainingOptions, length: int, held_out: int, processes: int
) -> float:
    """A whole training: steps, held-out losses, the coefficient, states to resume from, compiling, packing."""
    teacher = options.loss != "ce"
    looks = 1 + math.ceil(options.steps / options.evaluate_every)
    tokens = looks * held_out * length * (1 + teacher)
    if options.loss == "cakld" and isinstance(options.coefficient, str):  # it is measured
        tokens += options.coefficient_batches * options.batch_rows * length
    seconds = options.steps * step_seconds(r, device, shape, options, length, processes)
    seconds += forward_seconds(r, device, shape, tokens, length) / processes
    seconds += shape.quantized * (2 * r[f"{device}.sweep"] + r[f"{device}.handling"])
    if options.checkpoint_every:  # written, and read for their hashes
        states = math.ceil(options.steps / options.checkpoint_every)
        seconds += states * 2 * resume_bytes(shape, options) / r["disk.rate"]
    return seconds + (r["gpu.compile"] if options.compiled and device == "gpu" else 0)


def train_bytes(r: Rates, device: str, shape: Shape, options: TrainingOptions, length: int, processes: int) -> float:
    """Peak of each device: parameters, moments and teacher, with either all gradients or all activations.

    Both are there together from the second part of a step on, where one is taken in parts.
    """
    latent = bytes_of(options.latent)
    compute = bytes_of("float32" if options.compute == "float32" or device == "cpu" else "bfloat16")
    state = shape.total * (kept_bytes(options) + compute) / processes
    rows = options.micro_rows or options.batch_rows
    tokens = min(rows, math.ceil(options.batch_rows / processes)) * length
    working = r["gpu.working"] * tokens * shape.width
    if options.activation_checkpointing:
        saved = tokens * shape.layers * shape.width * compute + working
    else:
        saved = tokens * shape.layers * (shape.width + shape.inner) * r["gpu.saved"]
        state += shape.quantized * compute if processes == 1 else 0  # quantized once a step
    logits = r["gpu.logits"] * min(options.chunk, tokens) * shape.vocabulary
    whole = 3 * shape.block * compute if processes > 1 else 0  # blocks that are gathered
    gradients = shape.total * latent / processes
    earlier = gradients if rows * processes < options.batch_rows else 0
    return state + whole + max(gradients + working, earlier + saved + logits)


def resume_bytes(shape: Shape, options: TrainingOptions) -> float:
    """The state on disk that a training resumes from."""
    return shape.total * kept_bytes(options)


def kept_bytes(options: TrainingOptions) -> float:
    """Of a latent weight and its two moments."""
    latent = bytes_of(options.latent)
    return latent + (2 * (1 + 4 / 256) if options.optimizer == "adamw_8bit" else 2 * latent)


# Quantizing

Amount = Callable[[Mapping[str, Any], int], float]  # of a method's options and the number of calibration windows
# How often all weights are rounded, and how often calibration text goes through the model (an exponent of AWQ takes one
# and a half passes: attention and MLP as modules, and two layers alone; training there and back three, OmniQuant's
# second target a fourth). Counted from the methods' files; alone on a GPU only GPTQ is measured.
SWEEPS: Mapping[str, Amount] = {
    "full_precision": lambda o, n: 0,
    "external": lambda o, n: 0,
    "rtn": lambda o, n: o["steps"] if o["clip"] == "mse" else 2,
    "r2q": lambda o, n: {"none": 2, "refit": 6, "alternating": 2 + 4 * o["rounds"], "optimal": 20}[o["refine"]],
    "llm_qat": lambda o, n: 2,
    "random_codes": lambda o, n: 2,
    "hqq": lambda o, n: 2 * o["steps"],
    "awq": lambda o, n: o["exponents"] + o["clip_steps"],
    "bitdistiller_clip": lambda o, n: o["steps"] ** 2,
    "omniquant_lwc": lambda o, n: 3 * o["epochs"] * math.ceil(n / o["batch"]),
    "efficientqat_block": lambda o, n: 3 * o["epochs"] * math.ceil(n / o["batch"]),
}
PASSES: Mapping[str, Amount] = {
    "awq": lambda o, n: 2 + 1.5 * o["exponents"],
    "bitdistiller_clip": lambda o, n: 3,
    "omniquant_lwc": lambda o, n: 2 + (4 if o["aug_loss"] else 3) * o["epochs"],
    "efficientqat_block": lambda o, n: 3 + 3 * o["epochs"],
}

TRAINED = {"omniquant_lwc": "gpu.ranged", "efficientqat_block": "gpu.trained"}  # block by block: the rate of a weight


def quantize_seconds(
    r: Rates,
    device: str,  # `gpu` or `cpu`
    shape: Shape,
    method: str,
    options: Mapping[str, Any],  # of the recipe, every default filled in
    calibration: tuple[int, int] | None = None,  # windows and tokens of each, where the model has calibration text
    quantizer: tuple[str, Mapping[str, Any]] | None = None,  # of gptq, with its options
) -> float:
    """A post-training recipe: rounding, passes of calibration text, error feedback, packing, layers' output errors."""
    windows, length = calibration or (0, 0)
    inner, chosen = quantizer or (method, options)
    sweeps = SWEEPS.get(inner, lambda o, n: 2)(chosen, windows)
    seconds = shape.quantized * (sweeps * r[f"{device}.sweep"] + r[f"{device}.handling"])
    tokens = windows * length
    if method == "gptq":
        passes = r["gptq.passes"]
        seconds += shape.quantized * r[f"{device}.feedback"]
    else:
        passes = PASSES.get(method, lambda o, n: 0)(options, windows)
    seconds += passes * forward_seconds(r, device, shape, tokens, length, head=False)
    return seconds + (errors_seconds(r, device, shape, windows, length) if windows and sweeps else 0)


def errors_seconds(r: Rates, device: str, shape: Shape, windows: int, length: int) -> float:
    """Output errors of all layers on the windows held out, an eighth as many: both models pass over them."""
    tokens = math.ceil(windows / 8) * length
    decoded = shape.quantized * r[f"{device}.handling"] * r["errors.share"]
    return decoded + 2 * forward_seconds(r, device, shape, tokens, length, head=False)


def quantize_bytes(
    r: Rates, shape: Shape, method: str, options: Mapping[str, Any], calibration: tuple[int, int] | None, offload: bool
) -> float:
    """Peak of the device: a block, its largest weight in work or all of them in training, and what is kept beside.

    That are GPTQ's second moments, and the inputs of all windows where they are not kept in main memory.
    """
    work = r["gpu.weight"] * shape.width * shape.widest
    if method in TRAINED and calibration is not None:
        work = options["batch"] * calibration[1] * (shape.width + shape.inner) * r["gpu.saved"]
        work += r[TRAINED[method]] * shape.block
    if method == "gptq":
        work += FLOAT * (shape.moments + r["gptq.factors"] * shape.widest**2)
    kept = 0.0 if offload else input_bytes(shape, method, calibration)
    return shape.bytes_each * shape.block + work + kept


def input_bytes(shape: Shape, method: str, calibration: tuple[int, int] | None) -> float:
    """A block's inputs for all windows, those held out among them, and what is kept of them beside."""
    windows, length = calibration or (0, 0)
    copies = 5 if method in TRAINED else 2  # a twin's, and outputs; else in and out
    return copies * math.ceil(windows * 9 / 8) * length * shape.width * shape.bytes_each


# Evaluating


def evaluate_bytes(r: Rates, shape: Shape, dtype_bytes: int, batch: int, window: int) -> float:
    """Peak of the device: the decoded model, what a pass needs, and the logits of a batch with their float32 copy."""
    logits = min(LOGITS_AT_ONCE, batch * window * shape.vocabulary)
    return shape.total * dtype_bytes + r["gpu.pass"] + logits * (dtype_bytes + 2 * FLOAT)


def host_bytes(r: Rates, shape: Shape, dtype_bytes: int, loaded: float, logits: int = 0) -> float:
    """Peak of main memory: libraries, the model `loaded` times, and float32 logits of so many tokens with a copy."""
    held = min(LOGITS_AT_ONCE, logits * shape.vocabulary) * 2 * FLOAT
    return r["host.libraries"] + loaded * shape.total * dtype_bytes + held
