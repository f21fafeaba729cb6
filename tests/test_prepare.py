"""The verb `prepare`: what cannot work is found before any work, all at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from r2q.config import ConfigError, parse
from r2q.prepare import missing_paths, prepare, recipe_problems
from tests.models.tiny import LINEARS, tiny_folder, tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for case in ("llama", "opt", "qwen3-moe"):
        tiny_folder(case, folder / case)
    return folder


def data(folder: Path, /, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "run": "test",
        "models": {"llama": {"path": str(folder / "llama")}, "opt": {"path": str(folder / "opt")}},
        "recipes": {"fp": {"method": "full_precision"}, "rtn-g32": {"method": "rtn", "granularity": "g32"}},
        "tasks": {"piqa": None},
    }
    return found | changes


def run(folder: Path, config: dict[str, Any], model: str | None = None) -> dict[str, Any]:
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    out = folder / "prepared.json" if model is None else folder / model / "prepared.json"
    prepare(folder / "config.yaml", out, model)
    return json.loads(out.read_text())["models"]


def refused(folder: Path, config: dict[str, Any], model: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        run(folder, config, model)
    assert not list(folder.rglob("prepared.json"))
    return [line.split("config.yaml: ", 1)[1] for line in str(caught.value).splitlines()]


def test_what_is_written_is_true_of_the_model(models: Path, tmp_path: Path) -> None:
    entry = {"moe": {"path": str(models / "qwen3-moe")}}
    facts = run(tmp_path, data(models, models=data(models)["models"] | entry))
    assert [facts[name]["family"] for name in ("llama", "opt", "moe")] == ["llama", "opt", "qwen3_moe"]
    for name, case in (("llama", "llama"), ("opt", "opt"), ("moe", "qwen3-moe")):
        model = tiny_model(case)
        weights = dict(model.named_parameters())
        assert facts[name]["total_parameters"] == sum(p.numel() for p in model.parameters())
        assert len(facts[name]["targets"]) == LINEARS[case]
        for target in facts[name]["targets"]:
            weight = weights.get(target["name"] + ".weight", weights.get(target["name"]))
            assert weight is not None
            assert list(weight.shape) == target["shape"]
        tied = model.config.tie_word_embeddings
        assert (facts[name]["head"] is None) == tied
        if not tied:
            assert facts[name]["head"] == {"name": "lm_head", "shape": list(weights["lm_head.weight"].shape)}
    assert len({facts[name]["fingerprint"] for name in facts}) == 3


def test_one_model_alone_gives_the_same_facts(models: Path, tmp_path: Path) -> None:
    both = run(tmp_path, data(models))
    assert run(tmp_path, data(models), "opt") == {"opt": both["opt"]}
    with pytest.raises(ConfigError, match="unknown model lama; nearest valid: llama"):
        run(tmp_path, data(models), "lama")


def test_all_problems_of_all_models_come_at_once(models: Path, tmp_path: Path) -> None:
    recipes = {
        "rtn-g48": {"method": "rtn", "granularity": "g48"},
        "head-g32": {"method": "rtn", "granularity": "g32", "lm_head": True},
    }
    found = refused(tmp_path, data(models, recipes=recipes, tasks={"piqaa": None, "arc_esy": None}))
    assert [line.split(";")[0] for line in found] == [
        "tasks: there is no lm-eval task piqaa",
        "tasks: there is no lm-eval task arc_esy",
        "recipes.rtn-g48.granularity: group size 48 does not divide the 64 input features of "
        "model.layers.0.self_attn.q_proj and 13 more layers of model llama",
        "recipes.rtn-g48.granularity: group size 48 does not divide the 64 input features of "
        "model.decoder.layers.0.self_attn.k_proj and 11 more layers of model opt",
        "recipes.head-g32.lm_head: the output head of model opt is tied to its embedding",
    ]
    assert refused(tmp_path, data(models, recipes=recipes, tasks={"piqaa": None}), "llama") == found[2:3]


def test_only_the_recipes_of_a_model_are_held_against_it(models: Path, tmp_path: Path) -> None:
    config = data(models, recipes=data(models)["recipes"] | {"rtn-g48": {"method": "rtn", "granularity": "g48"}})
    for name in config["models"]:
        config["models"][name]["recipes"] = ["fp", "rtn-g32"]
    facts = run(tmp_path, config)
    assert recipe_problems(parse(config, "x"), "llama", facts["llama"]) == []
    config["models"]["llama"]["recipes"].append("rtn-g48")
    assert len(recipe_problems(parse(config, "x"), "llama", facts["llama"])) == 1


def test_a_group_that_divides_the_layers_but_not_the_head_is_refused_with_the_head(
    models: Path, tmp_path: Path
) -> None:
    facts = run(tmp_path, data(models))["llama"]
    facts["head"]["shape"] = [272, 80]
    config = data(models)
    config["recipes"]["rtn-g32"]["lm_head"] = True
    (problem,) = recipe_problems(parse(config, "x"), "llama", facts)
    assert problem.endswith("does not divide the 80 input features of lm_head of model llama")


@pytest.mark.parametrize(
    "mark", [{"quantization_config": {"quant_method": "gptq", "bits": 2}}, {"dequantized_from": "r2q"}]
)
def test_a_model_that_went_through_a_quantizer_is_refused(models: Path, tmp_path: Path, mark: dict[str, Any]) -> None:
    folder = tiny_folder("llama", tmp_path / "packed")
    content = json.loads((folder / "config.json").read_text()) | mark
    (folder / "config.json").write_text(json.dumps(content))
    found = refused(
        tmp_path, data(models, models={"packed": {"path": str(folder)}, "opt": {"path": str(models / "opt")}})
    )
    assert len(found) == 1
    assert found[0].startswith(f"models.packed.path: {folder}: {folder} is already quantized")


def test_weights_that_are_not_safetensors_are_refused(models: Path, tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (problem,) = refused(tmp_path, data(models, models={"pickled": {"path": str(folder)}}))
    assert "has no model.safetensors" in problem


def test_paths_that_are_not_there_are_all_named(models: Path, tmp_path: Path) -> None:
    config = data(
        models,
        models={"a": {"path": "./no/model"}},
        perplexity={"text": {"path": "no/text.txt.xz"}, "hub": {"path": "owner/name:config:test"}},
        task_include=["no/tasks"],
        task_data="no/data",
    )
    expected = [
        "models.a.path: there is no folder ./no/model",
        "perplexity.text.path: there is no file no/text.txt.xz",
        "task_include[0]: there is no folder no/tasks",
        "task_data: there is no folder no/data",
    ]
    assert missing_paths(parse(config, "x")) == expected
    assert refused(tmp_path, config) == expected


def test_the_fingerprint_follows_weights_and_config_and_nothing_else(models: Path, tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model")
    config = data(models, models={"m": {"path": str(folder)}})

    def fingerprint() -> str:
        return run(tmp_path, config)["m"]["fingerprint"]

    first = fingerprint()
    (folder / "notes.txt").write_text("no weight")
    assert fingerprint() == first
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    second = fingerprint()
    tiny_folder("llama", folder, seed=1)
    assert len({first, second, fingerprint()}) == 3


def test_large_files_are_hashed_once_until_they_change(tmp_path: Path) -> None:
    file, cache = tmp_path / "a.bin", tmp_path / "cache.json"
    file.write_bytes(b"one")
    known = json.loads(cache.read_text())
    known[str(file.resolve())]["sha256"] = "remembered"
    cache.write_text(json.dumps(known))
    os.utime(file, ns=(0, 0))
    file.write_bytes(b"two")
