"""The verb ``calibrate``: tokens that methods look at while they quantize, made once per model and kept with a hash.

Windows are cut as in the GPTQ repository (IST-DASLab/gptq, ``datautils.py``), with Python's generator seeded the same
way, so that the same text and tokenizer give the same windows:

    joined      all documents joined (there by blank lines) and tokenized once, with whatever the tokenizer puts in
                front; window i starts at randint(0, N - window - 1). Its ``get_wikitext2``.
    document    a random document, again until one has more than ``window`` tokens; then a random place in it. Its
                ``get_c4`` (which also draws documents of exactly ``window`` tokens, and then fails).

Held-out windows, an eighth as many rounded up, follow from the same generator; one that shares a token with a window
drawn before is drawn again. Methods see only the first part; output errors are measured on the held-out one.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from r2q import config as configuration
from r2q.config import refuse
from r2q.files import NEWEST, Newest, lines_of, read_documents
from r2q.inputs.hub import Hub
from r2q.intact import opened
from r2q.kept import write_atomic
from r2q.models.checks import max_positions, read_config, read_tokenizer
from r2q.models.source import model_folder
from r2q.plan import Plan, Unit
from r2q.tokens import Encoder, beyond_positions

CPU = torch.device("cpu")
FORMAT_VERSION = 1
TRIES = 10_000  # places drawn for one held-out window, or documents for one window, before the text counts as too short

Place = tuple[int, int]  # document, first token


@dataclass(frozen=True)
class Calibration:
    """Windows of text for a method, and where and how it should look at them."""

    tokens: torch.Tensor  # int64 ``[windows, window]``; what a method may use
    held_out: torch.Tensor  # int64 ``[windows / 8, window]``; for measuring only
    facts: dict[str, str]  # what the file says of itself (source, seed, sha256, ...), as text
    device: torch.device = CPU  # where blocks and their inputs are while they are visited
    offload: bool = False  # keep inputs of blocks in main memory
    minimum_tokens: int = 256  # an expert that gets fewer is shown all tokens


def calibrate(config_path: str | Path, model: str, out: str | Path) -> None:
    """Cut calibration windows for ``model`` and write them to ``out`` (safetensors: ``tokens``, ``held_out``).

    Raises:
        ConfigError: the config is wrong, has no section ``calibration``, or asks for longer windows than the model has
            positions.
        ValueError: the text is too short, damaged, or lacks the column.
        FileNotFoundError: there is no such text.
    """
    config = configuration.load(config_path, model, "calibration")
    section = config.calibration
    assert section is not None
    refuse(config_path, configuration.leaks(config))
    entry = config.models[model]
    folder = model_folder(entry)
    positions = max_positions(read_config(folder))
    refuse(config_path, beyond_positions("calibration.window", section.window, positions, model))
    tokenizer = read_tokenizer(folder)
    encoder = Encoder(tokenizer, entry.add_bos)
    documents = read_source(section.path, section.field, Hub.of(config))
    if section.lines:
        documents = [line for text in documents for line in lines_of(text) if line.strip()]
    slicing = "document" if section.cuts_documents else "joined"
    count = section.windows + -(-section.windows // 8)
    how = section.windows, count, section.window, section.seed
    try:
        if slicing == "joined":
            ids = encoder.encode(section.separator.join(documents))
            windows, text_tokens = cut_joined(ids, *how), len(ids)
        else:
            windows, text_tokens = cut_documents(encoder, documents, *how)
    except ValueError as error:
        raise ValueError(f"calibration.path: {section.path}: {error}") from None
    tokens, held_out = windows[: section.windows].contiguous(), windows[section.windows :].contiguous()
    facts: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "source": section.path,
        "field": section.field,
        "slicing": slicing,
        "lines": section.lines,
        "separator": section.separator,
        "seed": section.seed,
        "tokenizer": vocabulary_sha256(tokenizer),
        "sha256": (digest := tokens_sha256(tokens, held_out)),
        "documents": len(documents),
        "text_tokens": text_tokens,
        "first_token": int(tokens[0, 0]),
        "adds_bos": encoder.adds_bos,
        "asked": Plan(config).asked("calibrate", Unit(model, "", 0)),
    }
    metadata = {name: str(value) for name, value in facts.items()}
    one = {"facts": json.dumps(metadata)}  # safetensors writes several keys in random order
    write_atomic(out, save({"tokens": tokens, "held_out": held_out}, one))
    print(
        f"calibrate {model}: {len(tokens)} + {len(held_out)} windows of {section.window} tokens out of {text_tokens} "
        f"from {section.path}, sha256 {digest[:12]}",
        flush=True,
    )


def load_calibration(
    path: str | Path, device: torch.device | str = "cpu", offload: bool = False, minimum_tokens: int = 256
) -> Calibration:
    """Read what :func:`calibrate` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its tokens are not those of its hash.
    """
    with opened(path, "calibrate") as file:
        facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        tokens, held_out = file.get_tensor("tokens"), file.get_tensor("held_out")
        if facts.get("sha256") != tokens_sha256(tokens, held_out):
            raise ValueError("content and hash differ")
    return Calibration(tokens, held_out, facts, torch.device(device), offload, minimum_tokens)


def tokens_sha256(*windows: torch.Tensor) -> str:
    """Hash of shapes and token ids."""
    digest = hashlib.sha256()
    for tensor in windows:
        digest.update(repr(tuple(tensor.shape)).encode() + tensor.long().contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def vocabulary_sha256(tokenizer: Any) -> str:
    """Hash of a tokenizer's vocabulary: whose ids the tokens are."""
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(repr(words).encode()).hexdigest()


def check_tokenizer(calibration: Calibration, tokenizer: Any, model: str) -> None:
    """Refuse tokens that were cut with another tokenizer."""
    if calibration.facts.get("tokenizer") != vocabulary_sha256(tokenizer):
        raise ValueError(f"the calibration tokens are not of the tokenizer of {model}: run `r2q calibrate` again")


def read_source(source: str, field: str, hub: Newest = NEWEST) -> list[str]:
    """Documents of a file, a hub data set or a preset; see :func:`r2q.files.read_documents` for errors."""
    return read_documents(configuration.CALIBRATION_PRESETS.get(source, source), field, hub)


def cut_joined(ids: Sequence[int], windows: int, count: int, window: int, seed: int) -> torch.Tensor:
    """``count`` windows of the tokens of a joined text, ``[count, window]``.

    The first ``windows`` may overlap each other, as in GPTQ; each later one overlaps none.

    Raises:
        ValueError: the text has no ``window`` + 1 tokens, or no room for held-out windows.
    """
    if len(ids) <= window:
        raise ValueError(f"has {len(ids)} tokens, a window needs more than {window}")
    generator = random.Random(seed)
    places = _places(lambda: (0, generator.randint(0, len(ids) - window - 1)), windows, count, window)
    tokens = torch.tensor(ids)
    return torch.stack([tokens[start : start + window] for _, start in places])


def cut_documents(
    encoder: Encoder, documents: Sequence[str], windows: int, count: int, window: int, seed: int
) -> tuple[torch.Tensor, int]:
    """Like :func:`cut_joined`, each window out of one random document; also the tokens of all documents drawn.

    Raises:
        ValueError: no document is found that has more than ``window`` tokens, or no room for held-out windows.
    """
    generator = random.Random(seed)
    known: dict[int, torch.Tensor] = {}

    def draw() -> Place:
        for _ in range(TRIES):
            number = generator.randint(0, len(documents) - 1)
            if number not in known:
                known[number] = torch.tensor(encoder.encode(documents[number]))
            if len(known[number]) > window:
                return number, generator.randint(0, len(known[number]) - window - 1)
        raise ValueError(f"none of {TRIES} documents drawn has more than {window} tokens; use slicing: joined")

    places = _places(draw, windows, count, window)
    cut = torch.stack([known[number][start : start + window] for number, start in places])
    return cut, sum(map(len, known.values()))


def _places(draw: Callable[[], Place], windows: int, count: int, window: int) -> list[Place]:
    """``windows`` places as they come, then places apart from all others."""
    places = [draw() for _ in range(windows)]
    while len(places) < count:
        for _ in range(TRIES):
            number, start = draw()
            if all(number != other or abs(start - taken) >= window for other, taken in places):
                places.append((number, start))
                break
        else:
            raise ValueError(
                f"too short for {count - windows} held-out windows of {window} tokens apart from the others"
            )
    return places


def describe(calibration: Calibration) -> dict[str, Any]:
    """What a report says of the calibration text."""
    return {
        "sha256": calibration.facts["sha256"],
        "source": calibration.facts["source"],
        "seed": int(calibration.facts["seed"]),
        "windows": len(calibration.tokens),
        "held_out_windows": len(calibration.held_out),
        "window": calibration.tokens.shape[1],
        "first_token": int(calibration.facts["first_token"]),
    }
