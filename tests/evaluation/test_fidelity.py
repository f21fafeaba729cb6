"""The distance to full precision against brute force in float64, a case by hand, and its refusals."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from r2q.config import ConfigError
from r2q.evaluation.adapter import NotFinite
from r2q.evaluation.evaluate import evaluate
from r2q.evaluation.fidelity import bucketed_kl, distance, distributions, read, reference, write
from r2q.evaluation.perplexity import cut
from r2q.records import Evaluation, read_json
from tests.evaluation import tiny
from tests.units import quantize

TEXT = "The first document is here. A second one follows it, with a few more words. The third ends here, and so on."


def tokens(window: int = 16) -> torch.Tensor:
    return cut(list(TEXT.encode()), window)


def brute_force(teacher: torch.nn.Module, student: torch.nn.Module, windows: torch.Tensor, k: int) -> list[float]:
    """Mean KL of each window with all but the teacher's k likeliest tokens in one bucket, in float64."""
    means = []
    for window in windows:
        with torch.no_grad():
            p, q = (model(window[None]).logits[0, :-1].double().softmax(1) for model in (teacher, student))
        found = []
        for a, b in zip(p, q, strict=True):
            order = a.argsort(descending=True)
            a, b = a[order], b[order]
            pairs = [*zip(a[:k].tolist(), b[:k].tolist(), strict=True), (float(a[k:].sum()), float(b[k:].sum()))]
            found.append(math.fsum(x * math.log(x / y) for x, y in pairs if x > 0))
        means.append(statistics.fmean(found))
    return means


@pytest.mark.parametrize("k", [1, 5, 10**6])
def test_kl_and_agreement_are_those_of_brute_force(k: int) -> None:
    teacher, student, windows = tiny.model(), tiny.model(seed=1), tokens()
    found = distance(student, distributions(teacher, windows, k, 2), 3)
    assert found.kl == pytest.approx(brute_force(teacher, student, windows, k), rel=1e-5)
    with torch.no_grad():
        equal = teacher(windows).logits[:, :-1].argmax(2) == student(windows).logits[:, :-1].argmax(2)
    assert found.agreement == pytest.approx(equal.double().mean(1).tolist())
    assert found.tokens == windows.shape[0] * 15
    mean, error = found.means["kl"]
    assert mean == pytest.approx(statistics.fmean(found.kl))
    assert error == pytest.approx(statistics.stdev(found.kl) / math.sqrt(len(found.kl)))


def test_more_tokens_told_apart_never_lower_the_distance() -> None:
    teacher, student, windows = tiny.model(), tiny.model(seed=1), tokens()
    values = [distance(student, distributions(teacher, windows, k, 4), 4).means["kl"][0] for k in (1, 4, 16, 64, 272)]
    assert values == sorted(values)
    assert values[0] < values[-1]


@pytest.mark.parametrize("k", [3, 10**6])
@pytest.mark.parametrize("case", ["llama", "opt", "qwen2"])
def test_a_model_is_at_no_distance_from_itself(case: str, k: int) -> None:
    model, windows = tiny.model(case), tokens()
    found = distance(model, distributions(model, windows, k, 2), 2)
    assert (set(found.kl), set(found.agreement)) == ({0.0}, {1.0})


def test_the_bucket_of_the_tail_by_hand() -> None:
    """p = (1/2, 1/4 | 1/8, 1/8), q = (1/4, 1/4 | 1/4, 1/4): 1/2 ln 2 + 0 + 1/4 ln(1/2)."""
    p, q = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.25]]).log()
    tail_p, tail_q = torch.tensor([0.25]).log(), torch.tensor([0.5]).log()
    assert float(bucketed_kl(p, tail_p, q, tail_q)) == pytest.approx(0.25 * math.log(2))
    none = torch.tensor([-math.inf])  # nothing beyond: no term
    half = torch.tensor([[0.5, 0.5]]).log()
    assert float(bucketed_kl(half, none, torch.tensor([[0.25, 0.75]]).log(), none)) == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    )


def test_a_model_that_is_not_finite_is_no_number() -> None:
    broken, windows = tiny.model(seed=1), tokens()
    with torch.no_grad():
        broken.get_input_embeddings().weight[ord("e")] = math.nan
    with pytest.raises(NotFinite):
        distance(broken, distributions(tiny.model(), windows, 4, 2), 2)
    with pytest.raises(NotFinite):
        distributions(broken, windows, 4, 2)


def test_a_file_holds_what_was_written_in_the_same_bytes(tmp_path: Path) -> None:
    made = distributions(tiny.model(), tokens(), 4, 2)
    for name in ("a", "b"):
        write(tmp_path / name, made, {"x": 1, "y": [2]})
    found = read(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert all(torch.equal(getattr(found, name), getattr(made, name)) for name in ("tokens", "top1", "ids", "tail"))
    assert found.facts["y"] == [2]
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        read(tmp_path / "a")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tiny.model_folder(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    data = tiny.config_data(
        {"m": {"path": str(tmp_path / "model")}}, {}, fidelity={"path": str(tmp_path / "text.txt"), "window": 16}
    )
    (tmp_path / "prepared.json").write_text(json.dumps({"models": {"m": {"fingerprint": "f", "family": "llama"}}}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "config.yaml"


def refer(config: Path) -> None:
    reference(config, config.parent / "prepared.json", "m", config.parent / "reference.safetensors")


def evaluated(config: Path, recipe: str) -> Evaluation:
    unit = config.parent / "m" / recipe / "seed0"
    evaluate(config, "m", unit, config.parent / "reference.safetensors")
    return read_json(unit / "evaluation.json", Evaluation)


def test_the_verbs_give_full_precision_nothing_and_others_something(config: Path) -> None:
    folder = config.parent
    quantize(config, folder / "prepared.json", "m", ["full_precision", "rtn-g64"], folder / "m")
    with pytest.raises(ConfigError, match="--reference"):
        evaluate(config, "m", folder / "m" / "rtn-g64" / "seed0")
    refer(config)
    full, rtn = (
        {row.metric: row for row in evaluated(config, recipe).scores} for recipe in ("full_precision", "rtn-g64")
    )
    assert (full["kl"].value, full["kl"].stderr, full["top1_agreement"].value) == (0.0, 0.0, 1.0)
    assert rtn["kl"].value > 0
    assert 0 <= rtn["top1_agreement"].value < 1
    assert [(row.higher_is_better, row.in_table) for row in rtn.values()] == [(False, True), (True, False)]
    assert {(row.task, row.n) for row in rtn.values()} == {("fidelity", len(tokens()))}


def test_another_text_is_other_data(config: Path) -> None:
    """With settings alike, the hash of the data is all by which provenance can tell."""
    folder, hashes = config.parent, []
    quantize(config, folder / "prepared.json", "m", ["full_precision"], folder / "m")
    for text in (TEXT, TEXT.upper(), TEXT):
        (folder / "text.txt").write_text(text)
        refer(config)
        hashes.append(evaluated(config, "full_precision").hashes["tasks"])
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 161}, r"fidelity\.window: 161 tokens, but model m has only 160 positions"),
        ({"window": 150}, r"fidelity\.path: .*text.txt, read with the tokenizer of m: the text has \d+ tokens, fewer"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(config: Path, change: dict[str, int], message: str) -> None:
    data = yaml.safe_load(config.read_text())
    data["fidelity"] |= change
    config.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=message):
        refer(config)


def test_units_of_a_model_that_is_not_finite_fail_and_its_job_does_not(
    config: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = config.parent
    state = load_file(folder / "model" / "model.safetensors")
    state["model.norm.weight"][3] = math.nan
    save_file(state, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    refer(config)
    assert "reference m: FAILED: fidelity: a log-probability is not finite; no recipe" in capsys.readouterr().out
    quantize(config, folder / "prepared.json", "m", ["full_precision", "rtn-g64"], folder / "m")
    for recipe in ("full_precision", "rtn-g64"):
        record = evaluated(config, recipe)
        assert (record.status, record.scores) == ("failed", [])
        assert record.reason == "of full precision: fidelity: a log-probability is not finite"


def test_a_model_that_does_not_run_is_failed_rows_and_its_jobs_do_not_fail(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As xLSTM in bfloat16; trouble of the machine still ends a job."""
    folder, broken = config.parent, [RuntimeError("expected float, got bfloat16"), torch.OutOfMemoryError("full")]
    recipes = ["full_precision", "rtn-g64"]
    quantize(config, folder / "prepared.json", "m", recipes, folder / "m")

    def forward(*_: Any, **__: Any) -> None:
        raise broken[0]

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    refer(config)
    said = "RuntimeError: expected float, got bfloat16"
    assert f"reference m: FAILED: {said}; no recipe of it has a distance" in capsys.readouterr().out
    for recipe in recipes:
        record = evaluated(config, recipe)
        assert (record.status, record.reason) == ("failed", f"of full precision: {said}")
    broken.pop(0)
    with pytest.raises(torch.OutOfMemoryError):
        refer(config)
