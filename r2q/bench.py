"""What a packed checkpoint costs to run, beside its twin: the same model with every weight decoded once, 16 bits each.

A step of decoding is one token for each row of a batch, on a cache of ``context`` tokens; on a GPU it is replayed as a
CUDA graph. Prefill is one pass over ``context`` tokens. Times are medians, with their quartiles. What does not fit into
memory, as the twin of a large model, is a row that says so.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from r2q import config as configuration
from r2q.config.sections import CONTEXT
from r2q.failures import lacks_memory, one_line, transient
from r2q.intact import sign
from r2q.kept import write_json
from r2q.models.checks import max_positions
from r2q.models.devices import device_name, pick_device
from r2q.models.load import load_packed, quiet
from r2q.plan import Plan
from r2q.records import OK, Latency, Report, columns, read_json, write_csv

SPARE = 8  # steps of decoding that warm up
COLUMNS = ["model", *columns(Latency)[columns(Latency).index("phase") :]]


def bench(
    folder: str | Path,
    out: Path,
    batches: Sequence[int] = (1, 4, 16),
    context: int | None = None,
    device: str = "auto",
    repeats: int = 20,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """Measure the checkpoint in ``folder``; writes ``out`` (CSV) and the same rows beside it (JSON).

    A ``context`` of None is CONTEXT tokens, or as many as a model of fewer positions, or of shorter attention,
    takes. ``compiled``: decode through ``torch.compile``, too.

    Raises:
        ValueError: a batch, the context or the number of repeats is not positive, the folder cannot be loaded,
            has experts on a GPU, looks back fewer tokens than that, or cannot be timed.
    """
    for name, value in (("batch", min(batches, default=0)), ("context", context), ("repeats", repeats)):
        if value is not None and value < 1:
            raise ValueError(f"--{name}: {value}; it must be at least 1")
    rows = list(_timed(folder, batches, context, pick_device(device), repeats, compiled))
    write_csv(out, COLUMNS, rows)
    write_json(out.with_suffix(".json"), rows)
    return rows


def latency(config_path: str | Path, results: str | Path, out: str | Path) -> None:
    """Measure the checkpoints of a run that ``latency`` of its config names, one after the other, into one CSV.

    A unit that failed, or cannot be timed, is a line that says why; so is what does not fit into memory.

    Raises:
        ValueError: the config asks for none.
        FileNotFoundError: a unit is not there.
    """
    config = configuration.load(config_path)
    asked, rows = config.latency, list[Latency]()
    if asked is None:
        raise ValueError(f"{config_path}: latency: nothing is asked")
    torch.set_num_threads(config.limits.threads)
    where = pick_device(config.device)
    for unit in Plan(config).timed:
        folder = Path(results, unit.path)
        report = read_json(folder / "report.json", Report)
        of_unit = config.run, unit.model, unit.recipe, unit.seed
        try:
            if report.status != OK:
                raise ValueError(f"{report.status}: {report.reason}")
            timed = _timed(folder, asked.batches, asked.context, where, asked.repeats, asked.compiled)
            rows += [Latency(*of_unit, row.pop("model"), **row) for row in timed]
        except ValueError as error:
            rows.append(Latency(*of_unit, reason=one_line(error)))
            print(f"latency: without {unit.recipe} of {unit.model}: {rows[-1].reason}", flush=True)
    write_csv(out, columns(Latency), rows)
    sign(Path(out).with_suffix(".sha256"), [out])


def _timed(
    folder: str | Path, batches: Sequence[int], context: int | None, where: torch.device, repeats: int, compiled: bool
) -> Iterator[dict[str, Any]]:
    """Rows of a checkpoint, and of its twin."""
    quiet()
    copy = copy_bandwidth(where)
    for name, dense in (("packed", False), ("dense", True)):
        model, lost = _in_memory(partial(load_packed, folder, device=where, dense=dense))
        if lost:
            yield {"model": name, "reason": lost}
            continue
        if where.type == "cuda" and any(len(layer["shape"]) == 3 for layer in model_layers(model)):
            raise ValueError(f"{folder} has packed experts, whose routing no CUDA graph can hold; use --device cpu")
        longest, window = max_positions(model.config), attention_window(model)
        if context is not None and longest is not None and context >= longest:
            raise ValueError(f"--context: {context}; {folder} has {longest} positions, and one is for the new token")
        steps = repeats + SPARE
        if window - steps < (context or 1):  # a cache of fewer places turns, and needs another mask at each step
            asked = f"--context: {context}" if context else f"--repeats: {repeats}"
            raise ValueError(f"{asked}; attention of {folder} looks back {window} tokens, and {steps} are for new ones")
        tokens = context or min(CONTEXT, (longest or CONTEXT + 1) - 1, window - steps)
        for batch in batches:
            for phase, through in [("decode", False), *[("decode", True)] * compiled, ("prefill", False)]:
                step: dict[str, Any] = {"phase": phase, "batch": batch, "context": tokens, "compiled": through}
                found, lost = _in_memory(partial(measure, model, **step, repeats=repeats, copy=copy))
                yield {"model": name} | step | (found or {"reason": lost})
        del model


def _in_memory(work: Callable[[], Any]) -> tuple[Any, str]:
    """What `work` gives; None, and why, where it lacks memory."""
    try:
        return work(), ""
    except Exception as error:
        if not lacks_memory(error):
            raise
        lost = one_line(error)[:300]
    gc.collect()  # what the error's frames hold
    return None, lost


def attention_window(model: Any) -> int:
    """Tokens that the layer with the shortest attention looks back; as many as there may be where none is short."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=sys.maxsize)
    return min((getattr(layer, "max_cache_len", sys.maxsize) for layer in cache.layers), default=sys.maxsize)


def model_layers(model: Any) -> list[dict[str, Any]]:
    """Specs of the packed layers that the checkpoint's configuration names."""
    quantization = getattr(model.config, "quantization_config", None)
    return list(getattr(quantization, "layers", {}).values())


@torch.inference_mode()
def measure(
    model: Any, phase: str, batch: int, context: int, repeats: int, copy: float | None, compiled: bool = False
) -> dict[str, Any]:
    """One row of the table (see COLUMNS); ``copy`` is the bandwidth of a copy, in bytes a second.

    Raises:
        ValueError: the model does not decode through a cache of fixed length (Mamba, BLOOM), or ``torch.compile``
            does not take it, or finds no compiler.
    """
    device, cuda = model.device, model.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if compiled:
        torch.compiler.reset()  # what another batch compiled would be made to fit both
    try:
        decodes = phase == "decode"
        run = decode_step(model, batch, context, repeats, compiled) if decodes else prefill(model, batch, context)
        seconds = timed(run, repeats, cuda)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise ValueError(f"torch.compile: {one_line(error)[:300]}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if transient(error):
            raise
        raise ValueError(f"{phase} of {type(model).__name__} cannot be timed: {one_line(error)[:300]}") from error
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    read = weight_bytes(model)
    tokens = batch if phase == "decode" else batch * context
    return {
        "phase": phase,
        "batch": batch,
        "context": context,
        "device": device_name(device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "compiled": compiled,
        "median_ms": round(median * 1e3, 4),
        "first_quartile_ms": round(low * 1e3, 4),
        "third_quartile_ms": round(high * 1e3, 4),
        "tokens_per_second": round(tokens / median, 1),
        "peak_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "weight_bytes_read": read,
        "share_of_copy_bandwidth": round(read / median / copy, 4) if copy and phase == "decode" else None,
    }


def weight_bytes(model: Any) -> int:
    """Bytes of weights that one pass reads: all tensors but the input embedding, unless the head is the same tensor."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and getattr(head, "weight", None) is embedding.weight
    left = set() if tied else {embedding.weight.data_ptr()}
    tensors = {t.data_ptr(): t.numel() * t.element_size() for t in model.state_dict().values()}
    return sum(size for pointer, size in tensors.items() if pointer not in left)


def prefill(model: Any, batch: int, context: int) -> Callable[[], Any]:
    """A pass over ``context`` tokens of ``batch`` rows; logits of the last."""
    ids = torch.randint(model.config.get_text_config().vocab_size, (batch, context), device=model.device)
    return lambda: model(ids, use_cache=False, logits_to_keep=1).logits


def decode_step(model: Any, batch: int, context: int, repeats: int, compiled: bool = False) -> Callable[[], Any]:
    """A step of ``batch`` rows after ``context`` tokens; a CUDA graph on a GPU."""
    from transformers import StaticCache

    device, length = model.device, context + repeats + SPARE  # a cache counts the steps itself
    cache = StaticCache(config=model.config, max_cache_len=length)
    place = torch.arange(length, device=device)
    causal = place[None, None, None, :] <= place[None, None, :, None]  # [1, 1, length, length]
    if model.config._attn_implementation != "sdpa":  # the others add what they are given to the scores
        causal = torch.zeros(causal.shape, dtype=model.dtype, device=device).masked_fill(~causal, float("-inf"))

    def forward(ids: torch.Tensor, at: slice, through: Any = model) -> torch.Tensor:
        positions, mask = place[at], causal[:, :, at].expand(batch, -1, -1, -1)
        return through(
            ids,
            attention_mask=mask,
            position_ids=positions.unsqueeze(0).expand(batch, -1),
            cache_position=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits

    forward(
        torch.randint(model.config.get_text_config().vocab_size, (batch, context), device=device), slice(0, context)
    )
    token = torch.randint(model.config.get_text_config().vocab_size, (batch, 1), device=device)
    last = slice(context, context + 1)
    early: Any = {"triton.enable_pdl": True} if device.type == "cuda" else None  # kernels that start as ours do
    step = torch.compile(model.forward, options=early) if compiled else model
    if device.type != "cuda":
        return lambda: forward(token, last, step)
    for _ in range(2):  # compiles and allocates; on another stream cuBLAS would keep 32 MiB more
        forward(token, last, step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward(token, last, step)
    return graph.replay


def timed(run: Callable[[], Any], repeats: int, cuda: bool) -> list[float]:
    """Seconds of ``repeats`` runs after two that do not count."""
    seconds = []
    for i in range(repeats + 2):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    return seconds


@cache
def copy_bandwidth(device: torch.device, size: int = 1 << 30) -> float | None:
    """Bytes a second, read and written, of a large copy on a GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / statistics.median(timed(lambda: target.copy_(source), 10, True))
