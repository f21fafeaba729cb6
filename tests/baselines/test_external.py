"""Checkpoints quantized elsewhere: linked, loaded, sized, compared; and what is said of those that cannot be."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from r2q import config as configuration
from r2q.models.apply import FAILURES, apply
from r2q.models.checks import read_tokenizer
from r2q.models.external import computed_weight, link, probe
from r2q.models.load import load_full, load_packed
from r2q.models.save import folder_digest, save
from r2q.models.targets import list_targets
from r2q.prepare import missing_paths
from r2q.quantization.method import Recipe, make_method
from tests.models.test_packed import AXK1
from tests.models.tiny import COMMON, GQA, tiny_folder, tokens
from tests.units import quantize


def packed_folder(source: Path, folder: Path) -> list[dict[str, Any]]:
    """R2Q of a tiny model; returns its layers as its own report has them."""
    model = load_full(str(source))
    recipe = Recipe("r2q-g32", "r2q", "g32")
    layers, _ = apply(make_method(recipe), model, list_targets(model), torch.device("cpu"))
    save(model, None, folder, dict(vars(recipe)))
    return layers


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The verb `quantize` with the recipe external: returns its report and the unit's folder."""
    monkeypatch.setattr("r2q.quantize.read_tokenizer", lambda *_: None)

    def quantize_with(source: Path, checkpoint: Path) -> tuple[dict[str, Any], Path]:
        config, prepared = tmp_path / "config.yaml", tmp_path / "prepared.json"
        config.write_text(
            f"run: x\nmodels: {{tiny: {{path: '{source}'}}}}\n"
            f"recipes: {{theirs: {{method: external, options: {{path: '{checkpoint}'}}}}}}\ntasks: {{arc_easy: {{}}}}\n"
        )
        prepared.write_text(json.dumps({"models": {"tiny": {"fingerprint": "f", "family": "llama"}}}))
        quantize(config, prepared, "tiny", ["theirs"], tmp_path / "run" / "tiny")
        folder = tmp_path / "run" / "tiny" / "theirs" / "seed0"
        return json.loads((folder / "report.json").read_text()), folder

    return quantize_with


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    return load_packed(folder, dense=True)(tokens()).logits


@pytest.mark.parametrize("case", ["llama", "opt", "mixtral"])
def test_a_packed_folder_of_ours(case: str, tmp_path: Path, run: Any) -> None:
    """The same errors, sizes and logits as the recipe that made it, and not a byte of it copied or changed."""
    source, checkpoint = tiny_folder(case, tmp_path / "full"), tmp_path / "packed"
    layers = packed_folder(source, checkpoint)
    (checkpoint / "report.json").write_text("{}")  # as in a unit of another run
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    report, folder = run(source, checkpoint)
    assert report["status"] == "ok"
    assert report["bits_per_weight"] == 3.0  # 2 + 32/32
    assert report["file_bytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert report["file_bytes"] - 64 * 1024 < report["formula_bytes"] < report["file_bytes"]
    assert [layer["name"] for layer in report["layers"]] == [layer["name"] for layer in layers]
    for ours, theirs in zip(layers, report["layers"], strict=True):
        assert theirs["relative_error"] == pytest.approx(ours["relative_error"])
    assert (folder / "model.safetensors").is_symlink()
    assert not (folder / "report.json").is_symlink()
    assert torch.equal(logits(folder), logits(checkpoint))
    assert report["hashes"]["weights"] == folder_digest(folder) == folder_digest(checkpoint)
    assert before == {file.name: file.read_bytes() for file in checkpoint.iterdir()}


def test_a_plain_folder(tmp_path: Path, run: Any) -> None:
    source = tiny_folder("llama", tmp_path / "full")
    changed = tiny_folder("llama", tmp_path / "theirs", seed=1)
    report, folder = run(source, changed)
    assert report["bits_per_weight"] == 32
    one, other = load_full(str(source)), load_full(str(changed))
    for target, layer in zip(list_targets(one), report["layers"], strict=True):
        difference = (other.get_submodule(target.name).weight - target.weight).detach()
        assert layer["mse"] == pytest.approx(float(difference.square().mean()))
    assert torch.equal(logits(folder), logits(changed))


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPTNeoXConfig(**COMMON, intermediate_size=128),
        transformers.MixtralConfig(**COMMON, **GQA, num_local_experts=4),
        transformers.AXK1Config(**COMMON, **AXK1, num_key_value_heads=4, intermediate_size=64),
    ],
    ids=lambda config: config.model_type,
)
def test_what_a_checkpoint_calls_otherwise_than_the_model_counts_as_what_it_is(
    config: Any, tmp_path: Path, run: Any
) -> None:
    """Such as GPT-NeoX's output head, which had been counted into its layers: 16 bits each."""
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "full")
    report, _ = run(tmp_path / "full", tmp_path / "full")
    assert report["bits_per_weight"] == 16


@pytest.mark.parametrize(("name", "is_one"), [("tokenizer_config.json", False), ("vocab.txt", True)])
def test_the_models_tokenizer_stands_in_where_a_checkpoint_has_none(name: str, is_one: bool, tmp_path: Path) -> None:
    """Settings of a tokenizer are none without a vocabulary."""
    checkpoint, unit = tiny_folder("llama", tmp_path / "theirs"), tmp_path / "unit"
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    (checkpoint / name).write_text("{}")
    link(checkpoint, unit, read_tokenizer("mini/models/mini-llama"))
    assert (unit / "tokenizer.json").exists() == (not is_one)
    assert (unit / name).resolve() == (checkpoint / name).resolve()
    if not is_one:
        assert read_tokenizer(unit).encode("a town") == read_tokenizer("mini/models/mini-llama").encode("a town")


def test_another_checkpoint_at_the_same_place_is_taken_again(tmp_path: Path, run: Any, capsys: Any) -> None:
    source, checkpoint = tiny_folder("llama", tmp_path / "full"), tmp_path / "theirs"
    tiny_folder("llama", checkpoint, seed=1)
    first, _ = run(source, checkpoint)
    run(source, checkpoint)
    assert "theirs seed 0: kept" in capsys.readouterr().out
    tiny_folder("llama", checkpoint, seed=2)
    second, _ = run(source, checkpoint)
    assert first["hashes"]["weights"] != second["hashes"]["weights"]
    assert first["layers"][0]["mse"] != second["layers"][0]["mse"]
    os.rename(checkpoint, tmp_path / "moved")  # noqa: PTH104
    third, _ = run(source, checkpoint)
    assert third["reason"] == f"options.path: there is no folder {checkpoint}"
    fourth, folder = run(source, tmp_path / "moved")  # the unit's links led nowhere
    assert fourth["status"] == "ok"
    assert fourth["hashes"]["weights"] == second["hashes"]["weights"] == folder_digest(folder)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("aqlm", r"has the format aqlm, whose library is not installed here: .*aqlm"),
        ("gptq", r"has the format gptq, whose library is not installed here: .*"),
        ("gtpq", r"has the format gtpq, which transformers does not know; nearest valid: gptq"),
        ("fbgemm_fp8", r"has the format fbgemm_fp8(, whose library is not installed| and cannot be loaded) here: "),
    ],
)
def test_a_format_that_cannot_be_loaded_is_a_failed_row(method: str, message: str, tmp_path: Path, run: Any) -> None:
    source, checkpoint = tiny_folder("llama", tmp_path / "full"), tiny_folder("llama", tmp_path / "theirs")
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 2, "group_size": 32}
    (checkpoint / "config.json").write_text(json.dumps(config))
    report, folder = run(source, checkpoint)
    assert report["status"] == "failed"
    assert re.search(message, report["reason"])
    assert "\n" not in report["reason"]
    assert not list(folder.glob("*.safetensors"))
    assert list(checkpoint.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    ],
)
def test_a_folder_that_is_not_a_checkpoint(spoil: Any, message: str, tmp_path: Path, run: Any) -> None:
    source, checkpoint = tiny_folder("llama", tmp_path / "full"), tiny_folder("llama", tmp_path / "theirs")
    spoil(checkpoint)
    report, _ = run(source, checkpoint)
    assert re.search(message, report["reason"])


@pytest.mark.parametrize("case", ["opt", "mixtral"])
def test_a_checkpoint_of_another_model_is_refused(case: str, tmp_path: Path, run: Any) -> None:
    report, _ = run(tiny_folder("llama", tmp_path / "full"), tiny_folder(case, tmp_path / "theirs"))
    assert "is not one of this model" in report["reason"]


def test_a_config_is_checked_before_any_work(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"method": "external", "options": {"path": str(tmp_path / "nowhere")}}
    data = {"run": "x", "models": {"m": {"path": str(tmp_path)}}, "recipes": {"r": recipe}, "tasks": {"arc_easy": {}}}
    expected = f"recipes.r.options.path: there is no folder {tmp_path / 'nowhere'}"
    assert missing_paths(configuration.parse(data, "c")) == [expected]
    with pytest.raises(configuration.ConfigError, match=r"recipes\.r\.granularity: method external has none, not g64"):
        configuration.parse(data | {"recipes": {"r": recipe | {"granularity": "g64"}}}, "c")
    with pytest.raises(configuration.ConfigError, match=r"recipes\.r\.options\.path: .*required"):
        configuration.parse(data | {"recipes": {"r": {"method": "external"}}}, "c")


def test_a_layer_of_any_format_is_measured_by_what_it_computes() -> None:
    """A layer that hides its weight: its answers to the unit vectors are the weight, whatever the bias."""

    class Hidden(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.inside = [linear]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inside[0](x)

    linear = torch.nn.Linear(40, 24)

    class Model(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")

    with torch.no_grad():
        torch.testing.assert_close(probe(Hidden(linear), 40, Model()), linear.weight)


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    model = load_full(str(tiny_folder("llama", tmp_path / "full")))
    target = list_targets(model)[0]
    del model.model.layers[0].self_attn.q_proj
    with pytest.raises(FAILURES, match=r"no layer model\.layers\.0\.self_attn\.q_proj"):
        computed_weight(model, target)
