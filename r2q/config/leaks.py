"""Texts that must be kept apart: what is evaluated is neither calibrated on nor trained on.

The same text can be spelled in many ways: another path to the same file, a link, a copy, a compressed copy, another
case of a hub id, a preset and what it stands for, a split and a file of it.
"""

import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from r2q.config.run import Config
from r2q.config.texts import CALIBRATION_PRESETS, HUB_TEXT, TEXT_FILE
from r2q.files import sha256, unpacked

BLANKS = b" \t\r\n\xef\xbb\xbf"  # and a byte order mark: others where a text was saved by another program


def evaluated_texts(config: Config) -> list[tuple[str, str]]:
    """(key, text) of everything that scores are measured on: texts by sections, and local data of tasks."""
    from r2q.evaluation.task_files import named_files

    texts = [(f"perplexity.{name}", text.path) for name, text in config.perplexity.items()]
    if config.fidelity is not None:
        texts.append(("fidelity.path", config.fidelity.path))
    if config.task_data is not None:
        for file in sorted(Path(config.task_data).glob("*/*")):
            if file.name.split(".")[0] in ("test", "validation") and TEXT_FILE.search(file.name):
                texts.append((f"task_data of {file.parent.name}", str(file)))
    for folder in config.task_include:
        for file in sorted(Path(folder).rglob("*")):
            if TEXT_FILE.search(file.name) and not {"train", "fewshot"} & set(re.split(r"[^a-z]+", file.name.lower())):
                texts.append((f"data of tasks in {folder}", str(file)))
        named = (file for file, evaluated in named_files(folder) if evaluated and TEXT_FILE.search(file))
        texts += [(f"data of tasks in {folder}", file) for file in named if not Path(file).is_relative_to(folder)]
    return texts


def leaks(config: Config, content: bool = True) -> list[str]:
    """A sentence for every text to calibrate or train on that is also one of `evaluated_texts`.

    Without `content` only by what the texts are called and which files they are; with it, also by what the files hold.
    """
    used = [(key, path) for key, path in config.texts().items() if key.startswith(("calibration", "training"))]
    return common(used, evaluated_texts(config), content)


def common(used: Iterable[tuple[str, str]], evaluated: Iterable[tuple[str, str]], content: bool = True) -> list[str]:
    """The same for any two lists of (key, text)."""
    held = list(evaluated)
    return [
        f"{key}: {text} is evaluated as {other}{'' if text == path else f' ({path})'}; choose other text"
        for key, text in used
        for other, path in held
        if same_text(text, path, content)
    ]


def same_text(a: str, b: str, content: bool) -> bool:
    """Whether two texts of a config are the same: files by identity and content, hub data sets by what they name."""
    if TEXT_FILE.search(a) and TEXT_FILE.search(b):
        if Path(a).is_file() and Path(b).is_file():
            return Path(a).samefile(b) or (content and _digest(a) is not None and _digest(a) == _digest(b))
        return os.path.realpath(a) == os.path.realpath(b)
    one, other = _hub_text(a), _hub_text(b)
    if one is None or other is None or one[:2] != other[:2]:
        return False
    (split, whole), (other_split, other_whole) = one[2:], other[2:]
    return split == other_split or (whole != other_whole and _within(split, other_split, whole))


def _hub_text(text: str) -> tuple[str, str, str, bool] | None:
    """Repository, config, split or file, and whether it is a whole split; letters of ids and splits made small."""
    text = CALIBRATION_PRESETS.get(text, text)
    if not HUB_TEXT.match(text):
        return None
    repository, config, split = text.lower().split(":")
    return repository, config or "default", split, not split.endswith((".json", ".json.gz", ".jsonl", ".parquet"))


def _within(one: str, other: str, one_is_whole: bool) -> bool:
    """Whether a file's name has the name of a split as a word: c4-validation.00000-of-00008.json.gz."""
    split, file = (one, other) if one_is_whole else (other, one)
    return split in re.split(r"[^a-z0-9]+", file)


def _digest(path: str) -> str | None:
    """SHA-256 of what a file holds, without blanks and line ends; None where it cannot be read: its reader will say."""
    try:
        stat = Path(path).stat()
        return _content(os.path.realpath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    except (OSError, ValueError):
        return None


@cache  # of this process only
def _content(path: str, *_: int) -> str:
    return sha256(unpacked(path).translate(None, BLANKS))
