"""What a run costs: sizes against the models, rates against measurements, refusals against what they advise."""

import csv
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import costs
from r2q import cli
from r2q.config import ConfigError, built_in_methods, load, method_info, parse
from r2q.kept import ROOT
from r2q.models.targets import list_targets
from r2q.plan import cost
from r2q.plan.cost import GIB, PASSES, SWEEPS
from r2q.plan.estimate import Estimate, machine, report
from r2q.plan.jobs import Machine
from r2q.plan.shapes import catalogue, count, shape_of
from r2q.quantization.method import Recipe, WeightMethod, make_method
from tests.configs import full_precision_of
from tests.fake_hub import fake_hub
from tests.workflow import printed

ONE = Machine(gpus=1, gpu_bytes=None, cpu_jobs=4)


def meta_model(fields: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))


@pytest.mark.parametrize("path", catalogue())
def test_a_model_of_the_catalogue_has_as_many_parameters_as_transformers_makes(path: str) -> None:
    model = meta_model(catalogue()[path])
    assert count(catalogue()[path]).total == sum(p.numel() for p in model.parameters())


MOE = {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    "change",
    [
        {"word_embed_proj_dim": 32},
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
        MOE,
        MOE | {"num_hidden_layers": 5, "mlp_only_layers": [0], "decoder_sparse_step": 2},
        {"model_type": "qwen2", "tie_word_embeddings": True},
        {"model_type": "qwen3", "head_dim": 32},
        {"model_type": "qwen3"},
    ],
    ids=lambda change: change.get("model_type", "opt"),
)
def test_weights_to_quantize_are_counted_as_they_are_found(change: dict[str, Any]) -> None:
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
    of_family = {"intermediate_size": 128, "num_key_value_heads": 2, "tie_word_embeddings": False}
    if "model_type" not in change:
        of_family = {"model_type": "opt", "ffn_dim": 128, "max_position_embeddings": 64}
    fields = small | of_family | change
    model = meta_model(fields)
    targets = list_targets(model)
    shape = count(fields)
    assert shape.quantized == sum(target.weight.numel() for target in targets)
    assert shape.total == sum(p.numel() for p in model.parameters())
    experts = change.get("num_experts_per_tok", 0) / change.get("num_local_experts", change.get("num_experts", 1))
    sent = sum(t.weight.numel() * (experts if t.is_stack else 1) for t in targets)
    assert shape.active == sent


@pytest.mark.parametrize("name", ["mini-llama", "mini-opt", "mini-qwen"])
def test_a_local_model_is_counted_from_its_folder(name: str) -> None:
    config = load(ROOT / "config" / "embedded.yaml")
    with safe_open(ROOT / "mini" / "models" / name / "model.safetensors", "pt") as file:
        stored = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    assert shape_of(name, config.models[name], ask_hub=False).total == stored


def test_a_size_that_cannot_be_known_is_one_sentence(tmp_path: Path) -> None:
    entry = load(ROOT / "config" / "smoke.yaml").models["mini-opt"]
    with pytest.raises(ConfigError, match=r"^models.x.path: the size of nobody/nothing cannot be known here: [^\n]+$"):
        shape_of("x", entry.model_copy(update={"path": "nobody/nothing"}), ask_hub=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ConfigError, match="models of type mamba are not counted here, only llama, "):
        shape_of("x", entry.model_copy(update={"path": str(tmp_path)}), ask_hub=False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(ConfigError, match=r"config\.json has no num_hidden_layers"):
        shape_of("x", entry.model_copy(update={"path": str(tmp_path)}), ask_hub=False)


def test_the_hub_is_asked_for_the_config_of_a_model_and_for_no_weights(tmp_path: Path) -> None:
    (tmp_path / "hub.yaml").write_text(json.dumps(full_precision_of("hub", "own/model")))
    with fake_hub() as hub:
        hub.push("model", "own/model", {"config.json": json.dumps(catalogue()["Qwen/Qwen3-0.6B-Base"]).encode()})
        there = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "r2q", "estimate", str(tmp_path / "hub.yaml"), "--gpus", "1"]
        environment = os.environ | there | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "; 1.2 GB of models to download." in done.stdout  # 596 million parameters of 16 bits
    assert set(hub.asked) == {"/own/model/resolve/main/config.json"}


# Rates


def test_the_committed_rates_are_those_that_the_measurements_give() -> None:
    with cost.FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for old, new in zip(rows, costs.fit(rows), strict=True):
        assert float(new["value"]) == pytest.approx(float(old["value"]), rel=0.02), old["name"]


def test_errors_on_what_was_held_back_are_those_that_are_stated() -> None:
    stated = costs.stated(cost.rates())
    text = " ".join((ROOT / "config" / "README.md").read_text().split())
    assert stated in text, f"config/README.md does not say: {stated}"
    for unit, device, limit in (("s", "gpu", 0.2), ("GiB", "gpu", 0.25), ("s", "cpu", 0.3)):
        errors = costs.held_back(unit, device, cost.rates())
        assert len(errors) >= 6
        assert max(map(abs, errors)) < limit


def test_measurements_are_those_of_the_files_that_they_name() -> None:
    notes = (ROOT / "benchmarks" / "NOTES.md").read_text()
    numbers = {float(text.replace(",", "")) for text in re.findall(r"\d[\d,]*(?:\.\d+)?", notes)}
    of_notes = [m for m in costs.measurements() if m.kind in ("step", "train memory") and "small model" not in m.source]
    assert len(of_notes) > 15
    assert [m.name for m in of_notes if m.measured not in numbers] == []

    def median(file: str, column: str, key: str, **where: str) -> float:
        with (ROOT / file).open(newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if all(row[name] == value for name, value in where.items())]
        return statistics.median({row[key]: float(row[column]) for row in rows}.values())

    scores, timed = "results/reference/smollm2-cpu/scores.csv", "benchmarks/inference.csv"
    expected = {
        ("cpu forward", 4096): median(scores, "seconds", "recipe", task="wikitext2"),
        ("cpu forward", 6144): median(scores, "seconds", "recipe", task="fidelity"),
        ("cpu evaluate memory", 2048): median(scores, "peak_mib", "recipe", task="wikitext2") / 1024,
        ("forward", 512): 1e-6 * median(timed, "us", "what", what="SmolLM2-135M prefill", shape="batch 1",
                                        who="torch bf16"),
    }  # fmt: skip
    for (kind, tokens), value in expected.items():
        one = next(m for m in costs.measurements() if m.kind == kind and m.settings.get("tokens") == tokens)
        assert one.measured == pytest.approx(value, rel=0.01)
    (trained,) = [m for m in costs.measurements() if m.kind == "cpu train"]
    with (ROOT / "config/learning_rates.csv").open(newline="") as lines:
        seconds = [float(row["seconds"]) for row in csv.DictReader(lines)]
    assert trained.measured == pytest.approx(statistics.median(seconds), rel=0.01)


def test_every_method_of_this_repository_is_known() -> None:
    for name in built_in_methods():
        info = method_info(name)
        assert info.needs == "training" or info.label in {*SWEEPS, *PASSES, "gptq"}, name
    refined = method_info("r2q").options.model_fields["refine"].annotation
    sweeps = [SWEEPS["r2q"](method_info("r2q").options(refine=one).model_dump(), 0) for one in get_args(refined)]
    assert sweeps[0] == min(sweeps) > 0


# Whole runs


def run_of(**changes: Any) -> Any:
    """A 7B model, and a training with float32 latent weights: 18 bytes a parameter and more."""
    train = {"quantizer": "r2q", "batch_rows": 8, "micro_rows": 8, "steps": 10, "activation_checkpointing": True}
    data: dict[str, Any] = {
        "run": "trial",
        "models": {"llama": {"path": "meta-llama/Llama-2-7b-hf"}},
        "recipes": {"trained-g128": {"method": "bitdistiller", "granularity": "g128", "options": train}},
        "perplexity": {"text": {"path": "Salesforce/wikitext:wikitext-2-raw-v1:test"}},
        "training": {"kind": "text", "texts": [{"path": "own/text::train", "rows": 100}], "held_out": 10},
        "limits": {"batch_size": 1},
    }
    for dotted, value in changes.items():
        place = data
        *path, last = dotted.split(".")
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    return parse(data, "trial.yaml")


def changed(advice: str) -> dict[str, Any]:
    """The changes of a config that an advice names: `options.latent: bfloat16 with options.optimizer: adamw_8bit`."""
    pairs = [part.split(": ") for part in advice.rpartition(" (")[0].split(" with ")]
    return {re.sub(r"^options", "recipes.trained-g128.options", key): json.loads(_plain(value)) for key, value in pairs}


def _plain(value: str) -> str:
    return value if value.isdecimal() or value in ("true", "false") else json.dumps(value)


def problem_of(config: Any, gib: int, rule: str = "train") -> str:
    """The one problem that a rule has on a GPU of so many GiB."""
    problems = Estimate(config, Machine(gpus=1, gpu_bytes=gib * GIB, cpu_jobs=4)).problems()
    (found,) = [line for line in problems if line.startswith(f"{rule} ")]
    return found


@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        (80, "options.latent: bfloat16"),
        (60, "options.optimizer: adamw_8bit with options.latent: bfloat16"),
        (48, "limits.training_processes: 4"),
        (24, "limits.training_processes: 8"),
    ],
)
def test_a_training_that_does_not_fit_is_refused_and_what_is_advised_fits(gib: int, expected: str) -> None:
    problem = problem_of(run_of(), gib)
    assert problem.startswith("train llama: trained-g128 seed 0 takes about 114 GiB of a GPU, ")  # measured: 113.7
    assert f"{gib} GiB are given" in problem
    advice = problem.partition("change one: ")[2].split("; ")
    assert expected in [text.rpartition(" (")[0] for text in advice]
    for text in advice:
        fits = Estimate(run_of(**changed(text)), Machine(1, gib * GIB, 4))
        assert not [line for line in fits.problems() if line.startswith("train ")], text


@pytest.mark.parametrize("more", [{}, {"optimizer": "adamw_8bit"}, {"latent": "bfloat16"}])
def test_over_processes_nothing_is_advised_that_torchao_cannot_do(more: dict[str, Any]) -> None:
    options = {f"recipes.trained-g128.options.{name}": value for name, value in more.items()}
    options |= {"recipes.trained-g128.options.activation_checkpointing": False, "limits.training_processes": 2}
    for gib in (66, 48, 40, 36, 33, 30, 24):
        given = Machine(gpus=8, gpu_bytes=gib * GIB, cpu_jobs=4)
        for problem in Estimate(run_of(**options), given).problems():
            for text in problem.partition("change one: ")[2].split("; ") if problem.startswith("train ") else ():
                fits = Estimate(run_of(**options | changed(text)), given)  # a config that is refused raises
                assert not [line for line in fits.problems() if line.startswith("train ")], (gib, text)


def test_nothing_is_advised_that_a_config_cannot_say() -> None:
    """Such as bfloat16 weights where float32 arithmetic is asked for."""
    precise = {"recipes.trained-g128.options.compute": "float32"}
    for text in problem_of(run_of(**precise), 80).partition("change one: ")[2].split("; "):
        run_of(**precise, **changed(text))


def test_what_fits_is_not_refused() -> None:
    assert Estimate(run_of(), Machine(1, 139 * GIB, 4)).problems() == []
    assert Estimate(run_of(), ONE).problems() == []  # nothing is known of the GPU


def test_checkpointing_and_offload_are_advised_where_they_are_what_lacks() -> None:
    dear = run_of(**{"recipes.trained-g128.options.activation_checkpointing": False})
    assert "options.activation_checkpointing: true" in problem_of(dear, 120)
    recipes, text = {"gptq-g128": {"method": "gptq", "granularity": "g128"}}, {"path": "c4", "windows": 1024}
    looks = run_of(recipes=recipes, training=None, calibration=text)
    assert "change one: calibration.offload: true" in problem_of(looks, 24, "quantize")


def test_the_verb_refuses_in_a_sentence_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    paper = str(ROOT / "config" / "paper.yaml")
    assert cli.main(["estimate", paper, "--gpus", "1", "--gpu-memory", "80"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"(error: \S*paper.yaml: train \S+ .* of a GPU, 80 GiB are given.*\n)+", said.err)
    assert "limits.training_processes: 2" in said.err
    assert cli.main(["estimate", paper, "--gpus", "1", "--gpu-memory", "139"]) == 0
    assert capsys.readouterr().out.startswith("rule ")


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--gpus", "-1", "it must be at least 0"),
        *(("--gpu-memory", value, "it must be a number above 0") for value in ("nan", "-3", "0")),
    ],
)
def test_gpus_that_nobody_has_are_refused(option: str, value: str, reason: str, capsys: Any) -> None:
    assert cli.main(["estimate", str(ROOT / "config" / "embedded.yaml"), option, value]) == 2
    assert capsys.readouterr().err == f"error: {option}: {value}; {reason}\n"


def test_no_gpus_are_none_also_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r2q.plan.estimate.memory_of_gpus", lambda: [80 * GIB, 80 * GIB])
    config = load(ROOT / "config" / "embedded.yaml")
    assert [machine(config, gpus).gpus for gpus in (None, 0, 1)] == [2, 0, 1]


def test_more_processes_than_gpus_are_refused() -> None:
    spread = run_of(**{"limits.training_processes": 4})
    with pytest.raises(ConfigError, match=r"limits\.training_processes: 4, but 2 GPUs are given"):
        report(spread, "trial.yaml", Machine(2, None, 4))


def test_gpus_share_the_work_but_one_job_does_not_get_shorter() -> None:
    config = load(ROOT / "config" / "modern.yaml")
    one, four, many = (Estimate(config, Machine(n, None, 8)) for n in (1, 4, 10_000))
    assert one.gpu_hours() == four.gpu_hours() > 1
    assert four.wall() == pytest.approx(one.wall() / 4, rel=0.05)
    longest = max(job.seconds for job in one.jobs)
    assert longest <= many.wall() < one.wall() / 20


def test_a_unit_takes_the_disk_that_its_format_says() -> None:
    """Llama-2-7B at 2.25 bits a weight, embeddings, head and norms in 16 bits: 2.35 GB."""
    blocks = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = 2 * 32000 * 4096 + 65 * 4096
    jobs = Estimate(run_of(), ONE).rules()
    assert jobs["train"][0].disk_bytes == pytest.approx(blocks * 2.25 / 8 + rest * 2)
    assert jobs["train"][0].passing_bytes == pytest.approx(2 * 12 * (blocks + rest))  # weights and two moments, twice


def test_weights_that_are_left_to_start_from_take_four_bytes_each() -> None:
    """As `write_latent` writes what a method hands over, whatever the numbers of the checkpoint itself take."""
    options = {"quantizer": "rtn", "start": "gptq-g128", "start_from": "weights"}
    recipes = {
        "gptq-g128": {"method": "gptq", "granularity": "g128"},
        "trained-g128": {"method": "bitdistiller", "granularity": "g128", "options": options},
    }
    alone = {"gptq-g128": recipes["gptq-g128"]}
    disks = []
    for chosen in (recipes, alone):
        made = Estimate(run_of(recipes=chosen, calibration={"path": "own/text::train", "windows": 128}), ONE)
        disks.append(made.rules()["quantize"][0].disk_bytes)
    assert disks[0] - disks[1] == 4 * made.shapes["llama"].quantized


@pytest.mark.parametrize(("method", "bits"), [("rtn", 2), ("hqq", 4), ("r2q", 2), ("r2q", 3), ("r2q", 4)])
def test_no_method_stores_more_than_is_counted(method: str, bits: int) -> None:
    """Bytes of one packed weight a number, against what a model's disk has for each beside its other parameters."""
    quantizer, weight = make_method(Recipe("x", method, "g32", bits)), torch.randn(64, 128)
    assert isinstance(quantizer, WeightMethod)
    stored = quantizer.quantize_weight(weight).nbytes / weight.numel()
    made = Estimate(run_of(recipes={"x": {"method": method, "granularity": "g32", "bits": bits}}, training=None), ONE)
    shape = made.shapes["llama"]
    counted = made.rules()["quantize"][0].disk_bytes - 2 * (shape.total - shape.quantized)
    assert stored <= counted / shape.quantized * (1 + 1e-9)


@pytest.mark.parametrize("name", ["paper", "modern", "tinyllama", "smollm2"])
def test_the_estimate_in_a_configs_head_is_the_verbs(name: str) -> None:
    path = ROOT / "config" / f"{name}.yaml"
    head = path.read_text().partition("\nrun: ")[0]
    asked = re.search(rf"`python -m r2q estimate config/{name}.yaml --gpus (\d+) --gpu-memory (\d+)`:", head)
    assert asked is not None
    config = load(path)
    made = Estimate(config, machine(config, int(asked[1]), float(asked[2])))
    assert made.problems() == []
    written = " ".join(line.removeprefix("#").strip() for line in head[asked.end() :].splitlines())
    assert made.summary() in " ".join(written.split())


@pytest.mark.parametrize("name", ["embedded", "smoke", "smollm2-cpu"])
def test_a_run_on_the_cpu_is_told_in_hours_without_a_gpu(name: str) -> None:
    config = load(ROOT / "config" / f"{name}.yaml")
    alone, shared = (Estimate(config, Machine(0, None, jobs)) for jobs in (1, 2))
    assert "GPU" not in alone.summary()
    assert alone.gpu_hours() == 0
    assert shared.wall() == pytest.approx(alone.wall() / 2, rel=0.3)
    assert not [note for note in alone.notes() if note.startswith("not known")]


def test_rules_and_jobs_are_those_of_the_plan() -> None:
    config = load(ROOT / "config" / "smollm2.yaml")
    jobs = Counter(job.rule for job in Estimate(config, ONE).jobs)
    assert jobs["quantize"] + jobs["train"] == jobs["evaluate"] == len(config.units("smollm2-135m"))
    assert (jobs["source"], jobs["reference"], jobs["calibrate"], jobs["teacher_data"]) == (1, 1, 1, 1)


def test_an_estimate_takes_no_torch() -> None:
    code = (
        "import sys; from r2q.cli import main; main(sys.argv[1:]); print(sorted({'torch', 'numpy'} & {*sys.modules}))"
    )
    assert printed(code, "estimate", "config/modern.yaml", "--gpus", "1").splitlines()[-1] == "[]"
