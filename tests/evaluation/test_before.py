"""What an evaluation cannot do with a model is one sentence before anything is quantized."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from r2q.config import ConfigError
from r2q.evaluation.before import check
from tests.evaluation import tiny
from tests.models.tiny import byte_tokenizer

PAGES = ["A page of words. It has two sentences.", "Another page, which is longer than the first one is."]


def checked(folder: Path, tasks: dict[str, Any], **settings: Any) -> list[str]:
    """The problems of a config with the model `m` of 160 positions; none where the check passes."""
    if not (folder / "model").is_dir():
        tiny.model_folder(folder / "model")
    tiny.write_task(folder / "tasks", "choose", tiny.choice_rows())
    tiny.write_text_task(folder / "tasks", "pages", PAGES)
    tiny.write_sum_task(folder / "tasks", "sums")
    (folder / "text.txt").write_text(PAGES[0])
    data = tiny.config_data(
        {"m": {"path": str(folder / "model")}}, tasks, task_include=[str(folder / "tasks")], **settings
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(data))
    try:
        check(folder / "config.yaml", "m", folder / "out" / "checked.json")
    except ConfigError as error:
        assert not (folder / "out").exists()
        return [line.removeprefix(f"{folder / 'config.yaml'}: ") for line in str(error).splitlines()]
    assert (folder / "out" / "checked.json").is_file()
    return []


def test_what_can_be_evaluated_passes(tmp_path: Path) -> None:
    text = {"path": str(tmp_path / "text.txt"), "window": 38}  # all of its bytes
    assert checked(tmp_path, {"choose": {}, "pages": {}, "sums": {}}, perplexity={"book": text}, fidelity=text) == []


def test_windows_and_texts(tmp_path: Path) -> None:
    path = str(tmp_path / "text.txt")
    found = checked(
        tmp_path,
        {},
        perplexity={"long": {"path": path, "window": 161}, "short": {"path": path, "window": 39}},
        fidelity={"path": path, "window": 40},
    )
    few = "tokens with the tokenizer of model m, fewer than one window of"
    assert found == [
        "perplexity.long.window: 161 tokens, but model m has only 160 positions",
        f"perplexity.short.path: {path} has 38 {few} 39",
        f"fidelity.path: {path} has 38 {few} 40",
    ]


@pytest.mark.parametrize(("tokens", "refused"), [(159, False), (160, True), (None, True)])
@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])  # lm-eval takes them all
def test_a_generation_that_leaves_no_room_for_a_prompt(
    tmp_path: Path, name: str, tokens: int | None, refused: bool
) -> None:
    tiny.write_sum_task(tmp_path / "tasks", "long")
    path = tmp_path / "tasks" / "long.yaml"
    task = yaml.safe_load(path.read_text())
    task["generation_kwargs"] = {"until": ["\n"], "do_sample": False} | ({name: tokens} if tokens else {})
    path.write_text(yaml.safe_dump(task))
    said = f"generates up to {tokens or 256} tokens (max_gen_toks), but model m has only 160 positions"
    assert checked(tmp_path, {"long": {}}) == ([f"tasks.long: {said}"] if refused else [])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"unsafe_code": True}, "runs code that a model wrote (unsafe_code), which is not done here"),
        ({"doc_to_image": "q"}, "shows pictures or plays sounds, but model m reads text alone"),
    ],
)
def test_tasks_that_no_evaluation_would_run(tmp_path: Path, setting: dict[str, Any], said: str) -> None:
    """lm-eval refuses them for every unit, after all were quantized."""
    tiny.write_sum_task(tmp_path / "tasks", "other", **setting)
    assert checked(tmp_path, {"other": {}}) == [f"tasks.other: {said}"]


def test_a_tokenizer_without_a_first_and_a_last_token(tmp_path: Path) -> None:
    tiny.model_folder(tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    found = checked(tmp_path, {"choose": {}, "pages": {}, "sums": {}})
    assert [line.split(":")[0] for line in found] == ["tasks.pages", "tasks.sums"]
    assert all("the tokenizer of model m has no" in line for line in found)


def test_a_task_whose_data_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'owner/data' on the Hub")

    tiny.write_task(tmp_path / "tasks", "far", [], dataset_path="owner/data", dataset_kwargs=...)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    (line,) = checked(tmp_path, {"choose": {}, "far": {}})
    assert line.startswith("tasks.far: ")
    assert "owner/data" in line
