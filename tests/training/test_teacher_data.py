"""Rows that recipes train on: where they come from, and that they are the same again."""

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from r2q import config as configuration
from r2q.config import ConfigError
from r2q.training import teacher_data as module
from r2q.training.teacher_data import draw
from tests.configs import config_of
from tests.training.teacher import RECIPE, lines_of, make, section, teacher_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("model"))


def test_the_model_continues_prompts_the_same_way_again(folder: Path, tmp_path: Path) -> None:
    train, held_out, settings, digest = make(folder, tmp_path / "a" / "rows.safetensors")
    assert (len(train), len(held_out)) == (8, 4)
    assert set(train.start.tolist()) == {4}
    assert all(int(end) > 4 for end in train.end)
    assert settings["kind"] == "generated"
    again = make(folder, tmp_path / "b" / "rows.safetensors")
    assert again[3] == digest
    assert torch.equal(again[0].tokens, train.tokens)
    other = make(folder, tmp_path / "c" / "rows.safetensors", seed=1)
    assert other[3] != digest
    described = json.loads((tmp_path / "a" / "rows.json").read_text())
    assert described["sha256"] == digest
    assert described["tokens"] == int(train.end.sum())
    assert len(described["first_rows"]) == 5
    assert described | settings | {"format_version": 1} == described | {"format_version": 1}  # the data say the same
    assert (described["fingerprint"], described["commit"], described["end_token"]) == ("f1", None, 2)
    assert described["sampling"]["temperature"] == 0.7


def test_rows_stay_where_model_and_texts_only_moved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be hours of work, and on a GPU other rows the next time, which all trainings would have to follow."""
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    out = tmp_path / "a" / "rows.safetensors"
    digest = make(folder, out)[3]
    with monkeypatch.context() as without:
        without.setattr(module, "load_full", lambda *_, **__: pytest.fail("the model is loaded"))
        assert make(moved, out)[3] == digest
    (moved / "lines.txt").write_text((folder / "lines.txt").read_text().replace("line", "Line"))
    assert make(moved, out)[3] != digest


def test_supervised_pairs(folder: Path, tmp_path: Path) -> None:
    texts = {"path": str(folder / "pairs.jsonl"), "field": "ask+how", "response": "say", "rows": 10}
    train, held_out, settings, _ = make(folder, tmp_path / "rows.safetensors", kind="supervised", texts=[texts])
    assert settings["kind"] == "supervised"
    assert len(train) + len(held_out) == 10
    for rows in (train, held_out):
        for tokens, start, end in zip(rows.tokens, rows.start, rows.end, strict=True):
            text = bytes_of(folder, tokens[:end].tolist())
            question, answer = bytes_of(folder, tokens[:start].tolist()), bytes_of(folder, tokens[start:end].tolist())
            number = int(question.split()[1])
            assert question == (f"add {number}" if number % 2 else f"add {number}\nnow")
            assert answer == f"is {number + 1}</s>"
            assert text == question + answer


def bytes_of(folder: Path, tokens: list[int]) -> str:
    from r2q.models.checks import read_tokenizer

    return read_tokenizer(folder).decode(tokens)


def test_windows_of_text(folder: Path, tmp_path: Path) -> None:
    train, held_out, _, _ = make(folder, tmp_path / "rows.safetensors", kind="text", length=16, held_out=2)
    assert train.end.tolist() == [16] * len(train)
    text = bytes_of(folder, torch.cat([train.tokens, held_out.tokens]).flatten().tolist())
    assert "\n\n" in text
    assert text.startswith(draw(section(folder, kind="text", length=16, held_out=2))[0][0][:10])


@pytest.mark.parametrize(("name", "compress"), [("docs.jsonl.xz", lzma.compress), ("docs.txt.xz", lzma.compress)])
def test_real_text_of_compressed_files(folder: Path, tmp_path: Path, name: str, compress: Any) -> None:
    """Rows without a word that a model wrote: the same as those of the plain file."""
    documents = [f"Document {i} says what was measured on day {i * i}." for i in range(30)]
    rows = "".join(json.dumps({"body": text}) + "\n" for text in documents)
    content = (rows if ".jsonl" in name else "\n".join(documents)).encode()
    found = []
    for path, data in ((tmp_path / name, compress(content)), (tmp_path / name.removesuffix(".xz"), content)):
        path.write_bytes(data)
        texts = {"path": str(path), "field": "body", "lines": ".txt" in name, "rows": 30}
        out = tmp_path / f"{path.suffix}-run" / "rows.safetensors"
        found.append(make(folder, out, kind="text", texts=[texts], length=32, held_out=3))
    train, held_out, settings, _ = found[0]
    assert torch.equal(train.tokens, found[1][0].tokens)
    assert settings["kind"] == "text"
    text = bytes_of(folder, torch.cat([train.tokens, held_out.tokens]).flatten().tolist())
    parts = text.split("\n\n")
    assert len(parts) > 25
    assert set(parts[:-1]) <= set(documents)


def test_documents_are_cut_chosen_and_counted(folder: Path) -> None:
    texts = lines_of(folder, rows=6, characters=6, minimum_characters=17)
    drawn = draw(section(folder, texts=[texts]))
    assert len(drawn) == len(set(drawn)) == 6
    assert all(len(text) == 6 for text, _ in drawn)
    with pytest.raises(ValueError, match="20 documents, 21 are asked for"):
        draw(section(folder, texts=[texts | {"rows": 21, "minimum_characters": 1}]))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"length": 10_000}, "training.length: 10000 tokens, but model tiny has only"),
        ({"held_out": 12}, "training.held_out: 12 of only 12 rows"),
        ({"prompt_tokens": None}, "no more than the longest prompt"),
        ({"prompt_tokens": 24}, "prompt_tokens: 24 leave nothing to generate"),
        ({"texts": [{"path": "lines.pdf", "rows": 1}]}, "lines.pdf is neither a .txt"),
        ({"texts": [{"path": "other.txt", "rows": 1}]}, "is evaluated as perplexity.text"),
    ],
)
def test_what_cannot_be_is_said(folder: Path, tmp_path: Path, training: dict[str, Any], message: str) -> None:
    if "prompt_tokens" in training:
        lines = "\n".join("a" * 30 for _ in range(12))
        (tmp_path / "long.txt").write_text(lines)
        training = training | {"texts": [{"path": str(tmp_path / "long.txt"), "lines": True, "rows": 12}]}
    with pytest.raises((ConfigError, ValueError), match=message):
        make(folder, tmp_path / "rows.safetensors", **training)


def test_a_recipe_that_trains_needs_the_section_and_is_a_job_of_its_own() -> None:
    data = config_of({"a-g32": RECIPE, "rtn": {"method": "rtn", "granularity": "g32"}, "b-g32": RECIPE})
    with pytest.raises(ConfigError, match="training: required by recipes a-g32, b-g32"):
        configuration.parse(data, "x.yaml")
    config = configuration.parse(data | {"training": {"texts": [{"path": "a.txt", "rows": 400}]}}, "x.yaml")
    assert config.units("tiny") == [("a-g32", 0), ("rtn", 0), ("b-g32", 0)]  # a unit is a job
    assert [name for name in config.recipes if config.trains(name)] == ["a-g32", "b-g32"]
    assert config.resolved()["recipes"]["a-g32"]["options"]["quantizer_options"]["refine"] == "none"
