"""Trains the tokenizer and the mini models from nothing but this repository.

`python -m mini.pretrain --out mini/models [--models mini-llama,...] [--device cuda] [--steps N] [--jobs N]` writes one
Hugging Face folder per model (bf16 weights, tokenizer) with loss.csv and provenance.json. The same seed, device and
library versions give the same bits.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from torch.nn import functional

from mini import architectures, corpus, facts
from mini.world import HASHED_FILES, MODEL_NAMES, contents, sha256, world_sha256
from r2q.kept import apply_umask

LOG_EVERY_STEPS = 50
MAX_ROWS = 300_000  # rows of text; more steps than that go through them again
WARMUP_STEPS = 200  # at most a tenth of all steps
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1  # of matrices


@dataclass(frozen=True)
class Plan:
    """How one model is trained."""

    name: str
    out: Path
    rows_file: Path  # .npy, [rows, MAX_TOKENS + 1]
    tokenizer_json: str
    world_hash: str
    steps: int
    batch_rows: int
    device: str
    seed: int
    command: str


@dataclass(frozen=True)
class Point:
    """One line of a loss curve; the loss is the mean since the line before."""

    step: int
    tokens: int
    learning_rate: float
    loss_nats_per_token: float


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    warmup = min(WARMUP_STEPS, steps // 10)
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return LEARNING_RATE * 0.5 * (1 + float(np.cos(np.pi * progress)))


def row_order(rows: int, count: int, seed: int) -> torch.Tensor:
    """`count` row numbers: every row once in random order, then every row again, and so on."""
    generator = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(rows, generator=generator) for _ in range(-(-count // rows))]
    return torch.cat(passes)[:count]


def train(plan: Plan) -> None:
    """Trains one model and writes its folder."""
    started = time.perf_counter()
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it did not write, and filling it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device, steps = torch.device(plan.device), plan.steps
    model = architectures.new_model(plan.name, corpus.VOCABULARY, plan.seed).to(device).train()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    rows = torch.from_numpy(np.load(plan.rows_file).astype(np.int16)).to(device)  # [rows, tokens + 1]
    order = row_order(len(rows), steps * plan.batch_rows, plan.seed).to(device)

    def batch_loss(tokens: torch.Tensor) -> torch.Tensor:  # [batch, tokens + 1]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits  # [batch, tokens, vocab]
        return functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    step_loss = torch.compile(batch_loss) if device.type == "cuda" else batch_loss
    curve: list[Point] = []
    loss_sum, counted = torch.zeros((), device=device), 0
    for step in range(steps):
        rate = learning_rate(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        picked = order[step * plan.batch_rows : (step + 1) * plan.batch_rows]
        loss = step_loss(rows[picked].long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss_sum, counted = loss_sum + loss.detach(), counted + 1
        if (step + 1) % LOG_EVERY_STEPS == 0 or step + 1 == steps:
            mean = loss_sum.item() / counted
            if not np.isfinite(mean):
                raise RuntimeError(f"{plan.name}: the loss is {mean} at step {step + 1}")
            curve.append(Point(step + 1, (step + 1) * plan.batch_rows * architectures.MAX_TOKENS, rate, mean))
            loss_sum, counted = torch.zeros_like(loss_sum), 0
            if len(curve) % 10 == 1 or step + 1 == steps:
                seconds = time.perf_counter() - started
                print(f"{plan.name}: step {step + 1}/{steps}, loss {mean:.4f}, {seconds:.0f} s", flush=True)
    save(plan, model, curve, time.perf_counter() - started)


def save(plan: Plan, model: transformers.PreTrainedModel, curve: list[Point], seconds: float) -> None:
    """Writes weights, tokenizer, loss.csv and provenance.json."""
    folder = plan.out / plan.name
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    apply_umask(folder / "model.safetensors")
    corpus.wrap(corpus.Tokenizer.from_str(plan.tokenizer_json)).save_pretrained(folder)
    lines = ["step,tokens,learning_rate,loss_nats_per_token"]
    lines += [f"{p.step},{p.tokens},{p.learning_rate:.3e},{p.loss_nats_per_token:.4f}" for p in curve]
    (folder / "loss.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    provenance = {
        "model": plan.name,
        "world_version": facts.VERSION,
        "world_sha256": plan.world_hash,
        **{key: sha256((folder / name).read_bytes()) for key, name in HASHED_FILES.items()},
        "command": plan.command,
        "seed": plan.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "file_bytes": (folder / "model.safetensors").stat().st_size,
        "steps": plan.steps,
        "tokens": curve[-1].tokens,
        "seconds": round(seconds, 1),
        "final_loss_nats_per_token": round(curve[-1].loss_nats_per_token, 4),
        "device": torch.cuda.get_device_name() if plan.device == "cuda" else f"CPU ({platform.machine()})",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m mini.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the models to")
    parser.add_argument("--models", default=",".join(MODEL_NAMES), help="which models, separated by commas")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=7000, help="optimizer steps (default 7000)")
    parser.add_argument("--batch-rows", type=int, default=128, help="rows of 256 tokens per step (default 128)")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at the same time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    names = options.models.split(",")
    for name in names:
        if name not in MODEL_NAMES:
            parser.error(f"unknown model {name!r}: there are {', '.join(MODEL_NAMES)}")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic matrix products on CUDA
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    tokenizer = corpus.train_tokenizer()
    rows = corpus.token_rows(tokenizer, min(MAX_ROWS, options.steps * options.batch_rows))
    rows_file = options.out / "rows.npy"
    np.save(rows_file, rows)
    print(f"{rows.size:,} tokens of text in {time.perf_counter() - started:.0f} s", flush=True)
    plan = Plan(
        name="",
        out=options.out,
        rows_file=rows_file,
        tokenizer_json=tokenizer.to_str(),
        world_hash=world_sha256(contents()),
        steps=options.steps,
        batch_rows=options.batch_rows,
        device=options.device,
        seed=options.seed,
        command=shlex.join(["python", "-m", "mini.pretrain", *arguments]),
    )
    plans = [replace(plan, name=name) for name in names]
    try:
        if options.jobs == 1:
            for one in plans:
                train(one)
        else:
            with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
                pool.map(train, plans, chunksize=1)
    finally:
        rows_file.unlink()


if __name__ == "__main__":
    main()
