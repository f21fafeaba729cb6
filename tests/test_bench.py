"""The verb bench: rows of a packed folder and of its twin, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from r2q.bench import bench, decode_step, model_layers, weight_bytes
from r2q.cli import main
from r2q.models.apply import apply
from r2q.models.load import load_packed
from r2q.models.save import save
from r2q.models.targets import list_targets
from r2q.quantization.method import Recipe, make_method
from tests.models.tiny import COMMON, GQA, packed_model, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed")
    save(packed_model("llama", granularity="channel"), None, path, {})
    return path


def test_rows_of_a_checkpoint_and_of_its_twin(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "bench.csv"
    arguments = [str(folder), "--batch", "1", "3", "--context", "8", "--repeats", "3", "--device", "cpu"]
    assert main(["bench", *arguments, "--out", str(out)]) == 0
    rows = json.loads(out.with_suffix(".json").read_text())
    assert [(r["model"], r["batch"], r["phase"]) for r in rows] == [
        (model, batch, phase) for model in ("packed", "dense") for batch in (1, 3) for phase in ("decode", "prefill")
    ]
    for row in rows:
        tokens = row["batch"] * (8 if row["phase"] == "prefill" else 1)
        assert row["tokens_per_second"] == pytest.approx(tokens / row["median_ms"] * 1e3, rel=0.01)
        assert row["first_quartile_ms"] <= row["median_ms"] <= row["third_quartile_ms"]
        assert row["peak_bytes"] is None  # of a GPU's memory only
    assert len(list(csv.DictReader(out.open()))) == len(rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ["llama", "opt"])
def test_a_step_of_decoding_is_a_pass_over_all_tokens(
    case: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, drawn, draw = tiny_model(case).eval(), [], torch.randint
    model.set_attn_implementation(attention)

    def remember(*arguments: Any, **options: Any) -> torch.Tensor:
        drawn.append(draw(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(torch, "randint", remember)
    with torch.inference_mode():
        found = decode_step(model, 2, 8, 2)()
        wanted = model(torch.cat(drawn, 1)).logits[:, -1:]  # eight tokens, then the one of the step
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_steps_stand_beside_the_others_and_compute_the_same(folder: Path, tmp_path: Path) -> None:
    rows = bench(folder, tmp_path / "x.csv", batches=(2,), context=8, device="cpu", repeats=2, compiled=True)
    asked = [("decode", False), ("decode", True), ("prefill", False)]
    assert [(row["model"], row["phase"], row["compiled"]) for row in rows] == [
        (model, *one) for model in ("packed", "dense") for one in asked
    ]
    model, logits = load_packed(folder), []
    for compiled in (False, True):
        torch.manual_seed(0)
        with torch.inference_mode():
            logits.append(decode_step(model, 2, 8, 2, compiled)().float())
    assert torch.allclose(*logits, atol=0.02 * float(logits[0].abs().max()))  # bfloat16


def test_a_model_that_is_not_compiled_is_a_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(forward: Any, **options: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> None:
            raise torch._dynamo.exc.BackendCompilerFailed(compile_, OSError("no compiler"), None)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    with pytest.raises(ValueError, match=r"^torch\.compile: .*no compiler"):
        bench(folder, tmp_path / "x.csv", batches=(3,), context=8, device="cpu", repeats=1, compiled=True)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("GPU 0"), MemoryError("main"), RuntimeError("x: can't allocate memory")]
)
def test_what_lacks_memory_is_a_row_beside_the_others(
    error: Exception, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step of one batch, and then a whole twin, which is what packed weights are for."""
    load, first = load_packed, decode_step

    def step(model: Any, batch: int, *arguments: Any) -> Any:
        if batch == 3:
            raise error
        return first(model, batch, *arguments)

    def packed_only(path: Any, dense: bool, **options: Any) -> Any:
        if dense:
            raise error
        return load(path, **options)

    out = tmp_path / "x.csv"
    command = ["bench", str(folder), "--out", str(out), "--batch", "1", "3", "--context", "8", "--repeats", "1"]
    numbers = []
    for name, replaced in (("decode_step", step), ("load_packed", packed_only)):
        with monkeypatch.context() as patch:
            patch.setattr(f"r2q.bench.{name}", replaced)
            assert main([*command, "--device", "cpu"]) == 0
        rows = list(csv.DictReader(out.open()))
        numbers.append([(r["model"], r["phase"], r["batch"]) for r in rows if r["median_ms"]])
        assert {r["reason"] for r in rows if not r["median_ms"]} == {str(error)}
        assert str(error) in capsys.readouterr().out
    alone = [("decode", "1"), ("prefill", "1"), ("prefill", "3")]
    assert numbers[0] == [(model, *one) for model in ("packed", "dense") for one in alone]
    assert numbers[1] == [("packed", phase, batch) for batch in "13" for phase in ("decode", "prefill")]


def test_bytes_read_are_all_but_the_embedding(folder: Path) -> None:
    model = load_packed(folder, dense=True)
    embedding = model.get_input_embeddings().weight
    sizes = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    assert len(model_layers(model)) == 14
    tied = model.get_output_embeddings().weight is embedding
    assert weight_bytes(model) == sum(sizes.values()) - (0 if tied else embedding.numel() * embedding.element_size())


def test_a_context_beyond_the_positions_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="positions, and one is for the new token"):
        bench(folder, tmp_path / "x.csv", context=10**6, device="cpu")
    with pytest.raises(ValueError, match="--batch: 0"):
        bench(folder, tmp_path / "x.csv", batches=(0,))


def test_without_a_context_it_is_what_a_small_model_takes(folder: Path, tmp_path: Path) -> None:
    """The README's own command, on a model of 256 positions."""
    rows = bench(folder, tmp_path / "x.csv", batches=(1,), device="cpu", repeats=1)
    assert {row["context"] for row in rows} == {63}


def gemma(folder: Path, window: int) -> Path:
    """A packed Gemma 3 whose every other layer looks back so many tokens."""
    torch.manual_seed(0)
    layers = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(**COMMON, **GQA, head_dim=16, sliding_window=window, layer_types=layers)
    model = transformers.AutoModelForCausalLM.from_config(config)
    apply(make_method(Recipe("rtn", "rtn", "channel")), model, list_targets(model), torch.device("cpu"))
    save(model, None, folder, {})
    return folder


def test_a_context_is_no_longer_than_attention_looks_back(tmp_path: Path) -> None:
    """In a cache that turns, a mask made once stands at the wrong places."""
    rows = bench(gemma(tmp_path / "40", 40), tmp_path / "x.csv", batches=(1,), device="cpu", repeats=2)
    assert {row["context"] for row in rows} == {30}  # two steps, and eight that warm up
    with pytest.raises(ValueError, match=r"^--context: 31; attention of \S+ looks back 40 tokens, and 10 are for new"):
        bench(tmp_path / "40", tmp_path / "x.csv", context=31, device="cpu", repeats=2)
    with pytest.raises(ValueError, match=r"^--repeats: 2; attention of \S+ looks back 9 tokens"):
        bench(gemma(tmp_path / "9", 9), tmp_path / "x.csv", device="cpu", repeats=2)


def test_a_model_that_cannot_be_timed_is_a_sentence(tmp_path: Path) -> None:
    config = transformers.BloomConfig(vocab_size=272, hidden_size=64, n_layer=2, n_head=4)
    model = transformers.AutoModelForCausalLM.from_config(config)
    apply(make_method(Recipe("rtn", "rtn", "channel")), model, list_targets(model), torch.device("cpu"))
    save(model, None, tmp_path / "bloom", {})
    with pytest.raises(ValueError, match=r"^decode of BloomForCausalLM cannot be timed: "):
        bench(tmp_path / "bloom", tmp_path / "x.csv", context=8, device="cpu", repeats=1)


def test_the_operator_is_one_for_torch_compile() -> None:
    from r2q.kernels.linear import linear
    from tests.kernels.test_packed_kernels import example, vectors

    weight, _ = example("binary", 6, 256, 128)
    stored = weight.codes, weight.first, weight.second, None, weight.form, weight.rows, weight.groups
    torch.library.opcheck(
        linear, (vectors(2, 256, torch.float32), *stored), test_utils=("test_schema", "test_faketensor")
    )
