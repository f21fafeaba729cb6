"""Text that is evaluated is neither calibrated on nor trained on, however it is spelled."""

import gzip
import lzma
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r2q.config import leaks, parse
from r2q.config.leaks import common, evaluated_texts
from r2q.prepare import missing_paths
from tests.config.test_config import GOOD, problems


def asked(evaluated: str, calibration: str | None = None, training: str | None = None) -> dict[str, Any]:
    data = GOOD | {"perplexity": {"p": {"path": evaluated}}}
    if calibration is not None:
        data |= {"calibration": {"path": calibration}}
    if training is not None:
        data |= {"training": {"texts": [{"path": training, "rows": 100}]}}
    return data


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = b"some text that is evaluated\n"
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_bytes(text)
    (tmp_path / "other.txt").write_bytes(text + b"and more\n")
    (tmp_path / "link.txt").symlink_to("a.txt")
    os.link(tmp_path / "a.txt", tmp_path / "hard.txt")
    (tmp_path / "copy.txt").write_bytes(text)
    (tmp_path / "copy.txt.gz").write_bytes(gzip.compress(text))
    (tmp_path / "copy.txt.xz").write_bytes(lzma.compress(text))
    return tmp_path


@pytest.mark.parametrize("spelling", ["a.txt", "./a.txt", "sub/../a.txt", "link.txt", "hard.txt", "absolute"])
def test_the_same_file_is_refused_at_once(folder: Path, spelling: str) -> None:
    path = str(folder / "a.txt") if spelling == "absolute" else spelling
    for key, data in (
        ("calibration.path", asked("a.txt", path)),
        ("training.texts[0].path", asked("a.txt", None, path)),
    ):
        (line,) = problems(data)
        assert line.startswith(f"{key}: {path} is evaluated as perplexity.p")
    assert parse(asked("a.txt", "other.txt", "other.txt"), "x.yaml").calibration


@pytest.mark.parametrize("copy", ["copy.txt", "copy.txt.gz", "copy.txt.xz"])
def test_a_copy_is_refused_before_work(folder: Path, copy: str) -> None:
    config = parse(asked("a.txt", copy, copy), "x.yaml")
    assert [line.split(":")[0] for line in leaks(config)] == ["calibration.path", "training.texts[0].path"]
    config = config.model_copy(update={"models": {}})
    assert missing_paths(config) == leaks(config)
    assert not leaks(parse(asked("other.txt", copy, copy), "x.yaml"))


def test_a_file_that_is_not_there_yet_is_told_by_its_path(folder: Path) -> None:
    assert problems(asked("made/later.txt", "./made/../made/later.txt"))
    assert parse(asked("made/later.txt", "made/earlier.txt"), "x.yaml")


@pytest.mark.parametrize(
    ("evaluated", "other", "same"),
    [
        ("Salesforce/wikitext:wikitext-2-raw-v1:test", "salesforce/WikiText:wikitext-2-raw-v1:test", True),
        ("Salesforce/wikitext:wikitext-2-raw-v1:test", "Salesforce/wikitext:wikitext-2-raw-v1:train", False),
        ("Salesforce/wikitext:wikitext-2-raw-v1:train", "wikitext2", True),
        ("a/b::test", "a/b:default:test", True),
        ("allenai/c4:en:c4-validation.00000-of-00008.json.gz", "allenai/c4:en:validation", True),
        ("allenai/c4:en:c4-validation.00000-of-00008.json.gz", "c4", False),
        ("allenai/c4:en:train", "c4", True),
        ("mit-han-lab/pile-val-backup::validation", "pile", True),
    ],
)
def test_names_of_the_hub(evaluated: str, other: str, same: bool) -> None:
    found = problems(asked(evaluated, other)) if same else parse(asked(evaluated, other), "x.yaml")
    assert not same or found == [
        f"calibration.path: {other} is evaluated as perplexity.p ({evaluated}); choose other text"
    ]


def test_any_section_with_texts_and_the_data_of_tasks(folder: Path) -> None:
    task = folder / "data" / "mine"
    task.mkdir(parents=True)
    for split in ("train", "test"):
        (task / f"{split}.jsonl").write_text('{"text": "' + split + '"}\n')
    config = parse(asked("other.txt") | {"task_data": "data"}, "x.yaml")
    with_fidelity = SimpleNamespace(
        perplexity=config.perplexity,
        task_data="data",
        task_include=["own"],
        fidelity=SimpleNamespace(path="sub/../a.txt"),
    )
    (folder / "own").mkdir()
    for name in ("mine.jsonl", "mine_train.jsonl", "mine.yaml"):
        (folder / "own" / name).write_text('{"text": "own"}\n')
    (folder / "windows.jsonl").write_bytes(b'\xef\xbb\xbf{"text":  "own"}\r\n\r\n')
    splits = "{train: data/mine/train.jsonl, test: sub/rows.jsonl}"
    (folder / "own" / "mine.yaml").write_text(f"test_split: test\ndataset_kwargs: {{data_files: {splits}}}\n")
    pairs = evaluated_texts(with_fidelity)  # type: ignore[arg-type]
    assert pairs[1:] == [
        ("fidelity.path", "sub/../a.txt"),
        ("task_data of mine", "data/mine/test.jsonl"),
        ("data of tasks in own", "own/mine.jsonl"),
        ("data of tasks in own", "sub/rows.jsonl"),
    ]
    assert common([("k", "windows.jsonl")], pairs) == [
        "k: windows.jsonl is evaluated as data of tasks in own (own/mine.jsonl); choose other text"
    ]
    assert common([("k", "link.txt"), ("k", "data/mine/train.jsonl"), ("k", "./data/mine/test.jsonl")], pairs) == [
        "k: link.txt is evaluated as fidelity.path (sub/../a.txt); choose other text",
        "k: ./data/mine/test.jsonl is evaluated as task_data of mine (data/mine/test.jsonl); choose other text",
    ]
