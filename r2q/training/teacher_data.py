"""The verb ``teacher-data``: the rows that a model's recipes train on, made once, kept with settings and a hash.

``generated`` is BitDistiller's recipe (``data/generation``): the full-precision model continues the first characters of
documents, temperature 0.7, top_p 1. The published code draws prompts with a generator that is never seeded and takes
temperatures as integers; here a row depends on what the description beside the data says, and on nothing else.

Prompts are a part of the data: ``tokens[:start]`` of a row is what the model was given, in the order in which
:func:`draw` gives the texts, held-out rows last.
"""

import platform
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from r2q import config as configuration
from r2q.config import ConfigError, refuse
from r2q.config.texts import Texts, Training
from r2q.files import NEWEST, Newest, lines_of, read_documents
from r2q.inputs.hub import Hub
from r2q.kept import key, write_json
from r2q.measure import versions
from r2q.models.calibration import vocabulary_sha256
from r2q.models.checks import max_positions, read_config, read_tokenizer
from r2q.models.load import load_full
from r2q.models.products import speed_up
from r2q.models.rehearsal import decoder_of
from r2q.models.targets import refuse_quantized
from r2q.plan import Plan, Unit
from r2q.plan.sources import code
from r2q.prepare import engine_problems, open_model
from r2q.tokens import Encoder, beyond_positions
from r2q.training.data import Rows, keep, write
from r2q.training.generation import (
    Continue,
    encode_prompts,
    generated_rows,
    padded,
    sampling,
    vllm_facts,
    with_transformers,
    with_vllm,
)
from r2q.training.unfinished import Unfinished

SHOWN = 5  # rows that the description shows as text
AT_ONCE = 16  # rows of which hidden states are computed at once
KEPT = 1 << 30  # bytes of hidden states
# where things are: fingerprint and `drawn` are what they hold
PLACES = ("model", "path", "revision", "commit", "texts")


def teacher_data(config_path: str | Path, prepared: str | Path, model: str, out: str | Path) -> None:
    """Make the training rows of ``model``: ``out`` (safetensors) and, beside it, a description (JSON).

    On a CPU the model's hidden states of the rows are kept with them, for all recipes that learn from it.

    Generated rows are also kept in a file ``.<out>.unfinished`` while they come. It goes when all are there; a run that
    was killed goes on from it, to the same bits. Rows that are there stay where all that can move them (the model, what
    the texts hold, settings, code, libraries) is the same, wherever model and texts stand now. Of a model whose logits
    are not finite there are no rows, and the file says so.

    Raises:
        ConfigError: the config is wrong, has no section ``training`` or no such model; rows are longer than the model
            has positions; too few for ``held_out``; the engine is not installed.
        ValueError: a text is too short, damaged, or lacks a column.
        FileNotFoundError: there is no such text, or ``prepared`` is not there.
    """
    config = configuration.load(config_path, model, "training")
    wanted = config.training
    assert wanted is not None
    refuse(config_path, [*engine_problems(config), *configuration.leaks(config)])
    entry, out, (facts, folder, device) = config.models[model], Path(out), open_model(config, prepared, model)
    model_config = read_config(folder)
    refuse_quantized(model_config, entry.path)
    refuse(config_path, beyond_positions("training.length", wanted.length, max_positions(model_config), model))
    tokenizer = read_tokenizer(folder)
    encoder = Encoder(tokenizer, entry.add_bos)
    drawn = draw(wanted, Hub.of(config))
    if wanted.kind != "text":  # before hours of work; windows of text are not counted yet
        _check_held_out(config_path, len(drawn), wanted)
    settings = {
        **wanted.model_dump(mode="json"),
        "model": model,
        "path": entry.path,
        "revision": entry.revision,
        "commit": facts["commit"],
        "fingerprint": facts["fingerprint"],
        "tokenizer": vocabulary_sha256(tokenizer),
        "adds_bos": encoder.adds_bos,
        "end_token": tokenizer.eos_token_id,
        "versions": versions("torch", "transformers", "tokenizers"),
    }
    unfinished = None
    if wanted.kind == "generated":
        own = "auto" if model_config.dtype is None else str(model_config.dtype).removeprefix("torch.")
        dtype = "float32" if device.type == "cpu" else own
        settings |= _generation_facts(wanted, dtype, device)
    rest = {"drawn": drawn, "device": device.type, "threads": config.limits.threads, "code": code("teacher_data")}
    moves = {name: value for name, value in settings.items() if name not in PLACES} | rest
    notes = {"key": key(moves), "asked": Plan(config).asked("teacher_data", Unit(model, "", 0))}
    if keep(out, notes):
        print(f"teacher-data {model}: kept", flush=True)
        return
    if wanted.kind == "text":
        rows = text_rows(encoder, [prompt for prompt, _ in drawn], wanted)
        _check_held_out(config_path, len(rows), wanted)
    elif wanted.kind == "supervised":
        rows = supervised_rows(encoder, tokenizer.eos_token_id, drawn, wanted)
    else:
        heads = encode_prompts(encoder, [prompt for prompt, _ in drawn], wanted)
        unfinished = Unfinished(out.with_name(f".{out.name}.unfinished"), notes["key"])
        say = _engine(str(folder), dtype, device, tokenizer.eos_token_id, wanted)
        try:
            rows = generated_rows(heads, wanted, say, unfinished)
        except ArithmeticError as error:
            write(out, none := padded([], wanted.length), none, settings | {"reason": str(error)}, notes)
            unfinished.remove()
            print(f"teacher-data {model}: FAILED: {error}; no recipe can be trained on it", flush=True)
            return
    width = model_config.get_text_config(decoder=True).hidden_size
    if device.type == "cpu" and rows.tokens.numel() * width * 4 <= KEPT:  # else every training computes them
        rows = replace(rows, states=_states(str(folder), rows.tokens))
    first = len(rows) - wanted.held_out
    settings["first_token"] = int(rows.tokens[0, 0])
    digest = write(out, rows[slice(0, first)], rows[slice(first, None)], settings, notes)
    shown = [tokenizer.decode(rows.tokens[i, : rows.end[i]].tolist()) for i in range(min(SHOWN, len(rows)))]
    counts = {"rows": first, "held_out_rows": wanted.held_out, "tokens": int(rows.end[:first].sum())}
    write_json(out.with_suffix(".json"), settings | counts | {"sha256": digest, "first_rows": shown})
    if unfinished is not None:
        unfinished.remove()
    print(
        f"teacher-data {model}: {first} + {wanted.held_out} {wanted.kind} rows, {counts['tokens']} tokens, "
        f"sha256 {digest[:12]}",
        flush=True,
    )


@torch.no_grad()
def _states(folder: str, tokens: torch.Tensor) -> torch.Tensor:
    """The model's final hidden states of rows ``[rows, length]``: float32 ``[rows, length, features]``."""
    base = decoder_of(speed_up(load_full(folder, dtype="float32")))
    return torch.cat([base(input_ids=rows, use_cache=False).last_hidden_state for rows in tokens.split(AT_ONCE)])


def _check_held_out(config_path: str | Path, count: int, wanted: Training) -> None:
    if count <= wanted.held_out:
        raise ConfigError(f"{config_path}: training.held_out: {wanted.held_out} of only {count} rows")


def draw(wanted: Training, hub: Newest = NEWEST) -> list[tuple[str, str]]:
    """(prompt or text, response) of every row, in mixed order; without a response column the response is empty.

    Raises:
        ValueError: a source has fewer documents than it is to give.
    """
    generator = random.Random(wanted.seed)
    found: list[tuple[str, str]] = []
    for texts in wanted.texts:
        documents = _documents(texts, wanted.kind == "supervised", hub)
        documents = [pair for pair in documents if len(pair[0]) >= texts.minimum_characters]
        if len(documents) < texts.rows:
            raise ValueError(f"training.texts: {texts.path} has {len(documents)} documents, {texts.rows} are asked for")
        found += [(text[: texts.characters], answer) for text, answer in generator.sample(documents, texts.rows)]
    generator.shuffle(found)
    return found


def _documents(texts: Texts, supervised: bool, hub: Newest) -> list[tuple[str, str]]:
    columns = [read_documents(texts.path, field, hub) for field in texts.field.split("+")]
    if texts.lines:
        columns = [[line for document in column for line in lines_of(document) if line] for column in columns]
    prompts = ["\n".join(part for part in parts if part) for parts in zip(*columns, strict=True)]
    answers = read_documents(texts.path, texts.response, hub) if supervised else [""] * len(prompts)
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
    return padded(made, wanted.length)


def _engine(folder: str, dtype: str, device: torch.device, end: int | None, wanted: Training) -> Continue:
    if wanted.engine == "vllm":
        return with_vllm(folder, dtype, device.type, end, wanted)
    return with_transformers(speed_up(load_full(folder, dtype=dtype).to(device)), end, wanted)


def _generation_facts(wanted: Training, dtype: str, device: torch.device) -> dict[str, Any]:
    """What moves generated rows, beside the config, the model and the libraries."""
    return {
        "sampling": {**sampling(wanted), "top_k": 0, "repetition_penalty": 1.0, "min_tokens": 1},
        "dtype": dtype,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        **(vllm_facts() if wanted.engine == "vllm" else {}),
    }
