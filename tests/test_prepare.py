"""The verb `prepare`: what cannot work is found before any work, all at once."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CodeGenConfig,
    DeepseekV4Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
)

from r2q.config import ConfigError, parse
from r2q.evaluation.adapter import Scorer
from r2q.models.checks import max_positions, meta_model, read_config
from r2q.models.fingerprint import check_unchanged
from r2q.models.load import load_full
from r2q.models.targets import list_targets
from r2q.plan import Plan
from r2q.plan.checks import problems
from r2q.prepare import missing_paths, prepare, recipe_problems
from r2q.tokens import Encoder
from tests.models.tiny import LINEARS, byte_tokenizer, tiny_folder, tiny_model

ROWS = {"texts": [{"path": "a.txt", "rows": 999}], "length": 64}


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder that the test may change."""
    return tiny_folder("llama", tmp_path / "model")


def of(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config of one model, `m`."""
    return data(folder, models={"m": {"path": str(folder)}}, **changes)


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
        taken = sum(math.prod(target["shape"]) for target in facts[name]["targets"])
        kept = sum(w.numel() for n, w in weights.items() if "layers." in n and (w.dim() == 1 or ".gate." in n))
        assert facts[name]["block_parameters"] == taken + kept  # norms, biases and routers
        tied = model.config.tie_word_embeddings
        assert (facts[name]["head"] is None) == tied
        if not tied:
            assert facts[name]["head"] == {"name": "lm_head", "shape": list(weights["lm_head.weight"].shape)}
    assert len({facts[name]["fingerprint"] for name in facts}) == 3


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_is_stored_beside_the_embedding_is_what_was_stored(
    same: bool, models: Path, tmp_path: Path
) -> None:
    """Where config.json calls it tied and its numbers are others, transformers does not tie it; lm-eval would."""
    folder = shutil.copytree(models / "llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    weights = load_file(folder / "model.safetensors")
    if same:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    facts = run(tmp_path, data(tmp_path, models={"llama": {"path": str(folder)}}))["llama"]
    assert (facts["head"] is None) == same
    model = load_full(str(folder))
    assert facts["total_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    Scorer(model, Encoder(byte_tokenizer(), False), 1)  # which ties the weights
    head = model.get_output_embeddings().weight
    assert torch.equal(head, weights["lm_head.weight"])
    assert (head is model.get_input_embeddings().weight) == same


def test_a_head_that_cannot_be_quantized_stops_no_recipe_that_leaves_it_alone(tmp_path: Path) -> None:
    """xLSTM multiplies by its head outside of the module."""
    torch.manual_seed(0)
    config = transformers.xLSTMConfig(vocab_size=272, hidden_size=64, num_hidden_layers=2, num_heads=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    asked = of(tmp_path / "m")
    facts = run(tmp_path, asked)["m"]
    assert facts["head"] is None
    assert len(facts["targets"]) == 20
    asked["recipes"]["rtn-g32"]["lm_head"] = True
    (problem,) = recipe_problems(parse(asked, "x"), "m", facts)
    assert problem.endswith("lm_head: the output head of model m is tied to its embedding, or no linear map")


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
        "recipes.head-g32.lm_head: the output head of model opt is tied to its embedding, or no linear map",
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


def test_scaled_logits_are_refused_where_a_recipe_trains(models: Path, tmp_path: Path) -> None:
    facts = run(tmp_path, data(models))["llama"]
    assert facts["plain_logits"]
    recipes = data(models)["recipes"] | {"qat-g32": {"method": "qat_ce", "granularity": "g32"}}
    config = parse(data(models, recipes=recipes, training=ROWS), "x")
    assert recipe_problems(config, "llama", facts) == []
    (problem,) = recipe_problems(config, "llama", facts | {"plain_logits": False})
    assert problem.startswith("recipes.qat-g32.method: the logits of model llama are not what its output layer gives")


@pytest.mark.parametrize(
    ("method", "section", "problem"),
    [
        ("gptq", {"calibration": {"path": "a.txt", "window": 65}}, "calibration.window: 65 tokens"),
        ("qat_ce", {"training": ROWS | {"length": 65}}, "training.length: 65 tokens"),
    ],
)
def test_rows_that_are_longer_than_the_model_are_refused_where_a_recipe_takes_them(
    models: Path, tmp_path: Path, method: str, section: dict[str, Any], problem: str
) -> None:
    facts = run(tmp_path, data(models))
    assert facts["llama"]["positions"] == 64
    config = data(
        models, recipes={"fp": {"method": "full_precision"}, "x-g32": {"method": method, "granularity": "g32"}}
    )
    config["models"]["opt"]["recipes"] = ["fp"]
    asked = parse(config | section, "x")
    assert recipe_problems(asked, "llama", facts["llama"]) == [f"{problem}, but model llama has only 64 positions"]
    assert recipe_problems(asked, "opt", facts["opt"]) == []
    assert recipe_problems(asked, "llama", facts["llama"] | {"positions": None}) == []


def test_a_group_that_divides_the_layers_but_not_the_head_is_refused_with_the_head(
    models: Path, tmp_path: Path
) -> None:
    facts = run(tmp_path, data(models))["llama"]
    facts["head"]["shape"] = [272, 80]
    config = data(models)
    config["recipes"]["rtn-g32"]["lm_head"] = True
    (problem,) = recipe_problems(parse(config, "x"), "llama", facts)
    assert "does not divide the 80 input features of lm_head of model llama" in problem
    assert problem.endswith("; what divides 16 does, and `channel`")  # of 64 and 128 in its blocks, and 80


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
    assert problems(Plan(parse(config, "x")), []) == expected
    assert refused(tmp_path, config) == expected


def test_what_no_recipe_of_a_model_reads_may_be_missing(models: Path) -> None:
    recipes = data(models)["recipes"] | {
        "gptq-g32": {"method": "gptq", "granularity": "g32"},
        "qat-g32": {"method": "qat_ce", "granularity": "g32"},
        "theirs": {"method": "external", "options": {"path": "./no/checkpoint"}},
    }
    config = data(models, recipes=recipes, fidelity={"path": "no/test.txt"})
    config |= {"calibration": {"path": "no/text.txt"}, "training": {"texts": [{"path": "no/rows.txt", "rows": 999}]}}
    expected = {
        "fp": ["fidelity.path: there is no file no/test.txt"],
        "gptq-g32": ["calibration.path: there is no file no/text.txt"],
        "qat-g32": ["training.texts[0].path: there is no file no/rows.txt"],
        "theirs": ["recipes.theirs.options.path: there is no folder ./no/checkpoint"],
    }
    for name, lines in expected.items():
        for model in config["models"].values():
            model["recipes"] = ["fp", name] if name != "fp" else ["fp"]
        assert set(missing_paths(parse(config, "x"))) == {*expected["fp"], *lines}


def test_the_fingerprint_follows_all_that_is_read_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    first = run(tmp_path, of(folder))["m"]
    (folder / "notes.txt").write_text("no weight")
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert run(tmp_path, of(folder))["m"] == first
    fingerprints = {first["fingerprint"]}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text() + "\n")
        fingerprints.add(run(tmp_path, of(folder))["m"]["fingerprint"])
    tiny_model("llama", seed=1).save_pretrained(folder)
    assert len({*fingerprints, run(tmp_path, of(folder))["m"]["fingerprint"]}) == 4


def test_a_change_that_leaves_size_and_time_alone_is_seen(folder: Path, tmp_path: Path) -> None:
    config = of(folder)
    facts, weights = run(tmp_path, config)["m"], folder / "model.safetensors"
    check_unchanged(folder, facts)
    os.utime(weights)  # another time, the same content
    check_unchanged(folder, facts)
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=times)
    with pytest.raises(ValueError, match=r"model\.safetensors has another content since `prepare`"):
        check_unchanged(folder, facts)
    assert run(tmp_path, config)["m"]["fingerprint"] != facts["fingerprint"]
    (folder / "added_tokens.json").write_text("{}")
    with pytest.raises(ValueError, match=r"added_tokens\.json is new since"):
        check_unchanged(folder, facts)


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], name: str = "model.safetensors") -> None:
    state = load_file(folder / name)
    change(state)
    save_file(state, folder / name, metadata={"format": "pt"})


def _shards(folder: Path) -> None:
    tiny_model("llama").save_pretrained(folder, max_shard_size="50KB")
    (folder / "model.safetensors").unlink()
    sorted(folder.glob("model-0000*.safetensors"))[1].unlink()


def _sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")


def _pad(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<more{i}>" for i in range(272 - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json of FOLDER cannot be used: it is not there"),
    "cut config": (lambda f: (f / "config.json").write_text("{"), "config.json of FOLDER cannot be used: "),
    "own code": (
        lambda f: _edit(f / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        "config.json of FOLDER cannot be used: its model_type mine needs code that the checkpoint brings along",
    ),
    "tokenizer's own code": (
        lambda f: _edit(
            f / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]}
        ),
        "the tokenizer of FOLDER cannot be read from tokenizer.json (",
    ),
    "unknown model": (
        lambda f: _edit(f / "config.json", model_type="no_such"),
        "config.json of FOLDER cannot be used: ",
    ),
    "no causal model": (
        lambda f: _edit(f / "config.json", model_type="vit"),
        "no causal language model ViT can be built of it: transformers has none of the model_type vit",
    ),
    "pictures, too": (
        lambda f: _edit(f / "config.json", model_type="llava", text_config={"model_type": "llama"}),
        "no causal language model Llava can be built of it: transformers has none of the model_type llava; its text "
        "part, llama, is one",
    ),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "is an adapter (adapter_config.json)"),
    "pointer": (
        lambda f: (f / "model.safetensors").write_text(POINTER),
        "model.safetensors is a git-lfs pointer, not the file itself",
    ),
    "tokenizer's pointer": (
        lambda f: (f / "tokenizer.json").write_text(POINTER),
        "tokenizer.json is a git-lfs pointer, not the file itself",
    ),
    "cut": (
        lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 4),
        "model.safetensors is damaged or truncated (",
    ),
    "generation": (lambda f: (f / "generation_config.json").write_text('{"eos'), "generation_config.json is damaged ("),
    "cut header": (lambda f: os.truncate(f / "model.safetensors", 100), "model.safetensors is damaged or truncated ("),
    "empty": (lambda f: os.truncate(f / "model.safetensors", 0), "model.safetensors is damaged or truncated ("),
    "a link to nothing": (
        lambda f: [(f / "model.safetensors").unlink(), (f / "model.safetensors").symlink_to("gone")],
        "has no model.safetensors",
    ),
    "shard": (_shards, "lacks model-00002-of-"),
    "cut index": (
        lambda f: (
            (f / "model.safetensors").rename(f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
        ),
        "model.safetensors.index.json is damaged: it has no JSON object weight_map",
    ),
    "other name": (
        lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors"),
        "has no model.safetensors and no model.safetensors.index.json (other weight formats are not read); c",
    ),
    "shape": (
        lambda f: _weights(f, lambda s: s.update({"model.norm.weight": torch.ones(63)})),
        "has weights of another shape than config.json gives LlamaForCausalLM: model.norm.weight [63] instead of [64]",
    ),
    "missing": (
        lambda f: _weights(f, lambda s: s.pop("model.layers.1.mlp.up_proj.weight")),
        "lacks weights that LlamaForCausalLM needs: model.layers.1.mlp.up_proj.weight",
    ),
    "unknown": (
        lambda f: _weights(f, lambda s: s.update({"model.extra.weight": torch.ones(2)})),
        "has weights that LlamaForCausalLM does not know: model.extra.weight",
    ),
    "integers": (
        lambda f: _weights(f, lambda s: s.update({"lm_head.weight": torch.zeros(272, 64, dtype=torch.int8)})),
        "model.safetensors stores lm_head.weight as I8: only models with plain numbers (F64, F32, F16, BF16) are",
    ),
    "no tokenizer": (
        lambda f: [(f / "tokenizer.json").unlink(), (f / "tokenizer_config.json").unlink()],
        "FOLDER has no tokenizer (tokenizer.json)",
    ),
    "sentencepiece": (
        _sentencepiece,
        "the tokenizer of FOLDER cannot be read from tokenizer.model, of which there is only the older form; save it",
    ),
    "cut tokenizer": (
        lambda f: os.truncate(f / "tokenizer.json", 500),
        "the tokenizer of FOLDER cannot be read from tokenizer.json (",
    ),
    "pad": (_pad, "the tokenizer has '[PAD]' with id 272, the model's embedding has the ids 0 to 271"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_model_is_one_sentence(case: str, folder: Path, tmp_path: Path) -> None:
    change, said = WRONG[case]
    change(folder)
    (problem,) = refused(tmp_path, of(folder))
    assert problem.startswith(f"models.m.path: {folder}: {said.replace('FOLDER', str(folder))}")


def test_a_file_dated_in_the_future_is_named_wherever_it_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    config = of(folder, perplexity={"t": {"path": str(tmp_path / "text.txt")}})
    run(tmp_path, config)
    (tmp_path / "prepared.json").unlink()
    for file in (folder / "config.json", tmp_path / "text.txt"):
        os.utime(file, (4102444800, 4102444800))  # the first of January 2100
    found = refused(tmp_path, config)
    assert [line.split(" (2")[0] for line in found] == [
        f"models.m.path: {folder / 'config.json'} is dated in the future",
        f"perplexity.t.path: {tmp_path / 'text.txt'} is dated in the future",
    ]


def _other_family(folder: Path, name: str, **options: Any) -> Path:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 128, "hidden_size": 64}
    config = getattr(transformers, name)(vocab_size=272, max_position_embeddings=64, **(sizes | options))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "options", "causal"),
    [
        ("BertConfig", {}, False),
        ("BertConfig", {"is_decoder": True}, True),
        ("RobertaConfig", {}, False),
        ("GemmaConfig", {"num_key_value_heads": 2, "head_dim": 16, "use_bidirectional_attention": True}, False),
        ("GemmaConfig", {"num_key_value_heads": 2, "head_dim": 16}, True),
        ("LlamaConfig", {"is_causal": False}, False),
        ("BloomConfig", {"n_head": 4, "n_layer": 2}, True),  # does not say, so that it is tried
    ],
)
def test_a_model_that_looks_ahead_is_refused(name: str, options: dict[str, Any], causal: bool, tmp_path: Path) -> None:
    config = of(_other_family(tmp_path / "model", name, **options))
    if causal:
        assert run(tmp_path, config)["m"]["targets"]
    else:
        (problem,) = refused(tmp_path, config)
        assert "looks ahead: what it predicts changes with later tokens" in problem


def test_an_implementation_that_a_checkpoint_asks_for_is_not_needed(folder: Path, tmp_path: Path) -> None:
    ids = torch.arange(20).reshape(1, 20)
    expected = load_full(str(folder))(ids).logits
    for asked in ("flash_attention_2", {"": "flash_attention_3"}, "someone/kernel"):
        _edit(folder / "config.json", attn_implementation=asked, experts_implementation="someone/kernel")
        assert run(tmp_path, of(folder))["m"]["attention"] == "sdpa"
        model = load_full(str(folder))
        assert torch.equal(model(ids).logits, expected)
        model.save_pretrained(tmp_path / "saved")
        assert "implementation" not in (tmp_path / "saved" / "config.json").read_text()
    _edit(folder / "config.json", attn_implementation="eager")
    assert run(tmp_path, of(folder))["m"]["attention"] == "eager"


def test_a_checkpoint_that_asks_for_attention_weights_can_be_written(folder: Path, tmp_path: Path) -> None:
    _edit(folder / "config.json", output_attentions=True)
    load_full(str(folder)).save_pretrained(tmp_path / "saved")
    assert load_full(str(tmp_path / "saved")).config.output_attentions is False


def test_numbers_that_are_rounded_when_they_are_read_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder("llama", tmp_path / "model", torch.bfloat16)
    config = of(folder)
    run(tmp_path, config)
    assert "read as" not in capsys.readouterr().out
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"].float()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    run(tmp_path, config)
    assert "parameters, float32 read as bfloat16, 14 layers" in capsys.readouterr().out
    _edit(folder / "config.json", dtype="float32")
    run(tmp_path, config)
    assert "read as" not in capsys.readouterr().out


def test_a_model_that_looks_its_experts_up_in_a_table_is_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = {"num_attention_heads": 2, "head_dim": 32, "q_lora_rank": 32, "o_lora_rank": 32, "o_groups": 1}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1}
    sizes = {"vocab_size": 272, "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    config = DeepseekV4Config(index_n_heads=2, index_head_dim=32, **sizes, **heads, **experts)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    run(tmp_path, of(folder, recipes={"full": {"method": "full_precision"}}))
    assert "DeepseekV4ForCausalLM, 0.22 M parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "attention", "mask"),
    [
        (GPTNeoConfig(num_layers=2, attention_types=[[["global"], 2]]), "transformer.h.0.attn.attention", "bias"),
        (GPTJConfig(rotary_dim=8), "transformer.h.0.attn", "bias"),
        (CodeGenConfig(rotary_dim=8), "transformer.h.0.attn", "causal_mask"),
        (GPTNeoXConfig(intermediate_size=128), "gpt_neox.layers.0.attention", "bias"),  # and what rotates positions
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_masks_that_transformers_has_no_place_for_are_passed_over(
    folder: Path, tmp_path: Path, config: Any, attention: str, mask: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As GPT-Neo's, GPT-J's, CodeGen's and Pythia's on the hub; a weight that is unknown is still refused."""
    config.vocab_size, config.bos_token_id, config.eos_token_id = 272, 1, 1
    config.hidden_size, config.num_hidden_layers, config.num_attention_heads = 64, 2, 4
    AutoModelForCausalLM.from_config(config).to(torch.float16).save_pretrained(folder)
    tokens = torch.arange(20)[None]
    expected, state = load_full(str(folder))(tokens).logits, load_file(folder / "model.safetensors")
    state[f"{attention}.{mask}"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    state[f"{attention}.masked_bias"] = torch.tensor(-1e9)
    if "neox" in attention:
        state[f"{attention}.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    run(tmp_path, of(folder))
    assert "read as" not in capsys.readouterr().out  # of their float32
    assert torch.equal(load_full(str(folder))(tokens).logits, expected)
    save_file(state | {f"{attention}.other": torch.ones(8, 8)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"does not know: {attention}\.other$"):
        run(tmp_path, of(folder))


def test_a_language_model_inside_of_another_is_told_how_to_be_taken_out(tmp_path: Path) -> None:
    sight = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    sight |= {"image_size": 28, "patch_size": 14, "vision_output_dim": 64, "projector_input_dim": 64}
    text = tiny_model("llama4").config.to_dict()
    config = transformers.Llama4Config(text_config=text, vision_config=sight | {"projector_output_dim": 64})
    whole = transformers.Llama4ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"23 more; to leave them out, save the Llama4ForCausalLM that AutoModelFor"):
        meta_model(tmp_path / "whole", read_config(tmp_path / "whole"))
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "part")
    part = meta_model(tmp_path / "part", read_config(tmp_path / "part"))
    assert len(list_targets(part)) == LINEARS["llama4"]


def test_a_begin_of_text_token_that_is_asked_for_must_be_there(folder: Path, tmp_path: Path) -> None:
    _edit(folder / "tokenizer_config.json", bos_token=None)
    config = of(folder)
    run(tmp_path, config)
    (tmp_path / "prepared.json").unlink()
    config["models"]["m"]["add_bos"] = True
    (problem,) = refused(tmp_path, config)
    assert "add_bos: true, but the tokenizer has no begin-of-text token" in problem


def test_code_of_a_checkpoint_is_never_run_nor_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any) -> str:
        raise AssertionError("the terminal was asked")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("signal.signal", asked)  # transformers asks with a time limit
    ran = tmp_path / "ran"
    ids = torch.arange(20).reshape(1, 20)
    expected = load_full(str(folder))(ids).logits
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\n")
    own = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    _edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Tokenizer", None]})
    for where in (own, {name: f"someone/else--{what}" for name, what in own.items()}):
        _edit(folder / "config.json", auto_map=where)  # of a model that transformers knows: its own class is taken
        (tmp_path / "prepared.json").unlink(missing_ok=True)
        assert run(tmp_path, of(folder))["m"]["family"] == "llama"
        assert torch.equal(load_full(str(folder))(ids).logits, expected)
    _edit(folder / "config.json", model_type="mine")
    (tmp_path / "prepared.json").unlink()
    (problem,) = refused(tmp_path, of(folder))
    assert "its model_type mine needs code that the checkpoint brings along" in problem
    with pytest.raises(ValueError, match="which is never run"):
        load_full(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize(
    "config",
    [
        transformers.MptConfig(d_model=32, n_heads=2, n_layers=1, vocab_size=64, max_seq_len=24),
        transformers.WhisperConfig(
            d_model=32,
            decoder_layers=1,
            vocab_size=64,
            pad_token_id=0,
            decoder_attention_heads=2,
            max_target_positions=24,
        ),
        *(
            transformers.CONFIG_MAPPING[family](
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                # before the first token's position may be those of the ids up to the padding token's
                max_position_embeddings=24 if "bert" in family[:4] or family in ("electra", "megatron-bert") else 28,
                pad_token_id=3,
                is_decoder=True,
                **({"default_language": "en_XX"} if family == "xmod" else {}),
            )
            for family in (
                *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text"),
                *("xmod", "bert", "electra", "megatron-bert"),
            )
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_a_models_positions_are_known_by_whatever_name(config: Any) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    longest = max_positions(config)
    assert longest == 24
    model(input_ids=torch.ones(1, longest, dtype=torch.int64))
    with pytest.raises((RuntimeError, IndexError)):
        model(input_ids=torch.ones(1, longest + 1, dtype=torch.int64))


TOGETHER = """
import torch
from baselines.rtn import RTN

class Pairs(RTN):
    def encode_groups(self, values, grid):
        first = grid.encode(values).reshape(*values.shape[:-1], -1, 2)[..., :1]
        return first.expand(*first.shape[:-1], 2).reshape(values.shape)

class Faulty(RTN):
    def fit_groups(self, values):
        return None.scale
"""


def test_a_lattice_that_error_feedback_cannot_go_by_is_refused(
    models: Path, tmp_path: Path, module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It had been a failed row after hours of other work; what is a fault of its code still is one."""
    together = module(TOGETHER)
    recipes = {
        name: {"method": "gptq", "granularity": granularity, "options": {"quantizer": f"{together}.{name}"}}
        for name, granularity in (("Pairs", "g32"), ("Faulty", "channel"))
    }
    (tmp_path / "text.txt").write_text("some text")
    config = data(models, recipes=recipes, calibration={"path": str(tmp_path / "text.txt"), "window": 16})
    with pytest.raises(ConfigError) as refused:
        run(tmp_path, config, "llama")
    said = (
        f"recipes.Pairs.method: {together}.Pairs codes the weights of a group together, and error feedback one by one"
    )
    assert str(refused.value) == f"{tmp_path / 'config.yaml'}: {said}"
    assert "prepare: recipe Faulty will fail: AttributeError: 'NoneType' object has no" in capsys.readouterr().out
    del recipes["Pairs"]
    run(tmp_path, config, "llama")
