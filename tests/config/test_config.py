"""Configs: every slip is found, with the key, the file and the nearest valid key; nothing heavy is imported."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from r2q.config import ConfigError, load, method_info, parse
from r2q.config.schema import key_table, schema_text
from r2q.kept import ROOT
from r2q.plan import Plan
from tests.configs import config_of
from tests.workflow import printed

CONFIGS = sorted((ROOT / "config").glob("*.yaml"))

GOOD: dict[str, Any] = {
    "run": "test",
    "models": {"small": {"path": "some/where/small"}, "hub": {"path": "owner/name", "recipes": ["fp", "rtn-g64"]}},
    "recipes": {
        "fp": {"method": "full_precision"},
        "rtn-g64": {"method": "rtn", "granularity": "g64", "options": {"clip": "mse"}},
        "r2q-channel": {"method": "r2q", "granularity": "channel", "options": None},
        "noise": {"method": "random_codes", "granularity": "g64", "seeds": [1, 2, 3]},
    },
    "tasks": {"arc_easy": None, "gsm8k": {"num_fewshot": 5, "items": 10}},
    "perplexity": {"wiki": {"path": "owner/name:config:test"}},
    "limits": {"items": 100},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with the value at a dotted path set."""
    data = copy.deepcopy(GOOD)
    *parents, last = path.split("/")
    place = data
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return data


def problems(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(data, source="mine.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("mine.yaml: ") for line in lines)
    return [line.removeprefix("mine.yaml: ") for line in lines]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("modles", {}, "modles: unknown key; nearest valid: models"),
        ("models/small/pth", "x", "models.small.pth: unknown key; nearest valid: path"),
        ("recipes/rtn-g64/granulrity", "g64", "recipes.rtn-g64.granulrity: unknown key; nearest valid: granularity"),
        ("recipes/rtn-g64/options/clp", "mse", "recipes.rtn-g64.options.clp: unknown key; nearest valid: clip"),
        ("recipes/fp/options", {"clip": "mse"}, "recipes.fp.options.clip: unknown key; it takes none"),
        ("tasks/gsm8k/fewshot", 5, "tasks.gsm8k.fewshot: unknown key; nearest valid: num_fewshot"),
        ("perplexity/wiki/windw", 5, "perplexity.wiki.windw: unknown key; nearest valid: window"),
        ("limits/batchsize", 5, "limits.batchsize: unknown key; nearest valid: batch_size"),
        ("figures/lattice/rwo", 5, "figures.lattice.rwo: unknown key; nearest valid: row"),
        ("recipes/rtn-g64/method", "rtm", "recipes.rtn-g64.method: unknown method rtm; nearest valid: rtn"),
        ("recipes/rtn-g64/options/clip", "me", "recipes.rtn-g64.options.clip: 'me' is not allowed; nearest valid: mse"),
        ("recipes/rtn-g64/options/steps", 1, "recipes.rtn-g64.options.steps: input should be greater than or equal to"),
        ("recipes/rtn-g64/bits", 5, "recipes.rtn-g64.bits: 5 is not allowed; valid: 2, 3, 4"),
        ("recipes/rtn-g64/bits", True, "recipes.rtn-g64.bits: "),
        ("recipes/rtn-g64/granularity", "64", "recipes.rtn-g64.granularity: '64' must be g<size>"),
        ("recipes/rtn-g64/granularity", "g8", "recipes.rtn-g64.granularity: the name ends in -g64 but the value is g8"),
        (
            "recipes/scales",
            {"method": "e2e_scales", "granularity": "g64", "options": {"start": "rtn-g64"}},
            "recipes.scales.options.start: 'rtn-g64' is not allowed; valid: null",
        ),
        ("recipes/noise/granularity", None, "recipes.noise.granularity: method random_codes needs one"),
        ("recipes/fp/granularity", "g64", "recipes.fp.granularity: method full_precision has none"),
        ("recipes/noise/seeds", [1, 1], "recipes.noise.seeds: 1 stands twice"),
        ("models/hub/recipes", ["rtn-g46"], "models.hub.recipes: unknown recipe rtn-g46; nearest valid: rtn-g64"),
        ("models/hub/recipes", ["fp", "fp"], "models.hub.recipes: fp stands twice"),
        ("models/small/revision", "main", "models.small.revision: only a hub model has one"),
        ("models/logs", {"path": "x"}, "models.logs: the name is reserved"),
        ("models/Logs", {"path": "x"}, "models.Logs: the name is reserved"),
        ("models/SMALL", {"path": "x"}, "models.SMALL: only the case of its letters tells it from small; choose"),
        ("models/scores.csv", {"path": "x"}, "models.scores.csv: the name ends as files of a run do (.csv, "),
        ("recipes/prepared.json", {"method": "full_precision"}, "recipes.prepared.json: the name ends as files"),
        ("run", "published", "run: published is reserved"),
        ("run", "../up", "run: '../up' must be letters, digits and . _ -"),
        ("device", "gpu", "device: 'gpu' must be auto, cpu, cuda or cuda:<number>"),
        ("seeds", [], "seeds: list should have at least 1 item"),
        ("limits/threads", 0, "limits.threads: input should be greater than or equal to 1, got 0"),
        ("limits/items", "8", "limits.items: input should be a valid integer, got '8'"),
        ("perplexity/wiki/path", "wikitext", "perplexity.wiki.path: wikitext is neither a .txt"),
        ("perplexity/arc_easy", {"path": "a.txt"}, "perplexity.arc_easy: a task has the same name"),
        ("figures/lattice/model", "smal", "figures.lattice.model: unknown model smal; nearest valid: small"),
        ("figures/lattice/model", "hub", "figures.lattice.model: the figure needs a recipe rtn and a recipe r2q"),
        ("figures/lattice/recipes", ["rtn-g46"], "figures.lattice.recipes: unknown recipe rtn-g46; nearest valid: rtn"),
        ("figures/lattice/recipes", ["fp"], "figures.lattice.recipes: fp has granularity null; the figure needs"),
        (
            "figures/lattice/recipes",
            ["rtn-g64", "r2q-channel"],
            "figures.lattice.recipes: r2q-channel has granularity channel, rtn-g64 g64; they must have the same",
        ),
        ("figures/lattice", {"model": "hub", "recipes": ["noise"]}, "figures.lattice.model: the figure needs noise;"),
        ("latency", {"recipes": ["rtn-g46"]}, "latency.recipes: unknown recipe rtn-g46; nearest valid: rtn-g64"),
        ("latency", {"recipes": ["fp"]}, "latency.recipes: fp packs nothing; its time is that of each recipe's"),
        ("latency", {"recipes": ["rtn-g64"], "batches": [1, 1]}, "latency.batches: 1 stands twice"),
        ("latency", {"recipes": ["rtn-g64"], "batches": [0]}, "latency.batches.0: input should be greater than"),
        ("claims/subject", "rtn", "claims.subject: no recipe trains with quantizer rtn; no recipe trains"),
    ],
)
def test_a_slip_is_named_with_its_key_and_the_nearest_valid_one(path: str, value: Any, message: str) -> None:
    found = problems(changed(path, value))
    assert [line for line in found if line.startswith(message)], found


TRAINED = {
    "recipes": {
        "clip": {"method": "rtn", "granularity": "g64", "options": {"clip": "mse"}},
        "a": {"method": "qat_ce", "granularity": "g64", "options": {"quantizer": "r2q"}},
        "b": {"method": "qat_ce", "granularity": "g64", "options": {"start": "clip"}},
    },
    "models": {"small": {"path": "some/where/small"}},
    "training": {"texts": [{"path": "owner/rows:default:train", "rows": 400}]},
}


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"subject": "r2q-refit"}, "claims.subject: no recipe trains with quantizer r2q-refit; nearest valid: r2q"),
        ({"against": ["rtn"]}, "claims.against: no recipe trains with quantizer rtn; valid: r2q, rtn (rtn-clip"),
        ({"against": ["r2q"]}, "claims.against: r2q is the subject itself"),
        ({"against": ["rtn (rtn-clip start)"] * 2}, "claims.against: rtn (rtn-clip start) stands twice"),
    ],
)
def test_claims_name_quantizers_that_some_recipe_trains_with(claims: dict[str, Any], message: str) -> None:
    found = problems(GOOD | TRAINED | {"claims": claims})
    assert [line for line in found if line.startswith(message)], found


def test_what_claims_name_is_asked_of_their_job_and_of_no_other() -> None:
    asked = {"subject": "rtn (rtn-clip start)", "against": ["r2q"]}
    plain, named = (Plan(parse(GOOD | TRAINED | more, source="")) for more in ({}, {"claims": asked}))
    assert plain.asked_claims() != named.asked_claims()
    assert plain.asked_collect() == named.asked_collect()
    assert plain.asked_collect_training() == named.asked_collect_training()


def test_what_vllm_would_change_in_silence_is_refused() -> None:
    rows = {"texts": [{"path": "a.txt", "rows": 200}], "held_out": 8, "engine": "vllm", "temperature": 0.001}
    assert problems(GOOD | {"device": "cuda:1", "training": rows}) == [
        "device: vllm takes the first GPU that it sees, not cuda:1; set CUDA_VISIBLE_DEVICES",
        "training.temperature: vllm takes 0 or 0.01 to 2, not 0.001",
    ]
    parse(GOOD | {"device": "cuda:1", "training": rows | {"engine": "transformers"}}, "mine.yaml")


@pytest.mark.parametrize("key", ["run", "models", "recipes"])
def test_required_keys(key: str) -> None:
    data = copy.deepcopy(GOOD)
    del data[key]
    assert problems(data) == [f"{key}: this key is required"]


def test_something_must_be_evaluated() -> None:
    assert problems(GOOD | {"tasks": {}, "perplexity": {}})[0].startswith("tasks: nothing to evaluate")


def test_all_problems_come_at_once() -> None:
    data = changed("limits/itms", 3) | {"modles": {}, "device": "gpu"}
    assert len(problems(data)) == 3
    data = changed("recipes/rtn-g64/options/clip", "no") | {"run": "reference"}
    assert len(problems(data)) == 2


def test_what_a_good_config_asks_for() -> None:
    config = parse(GOOD, source="mine.yaml")
    assert config.recipes_of("small") == ["fp", "rtn-g64", "r2q-channel", "noise"]
    assert config.units("hub") == [("fp", 0), ("rtn-g64", 0)]
    assert config.units("small")[-3:] == [("noise", 1), ("noise", 2), ("noise", 3)]  # only noise looks at the seed
    assert (config.items_of("arc_easy"), config.items_of("gsm8k")) == (100, 10)
    assert config.lattice_units() is None  # rtn and r2q differ in granularity
    assert config.models["small"].is_folder
    assert not config.models["hub"].is_folder
    resolved = config.resolved()
    assert resolved["recipes"]["rtn-g64"]["options"]["steps"] == method_info("rtn").options().model_dump()["steps"]
    assert parse(resolved, source="again").resolved() == resolved


def test_the_lattice_figure_finds_a_plain_pair() -> None:
    data = changed("recipes/rtn-channel", {"method": "rtn", "granularity": "channel", "options": {"clip": "none"}})
    assert parse(data, source="mine.yaml").lattice_units() == ("small", ["rtn-channel", "r2q-channel"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_good_and_pass_the_schema(path: Path) -> None:
    config = load(path)
    assert config.run == path.stem
    jsonschema.Draft202012Validator(json.loads(schema_text())).validate(config.resolved())


def test_the_schema_refuses_what_a_config_cannot_have() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    validator.check_schema(validator.schema)
    assert validator.is_valid(GOOD)
    assert not validator.is_valid(GOOD | {"modles": {}})
    assert not validator.is_valid(changed("models/small/pth", "x"))


def test_no_config_and_no_shipped_method_imports_torch() -> None:
    code = (
        "import sys; from r2q import config; [config.method_info(name) for name in config.built_in_methods()]; "
        f"[config.load(path) for path in {list(map(str, CONFIGS))!r}]; "
        "print([name for name in ('torch', 'transformers', 'lm_eval', 'pandas') if name in sys.modules])"
    )
    assert printed(code) == "[]"


def test_every_key_is_explained() -> None:
    """Each key of each model stands in the table of config/README.md, with what it means."""
    rows = {row.split("|")[1].strip(" `"): row.split("|")[3].strip() for row in key_table().splitlines()[2:]}
    assert all(rows.values()), [key for key, meaning in rows.items() if not meaning]
    keys = {name for definition in json.loads(schema_text())["$defs"].values() for name in definition["properties"]}
    named = {key.rpartition(".")[2].removesuffix("[]") for key in rows} - {"<name>"}
    assert named >= keys - {"models", "recipes", "tasks", "perplexity"}
    assert rows["training.texts[].rows"] == "how many are drawn"


def test_several_processes_and_one_gpu_by_number_are_refused() -> None:
    recipes = {"a-g64": {"method": "bitdistiller", "granularity": "g64"}}
    training = {"texts": [{"path": "a.txt", "rows": 200}], "held_out": 8}
    data = config_of(recipes, training=training, limits={"training_processes": 2})
    parse(data | {"device": "cuda"}, "x.yaml")
    with pytest.raises(ConfigError, match="device: training_processes take the first GPUs, not cuda:1"):
        parse(data | {"device": "cuda:1"}, "x.yaml")
