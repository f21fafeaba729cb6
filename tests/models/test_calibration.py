"""Calibration tokens: the reference's slicing, held-out windows apart, files that cannot be mistaken."""

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from r2q.config import ConfigError, parse
from r2q.models import calibration
from r2q.models.calibration import calibrate, check_tokenizer, cut_documents, cut_joined, load_calibration
from r2q.models.checks import read_tokenizer
from tests.configs import config_of
from tests.models.tiny import tiny_folder

WORDS = [f"w{i}" for i in range(90)]


class Ids:
    """An encoder for texts that are numbers."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]


def numbers(count: int, start: int = 0) -> str:
    return " ".join(map(str, range(start, start + count)))


@pytest.mark.parametrize("seed", [0, 7])
def test_joined_windows_are_those_of_the_gptq_repository(seed: int) -> None:
    windows = cut_joined(range(1000), 16, 18, 32, seed)
    random.seed(seed)  # get_wikitext2 of datautils.py
    starts = [random.randint(0, 1000 - 32 - 1) for _ in range(16)]
    assert windows[:16, 0].tolist() == starts
    assert torch.equal(windows, windows[:, :1] + torch.arange(32))


def test_document_windows_are_those_of_the_gptq_repository() -> None:
    documents = [numbers(10 + 9 * i, 1000 * i) for i in range(12)]
    windows, _ = cut_documents(Ids(), documents, 16, 18, 32, 0)  # type: ignore[arg-type]
    random.seed(0)  # get_c4 of datautils.py
    wanted = []
    for _ in range(16):
        while True:
            i = random.randint(0, len(documents) - 1)
            ids = Ids().encode(documents[i])
            if len(ids) >= 32:
                break
        j = random.randint(0, len(ids) - 32 - 1)
        wanted.append(ids[j : j + 32])
    assert windows[:16].tolist() == wanted


@pytest.mark.parametrize("joined", [True, False])
def test_held_out_windows_share_no_token_with_others(joined: bool) -> None:
    for seed in range(20):
        if joined:
            windows = cut_joined(range(400), 4, 6, 32, seed)
        else:
            windows, _ = cut_documents(Ids(), [numbers(400)], 4, 6, 32, seed)  # type: ignore[arg-type]
        used, held_out = set(windows[:4].flatten().tolist()), windows[4:]
        assert len(held_out) == 2
        assert not used & set(held_out.flatten().tolist())
        assert not set(held_out[0].tolist()) & set(held_out[1].tolist())


def test_too_short() -> None:
    with pytest.raises(ValueError, match="has 32 tokens, a window needs more than 32"):
        cut_joined(range(32), 1, 2, 32, 0)
    with pytest.raises(ValueError, match="too short for 1 held-out windows of 32 tokens"):
        cut_joined(range(40), 1, 2, 32, 0)
    with pytest.raises(ValueError, match="more than 32 tokens; use slicing: joined"):
        cut_documents(Ids(), [numbers(32)] * 3, 1, 2, 32, 0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer that adds nothing, and text."""
    path = tmp_path_factory.mktemp("calibration")
    tiny_folder("llama", path / "tiny")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "<s>", *WORDS])}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    fast.save_pretrained(path / "tiny")
    chosen = random.Random(0).choices(WORDS, k=3000)
    (path / "text.txt").write_text(" ".join(chosen))
    return path


def config(folder: Path, **wanted: Any) -> Path:
    models = {"tiny": {"path": str(folder / "tiny"), "add_bos": True}}
    content = config_of({"rtn-g32": {"method": "rtn", "granularity": "g32"}}, models=models)
    if wanted:
        content["calibration"] = {"path": str(folder / "text.txt"), "windows": 9, "window": 16} | wanted
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_file_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibration.safetensors"
    calibrate(config(folder, seed=3), "tiny", out)
    data = load_calibration(out)
    assert data.tokens.shape == (9, 16)
    assert data.held_out.shape == (2, 16)  # an eighth, rounded up
    assert data.tokens.dtype == torch.int64
    assert data.facts["seed"] == "3"
    assert data.facts["source"].endswith("text.txt")
    assert data.facts["text_tokens"] == "3001"  # with the token that the model's add_bos asks for
    assert data.facts["first_token"] == str(int(data.tokens[0, 0]))
    text = [1, *(WORDS.index(word) + 2 for word in (folder / "text.txt").read_text().split())]
    starts = [random.Random(3).randint(0, 3001 - 16 - 1)]
    assert data.tokens[0].tolist() == text[starts[0] : starts[0] + 16]
    again = tmp_path / "again.safetensors"
    calibrate(config(folder, seed=3), "tiny", again)
    assert load_calibration(again).facts == data.facts
    calibrate(config(folder, seed=4), "tiny", again)
    assert load_calibration(again).facts["sha256"] != data.facts["sha256"]


def test_lines_and_what_stands_between_them(folder: Path, tmp_path: Path) -> None:
    """Documents a line each, with the model's own token between them: here every second token."""
    (folder / "lines.txt").write_text("\n".join(WORDS * 9))
    out = tmp_path / "calibration.safetensors"
    source = str(folder / "lines.txt")
    calibrate(config(folder, path=source, lines=True, separator=" <s> "), "tiny", out)
    for window in load_calibration(out).tokens.tolist():
        assert min(window[::2].count(1), window[1::2].count(1)) == 0
        assert window.count(1) == 8
    calibrate(config(folder, path=source), "tiny", out)
    assert not (load_calibration(out).tokens[:, 1:] == 1).any()


def test_tokens_that_were_changed_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibration.safetensors"
    calibrate(config(folder, seed=0), "tiny", out)
    facts = load_calibration(out).facts
    tensors = load_file(out)
    tensors["tokens"][2, 3] += 1
    save_file(tensors, out, {"facts": json.dumps(facts)})
    with pytest.raises(ValueError, match="content and hash differ"):
        load_calibration(out)
    for content in (b"no tensors", out.read_bytes().replace(b'"facts":"{', b'"facts":"[', 1)):
        out.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged or truncated .*; `calibrate` makes it again"):
            load_calibration(out)
    with pytest.raises(FileNotFoundError, match="`calibrate` makes it"):
        load_calibration(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({}, "calibration: this key is required here"),
        ({"window": 65}, r"calibration\.window: 65 tokens, but model tiny has only 64 positions"),
        ({"windows": 400}, "too short for 50 held-out windows"),
        ({"pth": 1}, r"calibration\.pth: unknown key; nearest valid: path"),
        ({"path": "wikitext"}, r"calibration\.path: wikitext is none of .*; nearest valid: wikitext2"),
    ],
)
def test_bad_settings_are_refused(folder: Path, tmp_path: Path, wanted: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        calibrate(config(folder, **wanted), "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_text_or_column_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"):
        calibrate(config(folder, path=str(folder / "nothing.txt")), "tiny", tmp_path / "out")
    (folder / "rows.jsonl").write_text('{"body": "w1 w2"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl has no column text; it has body"):
        calibrate(config(folder, path=str(folder / "rows.jsonl")), "tiny", tmp_path / "out")


def test_a_recipe_that_needs_text_needs_the_section() -> None:
    recipes = {f"{name}-g64": {"method": name, "granularity": "g64"} for name in ("rtn", "gptq")}
    models = {"a": {"path": "./a"}, "b": {"path": "./b", "recipes": ["rtn-g64"]}}
    content = config_of(recipes, models=models, perplexity={"text": {"path": "text.txt"}})
    with pytest.raises(ConfigError, match="calibration: required by recipes gptq-g64"):
        parse(content, "test")
    found = parse(content | {"calibration": {"source": "other.txt"}}, "test")
    assert [found.calibrates(model) for model in "ab"] == [True, False]
    with pytest.raises(ConfigError, match=r"calibration\.path: text\.txt is evaluated as perplexity\.text"):
        parse(content | {"calibration": {"source": "text.txt"}}, "test")


def test_presets_read_what_they_are_named_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def read(source: str, field: str, _: Any) -> list[str]:
        asked.append((source, field))
        return ["x"]

    monkeypatch.setattr(calibration, "read_documents", read)
    for source in ("wikitext2", "pile", "c4", "own.txt"):
        assert calibration.read_source(source, "text") == ["x"]
    assert asked == [
        ("Salesforce/wikitext:wikitext-2-raw-v1:train", "text"),
        ("mit-han-lab/pile-val-backup::validation", "text"),
        ("allenai/c4:en:c4-train.00000-of-01024.json.gz", "text"),
        ("own.txt", "text"),
    ]


def test_tokens_of_another_tokenizer_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibration.safetensors"
    calibrate(config(folder, seed=0), "tiny", out)
    data = load_calibration(out)
    tokenizer = read_tokenizer(folder / "tiny")
    check_tokenizer(data, tokenizer, "tiny")
    tokenizer.add_tokens(["new"])
    with pytest.raises(ValueError, match="not of the tokenizer of tiny"):
        check_tokenizer(data, tokenizer, "tiny")


def test_rows_in_the_pile_s_compression_are_read(tmp_path: Path) -> None:
    """`val.jsonl.zst` of the preset `pile`, which `datasets` unpacks with a library that it does not ask for."""
    file = tmp_path / "val.jsonl.zst"
    file.write_bytes(pa.compress(b'{"text": "one"}\n{"text": "two"}\n', codec="zstd", asbytes=True))
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["text"][:] == ["one", "two"]
