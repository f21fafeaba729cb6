"""A tiny model with prompts to continue, and the verb ``teacher-data`` run on it."""

import json
from pathlib import Path
from typing import Any

import yaml

from r2q.config.texts import Training
from r2q.training.data import read
from r2q.training.teacher_data import teacher_data
from tests.configs import config_of
from tests.models.tiny import byte_tokenizer, tiny_folder

RECIPE = {"method": "bitdistiller", "granularity": "g32", "options": {"quantizer": "r2q", "batch_rows": 2}}


def teacher_folder(folder: Path) -> Path:
    """A tiny model with a tokenizer of bytes, prompts of different lengths and supervised pairs."""
    folder = tiny_folder("llama", folder)
    byte_tokenizer().save_pretrained(folder)
    lines = [f"{chr(65 + i)} line number {i}" + "!" * (i % 3) for i in range(20)]
    (folder / "lines.txt").write_text("\n".join(lines))
    pairs = [{"ask": f"add {i}", "how": "" if i % 2 else "now", "say": f"is {i + 1}"} for i in range(10)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def lines_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """An entry of `training.texts` that reads the lines of such a folder."""
    return {"path": str(folder / "lines.txt"), "lines": True, "rows": 12} | changes


def section(folder: Path, **changes: Any) -> Training:
    return Training.model_validate({"texts": [lines_of(folder)]} | changes)


def make(folder: Path, out: Path, /, device: str = "auto", **training: Any) -> Any:
    """Run the verb; the files that it reads are written beside `out`."""
    sampled = {"prompt_tokens": 4, "batch_size": 5} if training.get("kind", "generated") == "generated" else {}
    settings = {"texts": [lines_of(folder)], "length": 24, "held_out": 4} | sampled | training
    held_out = {"text": {"path": "other.txt"}}
    config = config_of({"bitdistiller-g32": RECIPE}, folder, perplexity=held_out, training=settings, device=device)
    out.parent.mkdir(parents=True, exist_ok=True)
    path, prepared = out.parent / "config.yaml", out.parent / "prepared.json"
    path.write_text(yaml.safe_dump(config))
    prepared.write_text(json.dumps({"models": {"tiny": {"commit": None, "fingerprint": "f1"}}}))
    teacher_data(path, prepared, "tiny", out)
    return read(out)
