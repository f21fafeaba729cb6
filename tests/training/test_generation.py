"""The full-precision model's own text: prompts of all lengths at once, runs that are killed, vLLM in its place."""

import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from r2q.config import ConfigError
from r2q.config.texts import Training
from r2q.kept import seed_of
from r2q.models.checks import read_tokenizer
from r2q.models.load import load_full
from r2q.quantize import quantize
from r2q.records import Report, read_json
from r2q.training.data import Rows
from r2q.training.generation import with_transformers
from r2q.training.teacher_data import draw
from r2q.training.unfinished import Unfinished
from tests.models.tiny import tiny_model
from tests.training.teacher import make, section, teacher_folder

WHOLE = {"prompt_tokens": None, "length": 30}  # prompts of 15 to 19 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("model"))


def all_rows(train: Rows, held_out: Rows) -> list[list[int]]:
    pairs = [(tokens, end) for rows in (train, held_out) for tokens, end in zip(rows.tokens, rows.end, strict=True)]
    return [tokens[:end].tolist() for tokens, end in pairs]


def prompts_of(folder: Path) -> list[list[int]]:
    tokenizer = read_tokenizer(folder)
    return [tokenizer(text)["input_ids"] for text, _ in draw(section(folder))]


def test_rows_begin_with_the_prompts_that_were_drawn(folder: Path, tmp_path: Path) -> None:
    train, held_out, _, _ = make(folder, tmp_path / "rows.safetensors", **WHOLE)
    starts = [*train.start.tolist(), *held_out.start.tolist()]
    rows = all_rows(train, held_out)
    assert [row[:start] for row, start in zip(rows, starts, strict=True)] == prompts_of(folder)
    assert len(set(starts)) > 2
    assert all(len(row) > start for row, start in zip(rows, starts, strict=True))


def test_greedy_text_is_what_the_model_says(folder: Path, tmp_path: Path) -> None:
    """Each next token is the likeliest one, also where prompts of different lengths were continued together."""
    train, _, _, _ = make(folder, tmp_path / "rows.safetensors", temperature=0.0, **WHOLE)
    model = load_full(str(folder))
    for tokens, start, end in zip(train.tokens, train.start.tolist(), train.end.tolist(), strict=True):
        with torch.no_grad():
            said = model(tokens[None, :end]).logits[0]
        said[start - 1, 2] = -torch.inf  # the first token never ends the row
        assert torch.equal(said.argmax(-1)[start - 1 : end - 1], tokens[start:end])


def test_a_row_ends_with_its_first_end_of_text_token_behind_the_prompt() -> None:
    """All tokens are equally likely, so some rows end early; the token inside of a prompt ends nothing."""
    model = tiny_model("llama")
    model.lm_head.weight.data.zero_()
    heads = [[5, 2, 7], [5, 6, 7, 2, 8, 2], [9, 2]]
    wanted = Training.model_validate({"texts": [{"path": "a.txt", "rows": 1}], "length": 400, "temperature": 1.0})
    rows = with_transformers(model, 2, wanted)(heads, [0, 1, 2], 0)
    for row, head in zip(rows, heads, strict=True):
        assert row[: len(head)] == head
        said = row[len(head) :]
        assert 0 < len(said) <= 400 - len(head)
        assert said.count(2) == (1 if len(row) < 400 else said[-1] == 2)
        assert said[-1] == 2 or len(row) == 400
    assert any(len(row) < 400 for row in rows)
    endless = with_transformers(model, None, wanted)(heads, [0, 1, 2], 0)
    assert [len(row) for row in endless] == [400] * 3


@pytest.mark.parametrize("when", ["before", "after", "within"])
def test_killed_and_started_again_gives_the_same_bits(
    when: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process is killed with signal 9 before, after or in the middle of writing its second batch of three.

    On the CPU: a fork may not use a GPU that was used before it.
    """
    out = tmp_path / "killed" / "rows.safetensors"
    child = os.fork()
    if child == 0:
        add = Unfinished.add

        def add_and_die(self: Unfinished, rows: dict[int, list[int]]) -> None:
            fatal = len(self.rows) == 5
            if fatal and when == "within":
                with self.path.open("a") as file:
                    file.write(json.dumps(rows)[:40])
            if fatal and when != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            add(self, rows)
            if fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        Unfinished.add = add_and_die  # type: ignore[method-assign, assignment]
        try:
            make(folder, out, device="cpu", **WHOLE)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    capsys.readouterr()
    found = make(folder, out, device="cpu", **WHOLE)
    kept = 10 if when == "after" else 5
    assert f"{kept} rows taken over from an interrupted run" in capsys.readouterr().out
    whole = make(folder, tmp_path / "whole" / "rows.safetensors", device="cpu", **WHOLE)
    assert found[3] == whole[3]  # rows and settings
    assert torch.equal(found[0].tokens, whole[0].tokens)
    assert out.with_suffix(".json").read_bytes() == (tmp_path / "whole" / "rows.json").read_bytes()
    assert not list(out.parent.glob(".*"))


def test_rows_of_something_else_or_damaged_ones_are_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / ".rows.unfinished"
    first = Unfinished(path, "one")
    first.add({0: [1, 2], 3: [4]})
    first.add({1: [5]})
    assert Unfinished(path, "one").rows == {0: [1, 2], 3: [4], 1: [5]}
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    torn = Unfinished(path, "one")
    assert torn.rows == {0: [1, 2], 3: [4]}
    torn.add({1: [6]})
    assert Unfinished(path, "one").rows == {0: [1, 2], 3: [4], 1: [6]}
    lines = path.read_text().splitlines(keepends=True)
    changed = lines[2].replace("[6]", "[7]")
    for bad in (changed, "[]\n", "{}\n", "5\n", '{"1": [6]}\n', '{"rows": [1], "sha256": ""}\n', "\0\n"):
        path.write_text("".join([*lines[:2], bad, lines[2]]))  # one is damaged: those behind it are not trusted
        assert Unfinished(path, "one").rows == {0: [1, 2], 3: [4]}
    for header in ("", "{}\n", "[]\n"):
        path.write_text("".join([header, *lines[1:]]))
        assert Unfinished(path, "one").rows == {}
    torn.add({1: [6]})
    assert Unfinished(path, "other").rows == {}
    assert Unfinished(path, "one").rows == {}
    torn.remove()
    assert not path.exists()


VLLM = '''
"""As much of vLLM's interface as is used, under its names; every answer depends on the seed of its request alone."""
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace

engines, requests = [], []

class LLM:
    def __init__(self, model, **engine_arguments):
        engines.append({"model": model, **engine_arguments})

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        assert len(prompts) == len(sampling_params)
        requests.append([(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, sampling_params)])
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(answer(one)))]) for one in sampling_params]

@dataclass
class SamplingParams:
    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list | None = None
    stop_token_ids: list | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    detokenize: bool = True

def answer(one):
    random = Random(one.seed)
    tokens = [random.randrange(3, 96) for _ in range(one.max_tokens)]
    return tokens if one.seed % 2 else [*tokens[:3], 2]
'''


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A stand-in for vLLM, installed as a distribution of its own."""
    site = tmp_path / "site"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm" / "__init__.py").write_text(VLLM)
    (site / "vllm" / "platforms.py").write_text("class current_platform:\n    device_type = 'cpu'\n")
    (site / "vllm-0.99.0.dist-info").mkdir()
    (site / "vllm-0.99.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.99.0\n")
    (site / "vllm-0.99.0.dist-info" / "top_level.txt").write_text("vllm\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delenv("VLLM_BATCH_INVARIANT", raising=False)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_STREAM"):
        monkeypatch.setenv(name, "1")  # put back afterwards
    import vllm as module

    yield module
    for name in ("vllm", "vllm.platforms"):
        sys.modules.pop(name, None)


def test_vllm_is_asked_for_exactly_what_the_config_says(vllm: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.safetensors"
    train, held_out, settings, _ = make(folder, out, engine="vllm", top_p=0.9, seed=3, device="cpu", **WHOLE)
    engine = {"model": str(folder), "dtype": "float32", "seed": 3, "max_model_len": 30, "max_num_seqs": 5}
    assert vllm.engines == [engine | {"enable_prefix_caching": False, "generation_config": "vllm"}]
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    tokenizer = read_tokenizer(folder)
    prompts = [tokenizer(text)["input_ids"] for text, _ in draw(section(folder, seed=3))]
    same = {"temperature": 0.7, "top_p": 0.9, "min_tokens": 1, "stop_token_ids": [2], "detokenize": False}
    own = [{"max_tokens": 30 - len(prompt), "seed": seed_of(repr((3, i)))} for i, prompt in enumerate(prompts)]
    asked = [(prompt, vllm.SamplingParams(**same, **one)) for prompt, one in zip(prompts, own, strict=True)]
    (requests,) = vllm.requests
    assert sorted(requests, key=lambda request: request[1].seed) == sorted(asked, key=lambda one: one[1].seed)
    assert all_rows(train, held_out) == [prompt + vllm.answer(one) for prompt, one in asked]
    assert (settings["engine"], settings["vllm"], settings["batch_invariant"]) == ("vllm", "vllm 0.99.0", "0")
    assert settings["versions"].keys() >= {"torch", "transformers", "tokenizers"}


def test_vllm_goes_on_after_an_interruption(
    vllm: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows have seeds of their own: one at a time or all at once, they are the same."""
    monkeypatch.setattr("r2q.training.generation.VLLM_BATCHES", 1)
    how = WHOLE | {"engine": "vllm", "device": "cpu"}
    whole = make(folder, tmp_path / "whole" / "rows.safetensors", **how)
    assert [len(batch) for batch in vllm.requests] == [5, 5, 2]
    generate = vllm.LLM.generate

    def fail(*arguments: Any, **options: Any) -> Any:
        if len(vllm.requests) == 5:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr(vllm.LLM, "generate", fail)
    with pytest.raises(KeyboardInterrupt):
        make(folder, tmp_path / "cut" / "rows.safetensors", **how)
    monkeypatch.setattr(vllm.LLM, "generate", generate)
    again = make(folder, tmp_path / "cut" / "rows.safetensors", **how)
    assert again[3] == whole[3]
    assert [len(batch) for batch in vllm.requests] == [5, 5, 2, 5, 5, 2]
    small = make(folder, tmp_path / "small" / "rows.safetensors", **how | {"batch_size": 1})
    assert all_rows(*small[:2]) == all_rows(*whole[:2])


def test_a_vllm_for_another_device_is_refused(vllm: Any, folder: Path, tmp_path: Path) -> None:
    from vllm.platforms import current_platform

    current_platform.device_type = "cuda"
    with pytest.raises(ValueError, match="device: cpu is asked for, but the installed vllm is for cuda"):
        make(folder, tmp_path / "rows.safetensors", engine="vllm", device="cpu")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_without_vllm_nothing_is_begun(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r2q.training.teacher_data.read_tokenizer", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(ConfigError, match=r"training\.engine: vllm is not installed .* or use transformers"):
        make(folder, tmp_path / "rows.safetensors", engine="vllm")


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_model_that_is_not_finite_writes_no_rows_and_what_trains_on_them_is_a_failed_row(
    folder: Path, tmp_path: Path, temperature: float
) -> None:
    """The likeliest of logits that are no numbers would be a token like any other."""
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    state = load_file(broken / "model.safetensors")
    state["model.norm.weight"][3] = math.nan
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    train, held_out, settings, _ = make(broken, tmp_path / "rows.safetensors", temperature=temperature)
    assert (len(train), len(held_out), settings["reason"]) == (0, 0, "the logits of a generated token are not finite")
    assert not list(tmp_path.glob(".*unfinished"))
    (tmp_path / "prepared.json").write_text(json.dumps({"models": {"tiny": {"fingerprint": "f1", "family": "llama"}}}))
    inputs = {"prepared": tmp_path / "prepared.json", "training": tmp_path / "rows.safetensors"}
    quantize(tmp_path / "config.yaml", model="tiny", recipe="bitdistiller-g32", seed=0, out=tmp_path / "unit", **inputs)
    report = read_json(tmp_path / "unit" / "report.json", Report)
    assert (report.status, report.retry) == ("failed", False)
    assert report.reason == "there are no rows to train on: the logits of a generated token are not finite"
