"""The verb ``teacher-data``: the rows that a model's recipes train on, made once, kept with settings and a hash.

``generated`` is BitDistiller's recipe (``data/generation``): the full-precision model continues the first characters of
documents, temperature 0.7, top_p 1. The published code draws prompts with a generator that is never seeded and takes
temperatures as integers; here a row depends on the seed, the model, the library and the batch size only.

Prompts of one batch have the same number of tokens, so there is no padding inside, and nothing is masked while text is
sampled. A row ends with the end-of-text token or at its full length.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import torch

from r2q import config as configuration
from r2q.config import ConfigError
from r2q.files import read_documents
from r2q.kept import write_json
from r2q.measure import versions
from r2q.models.apply import pick_device
from r2q.models.load import load_full, load_tokenizer, quiet
from r2q.options import nearest
from r2q.tokens import Encoder
from r2q.training.data import Rows, write
from r2q.training.section import Texts, Training

SHOWN = 5  # rows that the description shows as text


def teacher_data(config_path: str | Path, model: str, out: str | Path) -> None:
    """Make the training rows of ``model``: ``out`` (safetensors) and, beside it, a description (JSON).

    Raises:
        ConfigError: the config is wrong, has no section ``training`` or no such model; rows are longer than the model
            has positions.
        ValueError: a text is too short, damaged, or lacks a column.
        FileNotFoundError: there is no such text.
    """
    config = configuration.load(config_path)
    wanted = config.training
    if wanted is None:
        raise ConfigError(f"{config_path}: training: this key is required to make training data")
    if model not in config.models:
        raise ConfigError(f"{config_path}: unknown model {model}{nearest(model, config.models)}")
    entry, device, out = config.models[model], pick_device(config.device), Path(out)
    torch.set_num_threads(config.limits.threads)
    quiet()
    tokenizer = load_tokenizer(entry.path, entry.revision)
    encoder = Encoder(tokenizer, entry.add_bos)
    teacher = load_full(entry.path, entry.revision, "auto" if device.type == "cuda" else "float32").to(device)
    positions = getattr(teacher.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and wanted.length > positions:
        raise ConfigError(f"{config_path}: training.length: {wanted.length}, but {model} has {positions} positions")
    drawn = draw(wanted)
    if wanted.kind == "text":
        rows = text_rows(encoder, [prompt for prompt, _ in drawn], wanted)
    elif wanted.kind == "supervised":
        rows = supervised_rows(encoder, tokenizer.eos_token_id, drawn, wanted)
    else:
        rows = generated_rows(teacher, encoder, tokenizer.eos_token_id, [prompt for prompt, _ in drawn], wanted)
    if len(rows) <= wanted.held_out:
        raise ConfigError(f"{config_path}: training.held_out: {wanted.held_out} of only {len(rows)} rows")
    first = len(rows) - wanted.held_out
    settings = {
        **wanted.model_dump(mode="json"),
        "model": model,
        "path": entry.path,
        "revision": entry.revision,
        "first_token": int(rows.tokens[0, 0]),
        "versions": versions("torch", "transformers", "tokenizers"),
        "device": device.type,
    }
    digest = write(out, rows[slice(0, first)], rows[slice(first, None)], settings)
    shown = [tokenizer.decode(rows.tokens[i, : rows.end[i]].tolist()) for i in range(min(SHOWN, len(rows)))]
    counts = {"rows": first, "held_out_rows": wanted.held_out, "tokens": int(rows.end[:first].sum())}
    write_json(out.with_suffix(".json"), settings | counts | {"sha256": digest, "first_rows": shown})
    print(
        f"teacher-data {model}: {first} + {wanted.held_out} {wanted.kind} rows, {counts['tokens']} tokens, "
        f"sha256 {digest[:12]}",
        flush=True,
    )


def draw(wanted: Training) -> list[tuple[str, str]]:
    """(prompt or text, response) of every row, in mixed order; without a response column the response is empty.

    Raises:
        ValueError: a source has fewer documents than it is to give.
    """
    generator = random.Random(wanted.seed)
    found: list[tuple[str, str]] = []
    for texts in wanted.texts:
        documents = _documents(texts, wanted.kind == "supervised")
        documents = [pair for pair in documents if len(pair[0]) >= texts.minimum_characters]
        if len(documents) < texts.rows:
            raise ValueError(f"training.texts: {texts.path} has {len(documents)} documents, {texts.rows} are asked for")
        found += [(text[: texts.characters], answer) for text, answer in generator.sample(documents, texts.rows)]
    generator.shuffle(found)
    return found


def _documents(texts: Texts, supervised: bool) -> list[tuple[str, str]]:
    columns = [read_documents(texts.path, field) for field in texts.field.split("+")]
    if texts.lines:
        columns = [[line for document in column for line in document.splitlines() if line] for column in columns]
    prompts = ["\n".join(part for part in parts if part) for parts in zip(*columns, strict=True)]
    answers = read_documents(texts.path, texts.response) if supervised else [""] * len(prompts)
    return list(zip(prompts, answers, strict=True))


def text_rows(encoder: Encoder, documents: list[str], wanted: Training) -> Rows:
    """Windows of the joined documents; the tail is dropped."""
    ids = torch.tensor(encoder.encode("\n\n".join(documents)))
    count = len(ids) // wanted.length
    if count == 0:
        raise ValueError(f"training.texts: {len(ids)} tokens are fewer than one row of {wanted.length}")
    tokens = ids[: count * wanted.length].reshape(count, wanted.length)
    return Rows(tokens, torch.zeros(count, dtype=torch.int64), torch.full((count,), wanted.length))


def supervised_rows(encoder: Encoder, end: int | None, pairs: list[tuple[str, str]], wanted: Training) -> Rows:
    """Prompt, response and the end-of-text token, cut to the row; what leaves no response is refused."""
    made = []
    for prompt, answer in pairs:
        front = encoder.encode(prompt)
        row = [*front, *encoder.encode(answer, special=False), *([] if end is None else [end])][: wanted.length]
        if len(row) <= len(front):
            raise ValueError(f"training.length: {wanted.length} tokens leave no response to {prompt[:40]!r}")
        made.append((row, len(front)))
    return _padded(made, wanted.length)


@torch.no_grad()
def generated_rows(teacher: Any, encoder: Encoder, end: int | None, prompts: list[str], wanted: Training) -> Rows:
    """Prompts and what the model says next."""
    heads = [encoder.encode(prompt)[: wanted.prompt_tokens] for prompt in prompts]
    if any(len(head) >= wanted.length for head in heads):
        raise ValueError(f"training.length: {wanted.length} tokens are no more than the longest prompt; cut prompts")
    by_length: dict[int, list[int]] = {}
    for number, head in enumerate(heads):
        by_length.setdefault(len(head), []).append(number)
    made: list[tuple[list[int], int]] = [([], 0)] * len(heads)
    sampling = {"do_sample": True, "temperature": wanted.temperature, "top_p": wanted.top_p, "top_k": 0}
    done = 0
    for size, numbers in sorted(by_length.items()):
        for start in range(0, len(numbers), wanted.batch_size):
            batch = numbers[start : start + wanted.batch_size]
            torch.manual_seed(_seed(wanted.seed, size, start))
            tokens = torch.tensor([heads[number] for number in batch], device=teacher.device)
            output = teacher.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=wanted.length - size,
                min_new_tokens=1,
                eos_token_id=end,
                pad_token_id=0 if end is None else end,
                **(sampling if wanted.temperature > 0 else {"do_sample": False}),
            )
            for number, row in zip(batch, output.tolist(), strict=True):
                stop = row.index(end, size) + 1 if end is not None and end in row[size:] else len(row)
                made[number] = (row[:stop], size)
            done += len(batch)
            print(f"teacher-data: {done}/{len(heads)} rows", flush=True)
    return _padded(made, wanted.length)


def _padded(made: list[tuple[list[int], int]], length: int) -> Rows:
    tokens = torch.zeros(len(made), length, dtype=torch.int64)
    for i, (row, _) in enumerate(made):
        tokens[i, : len(row)] = torch.tensor(row)
    return Rows(tokens, torch.tensor([start for _, start in made]), torch.tensor([len(row) for row, _ in made]))


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1
