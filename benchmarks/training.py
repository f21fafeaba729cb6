"""Distillation on one GPU: this package's trainer beside BitDistiller's own training code, and what full runs cost.

    git clone https://github.com/DD-DuDa/BitDistiller REFERENCE
    python -m benchmarks.training --cases ours reference --shape 7b [--layers 8] [--reference REFERENCE] [--out x.json]
    python -m benchmarks.training --cases ours spread --processes 2 --shape 7b --options '{"compiled": true}'

Random models of a shape (135m: SmolLM2, 1b: TinyLlama, 7b: Llama-2, 70b: Llama-2, of which a card holds a few layers),
teacher and student in full on the card, CAKLD on all tokens, AdamW, activation checkpointing, rows of 1,024 tokens.
``ours`` takes its settings from ``--options`` (JSON of training options; R2Q in groups of 128 unless they and
``--group`` say otherwise), one run for each; its seconds are those of ``training.csv``. ``reference`` runs the
repository's own parts: ``convertModelToQuant`` (int2-asym) and ``KDTrainer.compute_loss``, then torch's gradient
clipping and fused AdamW in place of the DeepSpeed set-up around them. ``split`` is ours with every parameter split by
FSDP2 over one process: what the splitting itself costs. ``spread`` is ours over ``--processes``, a GPU each, among
which a step's rows are shared (`limits.training_processes`), with the peak of the fullest card. ``generate`` times the
teacher's own text, in batches as ``teacher-data`` makes it.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from r2q.models.targets import list_targets
from r2q.quantization.method import Recipe, make_method
from r2q.training.data import Rows, TrainingData
from r2q.training.options import TrainingOptions
from r2q.training.processes import CPU, Group, spread
from r2q.training.student import Student, teacher_of
from r2q.training.trainer import Trainer

GROUP, LENGTH = 128, 1024
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the code can be looked at, no more
SHAPES: dict[str, dict[str, Any]] = {
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "initializer_range": 0.04,
    },
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8},
}
LAYERS = {"135m": 30, "1b": 22, "7b": 32, "70b": 80}


def configuration(shape: str, layers: int) -> Any:
    """A Llama of a shape."""
    return transformers.LlamaConfig(
        **{"vocab_size": 32000} | SHAPES[shape],
        num_hidden_layers=layers,
        max_position_embeddings=4096,
        attn_implementation="sdpa",
        use_cache=False,
    )


def random_model(shape: str, layers: int) -> Any:
    """A Llama in bfloat16 on the card."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.LlamaForCausalLM(configuration(shape, layers)).eval()
        torch.set_default_dtype(torch.float32)
    return model


def random_rows(count: int, vocabulary: int) -> Rows:
    tokens = torch.randint(3, vocabulary, (count, LENGTH), generator=torch.Generator().manual_seed(0))
    return Rows(tokens, torch.zeros(count, dtype=torch.int64), torch.full((count,), LENGTH))


def summary(seconds: list[float], rows: int, losses: list[float]) -> dict[str, Any]:
    """Of the steps after the second; losses a token, of every step."""
    middle = statistics.median(seconds[2:])
    return {
        "seconds a step": round(middle, 3),
        "fastest and slowest": [round(min(seconds[2:]), 3), round(max(seconds[2:]), 3)],
        "tokens/s": round(rows * LENGTH / middle),
        "peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "losses": [round(loss, 5) for loss in losses],
    }


class Split(Group):
    """One process whose parameters are split all the same."""

    def shard(self, module: nn.Module, keep_whole: bool = False) -> None:
        fully_shard(module, mesh=init_device_mesh("cuda", (1,)), reshard_after_forward=not keep_whole)


def alone(split: bool) -> Group:
    """The one process of ``ours`` or ``split``."""
    device = torch.device("cuda", 0) if DEVICE == "cuda" else CPU
    if not split:
        return Group(device=device)
    if not distributed.is_initialized():
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29511")
        distributed.init_process_group("nccl", rank=0, world_size=1, device_id=device)
    return Split(device=device)


def ours(model: Any, rows: int, steps: int, changes: dict[str, Any], group_size: int, group: Group) -> dict[str, Any]:
    """The trainer of this package."""
    options = TrainingOptions(
        **{
            "quantizer": "r2q",
            "loss": "cakld",
            "coefficient": 0.5,
            "steps": steps,
            "batch_rows": rows,
            "latent": "bfloat16",
            "activation_checkpointing": True,
            "evaluate_every": 1000,
            "checkpoint_every": 0,
            "gradients_every": 0,
            "flips_every": 0,
        }
        | changes
    )
    made = random_rows(steps * rows + 1, model.config.vocab_size)
    data = TrainingData(made[slice(0, steps * rows)], made[slice(steps * rows, None)], "text", "")
    quantizer = make_method(Recipe("r2q", options.quantizer, f"g{group_size}", options=options.quantizer_options))
    teacher = teacher_of(model, options, group)
    student = Student(model, list_targets(model), quantizer, options, group)
    trainer = Trainer(student, teacher, options, data, 0, group)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.run()
    done = trainer.rows[1:]
    return summary([row["seconds"] for row in done], rows, [row["loss"] for row in done])


def share(
    shape: str, layers: int, rows: int, steps: int, changes: dict[str, Any], group_size: int, group: Group
) -> dict[str, Any]:
    """What each process of ``spread`` does, with the model in main memory as a job has it."""
    model = random_model(shape, layers).cpu()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    found = ours(model, rows, steps, changes, group_size, group)
    return found | {"peak GiB": max(group.gather(found["peak GiB"]))}


def reference(model: Any, rows: int, steps: int, path: Path) -> dict[str, Any]:
    """BitDistiller's layers and loss."""
    transformers.modeling_utils.unwrap_model = None  # where its import looks for it; not used
    sys.path[:0] = [str(path / "quantization"), str(path / "train")]
    from mytrainer import KDTrainer  # type: ignore[import-not-found]
    from qlinear import convertModelToQuant  # type: ignore[import-not-found]

    student = random_model(*shape_of(model))
    torch.set_default_dtype(torch.bfloat16)  # its layers make a weight first, which the model's then replaces
    student, _ = convertModelToQuant(student, quant_type="int2-asym", q_group_size=GROUP)
    torch.set_default_dtype(torch.float32)
    student.kd_loss_scale = 1.0
    student.train()
    student.gradient_checkpointing_enable({"use_reentrant": False})
    trainer = KDTrainer.__new__(KDTrainer)
    trainer.teacher_model, trainer.loss_type, trainer.mean_prob = model.requires_grad_(False), "cakld", 0.5
    optimizer = torch.optim.AdamW(student.parameters(), lr=8e-6, weight_decay=0.0, fused=True)
    made = random_rows(steps * rows, model.config.vocab_size).tokens.to("cuda").split(rows)
    torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    for tokens in made:
        started = time.perf_counter()
        inputs = {"input_ids": tokens, "labels": tokens.clone(), "attention_mask": torch.ones_like(tokens).bool()}
        loss = trainer.compute_loss(student, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss) / LENGTH)
        seconds.append(time.perf_counter() - started)
    return summary(seconds, rows, losses)


def shape_of(model: Any) -> tuple[str, int]:
    width = model.config.hidden_size
    return next(k for k, v in SHAPES.items() if v["hidden_size"] == width), model.config.num_hidden_layers


def generate(model: Any, batches: list[int], tokens: int = 256) -> dict[str, Any]:
    """New tokens a second of the teacher, temperature 0.7, after a prompt of 32 tokens, by the kind of its cache."""
    found = {}
    for cache in ("dynamic", "static"):  # a static one has transformers compile the step
        for batch in batches:
            prompt = torch.randint(3, model.config.vocab_size, (batch, 32), device="cuda")
            settings = {"do_sample": True, "temperature": 0.7, "top_k": 0, "use_cache": True, "pad_token_id": 0}
            for _ in range(2):
                torch.cuda.synchronize()
                started = time.perf_counter()
                model.generate(
                    prompt,
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    cache_implementation=None if cache == "dynamic" else cache,
                    **settings,
                )
                torch.cuda.synchronize()
            found[f"{cache}, batch {batch}"] = {"new tokens/s": round(batch * tokens / (time.perf_counter() - started))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = ["ours", "reference", "split", "spread", "generate"]
    parser.add_argument("--cases", nargs="+", default=["ours"], choices=cases)
    parser.add_argument("--shape", default="7b", choices=list(SHAPES))
    parser.add_argument("--layers", type=int, help="only so many of them")
    parser.add_argument("--options", nargs="+", default=["{}"], help="JSON of training options, a run for each")
    parser.add_argument("--reference", type=Path, help="a checkout of DD-DuDa/BitDistiller")
    parser.add_argument("--group", type=int, default=GROUP, help="group size of `ours`")
    parser.add_argument("--rows", type=int, default=8, help="rows a step")
    parser.add_argument("--processes", type=int, default=2, help="of `spread`")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[64], help="of `generate`")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    layers = given.layers or LAYERS[given.shape]
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    found: dict[str, Any] = {"device": device, "torch": torch.__version__}
    name = f"{given.shape}, {layers} layers, {given.rows} rows"
    for case in given.cases:
        for text in given.options if case in ("ours", "split", "spread") else ["{}"]:
            processes = f" over {given.processes}" if case == "spread" else ""
            label = f"{name}: {case}{processes} {text if text != '{}' else ''}".strip()
            try:
                model = random_model(given.shape, layers) if case != "spread" else None
                if case == "reference":
                    found[label] = reference(model, given.rows, given.steps, given.reference)
                elif case == "generate":
                    found[label] = generate(model, given.batches)
                elif case == "spread":
                    work = partial(share, given.shape, layers, given.rows, given.steps, json.loads(text), given.group)
                    with tempfile.TemporaryDirectory() as folder:
                        found[label] = spread(work, given.processes, torch.device(DEVICE), Path(folder))
                else:
                    options = json.loads(text)
                    found[label] = ours(model, given.rows, given.steps, options, given.group, alone(case == "split"))
            except torch.OutOfMemoryError as error:
                found[label] = str(error).split(".")[0]
            model = None
            torch.cuda.empty_cache()
            print(label, json.dumps(found[label]), flush=True)
            if given.out:
                given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
