"""Numbers and relations that no run could mean are refused with their key, before any work."""

import os
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from r2q.config import machine, parse
from r2q.config.base import MethodOptions
from r2q.config.lattice import lattice_problems
from r2q.config.machine import machine_problems
from tests.config.test_config import changed, problems
from tests.configs import config_of

TRAINED = {"method": "bitdistiller", "granularity": "g64"}


def trained(options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A run with a recipe that trains on 100 rows, and one to start from."""
    recipes = {
        "start": {"method": "rtn", "granularity": "g64"} | more.pop("start", {}),
        "deep": TRAINED | {"options": {"batch_rows": 10} | options} | more.pop("deep", {}),
    }
    training = {"texts": [{"path": "b.txt", "rows": 164}]}
    return config_of(recipes) | {"training": training, "calibration": {"path": "a.txt"}} | more


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 10, "warmup_steps": 11}, "warmup_steps: 11 are more than the 10 steps there are"),
        *(
            ({"steps": 10, "warmup_steps": 10, "schedule": kind}, f"warmup_steps: 10 of 10 steps leave none for {kind}")
            for kind in ("linear", "cosine")
        ),
        ({"latent": "bfloat16", "compute": "float32"}, "compute: float32 needs latent: float32"),
        ({"batch_rows": 101}, "batch_rows: 101 are more than the 100 rows (64 more are held out)"),
        ({"steps": "30"}, "steps: input should be a valid integer, got '30'"),
        ({"steps": True}, "steps: input should be a valid integer, got True"),
        ({"steps": 3.0}, "steps: input should be a valid integer, got 3.0"),
        ({"compiled": "yes"}, "compiled: input should be a valid boolean, got 'yes'"),
        ({"compiled": 1}, "compiled: input should be a valid boolean, got 1"),
        ({"learning_rate": True}, "learning_rate: input should be a valid number, got True"),
        ({"learning_rate": "1e309"}, "learning_rate: input should be a valid number, got '1e309'"),
        ({"learning_rate": float("inf")}, "learning_rate: inf is not a finite number"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is not a finite number"),
        ({"weight_decay": float("inf")}, "weight_decay: inf is not a finite number"),
        ({"quantizer_options": {"smallest": float("nan")}}, "quantizer_options.smallest: nan is not a finite number"),
        ({"quantizer_options": {"steps": "3"}}, "quantizer_options.steps: input should be a valid integer, got '3'"),
        ({"start": ["start"]}, "start: input should be a valid string, got ['start']"),
        ({"start": {"a": 1}}, "start: input should be a valid string, got {'a': 1}"),
        ({"start": "strat"}, "start: strat is no recipe; nearest valid: start"),
        ({"start": "deep"}, "start: deep must be a recipe that quantizes and does not train"),
        ({"quantizer": "awq"}, "quantizer: awq is no function of one weight"),
        ({"quantizer": "rnt"}, "quantizer: unknown method rnt; nearest valid: rtn"),
        ({"quantizer": "r2q", "quantizer_options": {"clip": "mse"}}, "quantizer_options.clip: unknown key"),
        ({"coefficient": 1.5}, "coefficient: 1.5 is not between 0 and 1"),
        ({"gradient": "straight"}, "gradient: 'straight' is not allowed; valid: identity, clipped, through-scales"),
    ],
)
def test_options_of_training(options: dict[str, Any], message: str) -> None:
    (line,) = problems(trained(options))
    assert line.startswith(f"recipes.deep.options.{message}")
    parse(trained({"start": "start", "steps": 10, "warmup_steps": 10, "batch_rows": 100}), "x.yaml")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"deep": {"bits": 3}}, "must be a recipe with bits 3, as this one has; it has 2"),
        ({"start": {"bits": 4}}, "must be a recipe with bits 2, as this one has; it has 4"),
        ({"start": {"granularity": "channel"}}, "must be a recipe with granularity g64, as this one has"),
        ({"deep": {"lm_head": True}}, "must be a recipe with lm_head true, as this one has; it has false"),
        ({"models": {"m": {"path": "a/b", "recipes": ["deep"]}}}, "is not among the recipes of model m"),
        ({"start": {"method": "full_precision", "granularity": None}}, "must be a recipe that quantizes"),
        ({"start": {"method": "awq"}, "calibration": {"path": "c4"}}, "scales or turns inputs, which training does"),
    ],
)
def test_a_start_that_does_not_fit(parts: dict[str, Any], message: str) -> None:
    (line,) = problems(trained({"start": "start"}, **parts))
    assert line.startswith(f"recipes.deep.options.start: start {message}")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"method": "awq", "granularity": "tensor"}, "granularity: method awq needs groups"),
        ({"method": "gptq", "granularity": None}, "granularity: method gptq needs one"),
        ({"method": "bitdistiller", "granularity": None}, "granularity: method bitdistiller needs one"),
        ({"method": "full_precision", "granularity": None, "bits": 3}, "bits: method full_precision has none, not 3"),
        ({"method": "full_precision", "granularity": None, "lm_head": True}, "lm_head: method full_precision has none"),
        ({"method": "r2q", "bits": 3, "options": {"refine": "optimal"}}, "options.refine: optimal is for 2 bits"),
        ({"method": "llm_qat", "bits": 4, "options": {"scale": "max"}}, "options.scale: max is SEQ's start at 2 bits"),
        (
            {"method": "gptq", "bits": 3, "options": {"quantizer": "r2q", "quantizer_options": {"refine": "optimal"}}},
            "options.quantizer_options.refine: optimal is for 2 bits",
        ),
        (
            {"method": "gptq", "granularity": "channel", "options": {"static_groups": True}},
            "options.static_groups: counts with groups alone, and granularity is channel",
        ),
        *(
            ({"method": "gptq", "granularity": size, "options": {"compat": "reference", **more}}, "options.compat: ref")
            for size, more in (("tensor", {}), ("g256", {}), ("g64", {"static_groups": True}))
        ),
    ],
)
def test_what_a_method_cannot_do_in_a_recipe(recipe: dict[str, Any], message: str) -> None:
    assert said_of(recipe).startswith(f"recipes.x.{message}")


def said_of(recipe: dict[str, Any]) -> str:
    """The only problem of a run with a recipe `x`."""
    data = trained({})
    data["recipes"]["x"] = {"granularity": "g64"} | recipe
    (line,) = problems(data)
    return line


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("awq", {"clip_steps": 21}, "clip_steps: 21 are more than clip_grid, 20"),
        ("awq", {"clip": False, "tokens": 9}, "tokens: counts with clip: true alone"),
        ("bitdistiller_clip", {"steps": 21}, "steps: 21 are more than grid, 20"),
        ("omniquant_lwc", {"batch": 129}, "batch: 129 are more than the 128 windows"),
        ("hqq", {"p": 0}, "p: input should be greater than 0"),
        ("r2q", {"rounds": 50}, "rounds: counts with refine: alternating alone"),
        ("rtn", {"smallest": 0.5}, "smallest: counts with clip: mse alone"),
        ("qat_ce", {"coefficient": 0.3}, "coefficient: counts with loss: cakld alone"),
        ("bitdistiller", {"loss": "jsd", "coefficient_batches": 3}, "coefficient_batches: counts with loss: cakld"),
        ("bitdistiller", {"coefficient": 0.3, "coefficient_batches": 3}, "coefficient_batches: nothing is measured"),
        ("bitdistiller", {"start_from": "weights"}, "start_from: counts with a start alone"),
        ("gptq", {"lattice": "r2q"}, "lattice: unknown key"),
        ("gptq", {"compat": "reference", "act_order": True}, "compat: act_order without static_groups"),
        (
            "gptq",
            {"quantizer": "r2q", "quantizer_options": {"refine": "refit", "rounds": 2}},
            "quantizer_options.rounds: counts with refine: alternating alone",
        ),
    ],
)
def test_options_of_other_methods(method: str, options: dict[str, Any], message: str) -> None:
    assert said_of({"method": method, "options": options}).startswith(f"recipes.x.options.{message}")


@pytest.mark.parametrize("kind", ["text", "supervised"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("engine", "vllm"), ("prompt_tokens", 8), ("temperature", 0.0), ("top_p", 0.9), ("batch_size", 8)],
)
def test_rows_that_nobody_samples_have_no_sampling(kind: str, key: str, value: Any) -> None:
    rows = {"kind": kind, "texts": [{"path": "b.jsonl", "rows": 999}]}
    parse(trained({}, training=rows), "x.yaml")
    (line,) = problems(trained({}, training=rows | {key: value}))
    assert line == f"training.{key}: counts with kind: generated alone"


@pytest.mark.parametrize("processes", [1, 2])
def test_bfloat16_weights_with_moments_of_8_bits_are_not_spread_over_processes(processes: int) -> None:
    """torchao 0.18: "OptimState8bit dispatch: attempting to run unimplemented operator/function: aten.view"."""
    limits = {"training_processes": processes}
    for options in ({"optimizer": "adamw_8bit"}, {"latent": "bfloat16"}):
        parse(trained(options, limits=limits), "x.yaml")
    both = trained({"optimizer": "adamw_8bit", "latent": "bfloat16"}, limits=limits)
    if processes == 1:
        parse(both, "x.yaml")
        return
    (line,) = problems(both)
    assert line == (
        "recipes.deep.options.optimizer: adamw_8bit with latent: bfloat16 fails in torchao on 2 processes "
        "(limits.training_processes); use one of the two"
    )


def test_rows_of_text_have_no_responses() -> None:
    rows = [{"path": "b.txt", "rows": 999}]
    (line,) = problems(trained({"loss_on": "response"}, training={"kind": "text", "texts": rows}))
    assert line.startswith("recipes.deep.options.loss_on: response is all of a row of text"), line


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("limits/threads", 10000, "limits.threads: input should be less than or equal to 1024"),
        ("limits/training_processes", 65, "limits.training_processes: input should be less than or equal to 64"),
        ("limits/batch_size", 10**6, "limits.batch_size: input should be less"),
        ("limits/items", 1e309, "limits.items: inf is not a finite number"),
        ("perplexity/wiki/window", 2**21, "perplexity.wiki.window: input should be less"),
        ("tasks/gsm8k/num_fewshot", 10**6, "tasks.gsm8k.num_fewshot: input should be less"),
        ("run", "r" * 300, "run: string should have at most 100 characters, got 'rrr"),
        ("models/" + "m" * 300, {"path": "a/b"}, "models.mmm"),
        ("recipes/" + "r" * 300, {"method": "rtn", "granularity": "g64"}, "recipes.rrr"),
        ("models/small/path", "p" * 300, "models.small.path: a path may have 4000 bytes, and each part of it 255"),
        ("models/small/path", "a\0b", "models.small.path: \"'a\\\\x00b'\" has a null character"),
        ("perplexity/wiki/separator", "\ud83d", "perplexity.wiki.separator: \"'\\\\ud83d'\" has a null character or"),
        ("device", "cuda:9999", "device: 'cuda:9999' must be auto"),
        *(
            ("calibration", {"path": path, "separator": "\n", **slicing}, "calibration.separator: counts with slicing")
            for path, slicing in (("pile", {}), ("a.jsonl", {"slicing": "document"}))
        ),
    ],
)
def test_bounds_of_the_other_keys(path: str, value: Any, message: str) -> None:
    (line,) = problems(changed(path, value))
    assert line.startswith(message), line
    assert len(line) < 250


TEXT = {"path": "b.txt", "rows": 99}
LINES = {"path": "b.jsonl", "rows": 99, "lines": True}


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"texts": [TEXT | {"rows": 64}]}, "held_out: 64 of only 64 rows"),
        ({"texts": [TEXT, TEXT | {"path": "./b.txt"}]}, "texts[1].path: ./b.txt is also training.texts[0]; take more"),
        ({"kind": "supervised", "texts": [TEXT]}, "texts[0].path: supervised rows have two columns, and b.txt has"),
        ({"kind": "supervised", "texts": [TEXT | {"path": "b.txt.gz"}]}, "texts[0].path: supervised rows have two"),
        ({"kind": "supervised", "texts": [LINES]}, "texts[0].lines: several columns are read, whose lines are not"),
        ({"texts": [LINES | {"field": "a+b"}]}, "texts[0].lines: several columns are read"),
        ({"texts": [TEXT | {"response": "answer"}]}, "texts[0].response: counts with kind: supervised alone"),
        ({"length": 32, "prompt_tokens": 32}, "prompt_tokens: 32 leave nothing to generate in rows of training.length"),
        ({"temperature": float("inf")}, "temperature: inf"),
        ({"temperature": 0.0, "top_p": 0.9}, "top_p: counts with a temperature above 0 alone"),
    ],
)
def test_rows_that_nothing_could_be_trained_on(training: dict[str, Any], message: str) -> None:
    (line,) = problems(changed("training", {"texts": [TEXT]} | training))
    assert line.startswith(f"training.{message}"), line


def test_a_value_beside_which_an_option_counts_is_named_as_a_config_has_it() -> None:
    class Norms(MethodOptions):
        counts_with: ClassVar = {"rounds": ("norm", "L2"), "sizes": ("book", None)}
        norm: str = "L1"
        rounds: int = 3
        book: str | None = "own"
        sizes: int = 4

    for option, said in (("rounds", "norm: L2"), ("sizes", "book: null")):
        with pytest.raises(ValidationError, match=f"{option}: counts with {said} alone"):
            Norms.read({option: 9})


def test_what_the_machine_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    gpus = 0

    def count() -> int:
        asked.append(gpus)
        return gpus

    monkeypatch.setattr(machine, "count_gpus", count)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)

    def said(*jobs: str, **more: Any) -> list[str]:
        return machine_problems(parse(trained({}, **more), "x.yaml"), jobs or ("quantize", "train"))

    assert said() == []
    assert not asked  # nothing to ask torch about
    assert said(limits={"threads": 3}) == ["limits.threads: 3, but this machine has 2 processors"]
    assert said(limits={"training_processes": 2}) == []
    (line,) = said(limits={"training_processes": 64})
    assert line == "limits.training_processes: 64, but this machine has no GPU to be used and 2 processors"
    assert said(limits={"training_processes": 64}, device="cpu") == [line]
    (line,) = said(device="cuda")
    assert line == "device: cuda is asked for, but torch finds no GPU here; use auto or cpu"
    gpus = 2
    assert said(device="cuda:1") == []
    assert said(device="cuda:2") == ["device: cuda:2 is asked for, but this machine has cuda:0 to cuda:1"]
    assert said(limits={"training_processes": 3}) == ["limits.training_processes: 3, but this machine has 2 GPUs"]
    assert said("quantize", limits={"training_processes": 64}) == []  # nothing trains
    assert machine_problems(parse(trained({}, limits={"threads": 64}, device="cuda:2"), "x.yaml"), ()) == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, None),
        ({"row": 7, "group": 3}, None),
        ({"row": 8}, "figures.lattice.row: layers.0.q of m has rows 0 to 7, not 8"),
        ({"group": 4}, "figures.lattice.group: layers.0.q of m has groups 0 to 3, not 4"),
        ({"layer": "l.0.experts", "row": 23, "group": 1}, None),
        ({"layer": "l.0.experts", "row": 24}, "figures.lattice.row: l.0.experts of m has rows 0 to 23, not 24"),
        ({"layer": "layers.0.k"}, "figures.lattice.layer: m has no layer layers.0.k; nearest valid: layers.0.q"),
    ],
)
def test_the_place_of_the_lattice_figure(wanted: dict[str, Any], message: str | None) -> None:
    recipes = {name: {"method": name, "granularity": "g64"} for name in ("rtn", "r2q")}
    models = {"m": {"path": "a/b"}, "n": {"path": "c/d"}}
    config = parse(config_of(recipes, models=models, figures={"lattice": wanted}), "x.yaml")
    shapes = {"layers.0.q": [8, 256], "l.0.experts": [3, 8, 128]}
    facts = {"targets": [{"name": name, "shape": shape} for name, shape in shapes.items()]}
    assert lattice_problems(config, "m", facts) == ([] if message is None else [message])
    assert lattice_problems(config, "n", facts) == []
