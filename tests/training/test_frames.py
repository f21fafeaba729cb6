"""Every frame with every quantizer on every architecture; what comes out is what was trained."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from baselines.rtn import RTN
from r2q import config as configuration
from r2q.models.apply import apply
from r2q.models.load import load_full, load_packed
from r2q.models.save import save
from r2q.models.targets import list_targets
from r2q.plan import Plan
from r2q.quantization.method import Method, Quantized, Recipe, make_method
from r2q.quantize import quantize
from r2q.report.training import gather_training
from r2q.training import frame as frames
from r2q.training.data import TrainingData
from tests.models.tiny import CASES, tiny_folder, tiny_model, tokens
from tests.training.rows import random_data
from tests.training.teacher import make, teacher_folder

FRAMES = ["bitdistiller", "qat_ce", "llm_qat_training", "e2e_scales"]
STEP = {"steps": 1, "batch_rows": 4, "learning_rate": 3e-3}


def recipe(method: str, granularity: str = "g32", lm_head: bool = False, **options: Any) -> Recipe:
    return Recipe("recipe", method, granularity, options=STEP | options, lm_head=lm_head)


def trained(model: Any, data: TrainingData | None, asked: Recipe) -> Quantized:
    """What a recipe makes of a model and rows."""
    return make_method(asked).quantize(model, list_targets(model), data)


@pytest.mark.parametrize("case", ["llama", "opt", "qwen2", "mixtral", "gpt-oss", "llama4"])
@pytest.mark.parametrize("granularity", ["g32", "channel"])
@pytest.mark.parametrize("quantizer", ["rtn", "r2q"])
@pytest.mark.parametrize("method", FRAMES)
def test_one_step(method: str, quantizer: str, granularity: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few levels, untouched source weights, and the packed model's logits are the trained student's."""
    students = []
    monkeypatch.setattr(frames, "Student", lambda *a: students.append(RealStudent(*a)) or students[-1])
    model = tiny_model(case)
    before = {name: p.clone() for name, p in model.named_parameters()}
    result = trained(model, random_data(), recipe(method, granularity, quantizer=quantizer, flips_every=0))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for weight in result.layers.values():
        rows, groups = weight.grid.shape
        for group in weight.dequantize().reshape(rows * groups, -1):
            assert len(group.unique()) <= 4
    students[0].model.config._experts_implementation = "eager"  # as packed ones are computed
    with torch.no_grad():
        logits = students[0].model(tokens()).logits
        apply(_Done(result, granularity), model, list_targets(model), torch.device("cpu"))
        assert torch.equal(model(tokens()).logits, logits)
    started = students[0].layers
    assert any(not torch.equal(layer.latent(), before_of(before, name)) for name, layer in started.items())


RealStudent = frames.Student


def before_of(before: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return before[name if name in before else f"{name}.weight"]


class _Done(Method):
    """A method that has already run."""

    def __init__(self, result: Any, granularity: str) -> None:
        super().__init__(Recipe("recipe", "rtn", granularity))
        self.result = result

    def quantize(self, *_: Any) -> Any:
        return self.result


def test_the_packed_folder_of_a_trained_model(tmp_path: Path) -> None:
    """Head and embeddings included: what a folder gives back is the model after training."""
    model = load_full(str(tiny_folder("llama", tmp_path / "full")))
    method = make_method(recipe("bitdistiller", "channel", True, quantizer="r2q", steps=3))
    targets = list_targets(model, lm_head=True)
    layers, notes = apply(method, model, targets, torch.device("cpu"), training=random_data())
    assert "lm_head" in [layer["name"] for layer in layers]
    assert notes["training"]["steps"] == 3
    save(model, None, tmp_path / "packed", {})
    with torch.no_grad():
        assert torch.equal(load_packed(tmp_path / "packed")(tokens()).logits, model(tokens()).logits)
    assert not torch.equal(model.model.norm.weight, tiny_model("llama").model.norm.weight)


@pytest.mark.parametrize("quantizer", ["rtn", "r2q"])
@pytest.mark.parametrize("method", FRAMES)
def test_training_lowers_the_held_out_loss(method: str, quantizer: str) -> None:
    options = {"quantizer": quantizer, "steps": 20, "learning_rate": 1e-3, "loss_on": "all"}
    model = tiny_model("llama")
    for p in model.parameters():  # louder weights: a teacher that says something
        p.data *= 2
    data = random_data()
    notes = trained(model, replace(data, held_out=data.train), recipe(method, **options)).notes["training"]
    assert notes["held_out_loss"] < notes["held_out_loss_start"]


def test_only_what_shall_learn_learns() -> None:
    model, data = tiny_model("opt"), random_data()
    everything = trained(model, data, recipe("bitdistiller"))
    layers = trained(model, data, recipe("bitdistiller", train="layers"))
    scales = trained(model, data, recipe("e2e_scales", quantizer="r2q", steps=2))
    start = trained(model, None, Recipe("r2q", "r2q", "g32"))
    assert "model.decoder.embed_tokens.weight" in everything.other
    assert layers.other == scales.other == {}
    for name, weight in scales.layers.items():
        assert torch.equal(weight.packed, start.layers[name].packed)
        assert not torch.equal(weight.grid.tensors()["alpha"], start.layers[name].grid.tensors()["alpha"])


def test_supervised_rows_count_their_responses_only() -> None:
    """Tokens of the prompt and padding may be anything: they do not enter the loss as labels."""
    model, asked = tiny_model("llama"), recipe("qat_ce", quantizer="r2q", steps=2, batch_rows=16)
    rows = random_data(), random_data(kind="supervised")
    plain, supervised = (trained(model, data, asked).notes["training"] for data in rows)
    lengths = rows[0].train.end.sum()
    assert plain["tokens"] == 2 * int(lengths - 16)
    assert supervised["tokens"] == 2 * int(lengths - 16 * 4)
    assert supervised["loss_on"] == "response"


def test_activation_checkpointing_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the model has dropout, or noise of its routers, in its configuration: training here has none."""
    noisy = CASES["mixtral"][1] | {"router_jitter_noise": 0.3}
    monkeypatch.setitem(CASES, "mixtral", ("MixtralConfig", noisy))
    monkeypatch.setitem(CASES, "falcon", ("FalconConfig", {"hidden_dropout": 0.2, "attention_dropout": 0.1}))
    for case, compute in (("opt", "float32"), ("opt", "bfloat16"), ("mixtral", "float32"), ("falcon", "float32")):
        model, data = tiny_model(case), random_data()
        asked = recipe("bitdistiller", quantizer="r2q", steps=2, compute=compute)
        plain, spared = (
            trained(model, data, replace(asked, options=asked.options | {"activation_checkpointing": on}))
            for on in (False, True)
        )
        for name, weight in plain.layers.items():
            assert torch.equal(weight.packed, spared.layers[name].packed)
        assert all(torch.equal(plain.other[name], spared.other[name]) for name in plain.other)


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    model, data = tiny_model("llama"), random_data()
    whole, parts = (trained(model, data, recipe("bitdistiller", train="layers", micro_rows=n)).layers for n in (0, 1))
    assert min((weight.codes == parts[name].codes).float().mean().item() for name, weight in whole.items()) > 0.999


def test_records_of_a_run(tmp_path: Path) -> None:
    model = tiny_model("llama")
    options = {"quantizer": "r2q", "steps": 5, "evaluate_every": 2, "gradients_every": 2, "learning_rate": 1e-3}
    trained(model, random_data(tmp_path), recipe("bitdistiller", **options))
    rows, gradients, drift = (
        list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in ("training", "gradients", "drift")
    )
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [bool(row["held_out_loss"]) for row in rows] == [True, False, True, False, True, True]
    for row in rows[1:]:
        mixed = float(row["loss"])
        low, high = sorted((float(row["forward_kl"]), float(row["reverse_kl"])))
        assert low <= mixed <= high
        assert 0 < float(row["flipped"]) < 0.5
        assert float(row["gradient_norm"]) > 0
    norms = {int(row["step"]): 0.0 for row in gradients}
    for row in gradients:
        norms[int(row["step"])] += float(row["gradient_norm"]) ** 2
    assert list(norms) == [2, 4]
    assert norms[2] ** 0.5 < float(rows[2]["gradient_norm"])  # the layers' part of the whole
    assert len(drift) == 15
    for row in drift:
        assert float(row["latent_before"]) == 0 < float(row["latent_after"])
        assert row["latent_moved"] == row["latent_after"]
        if row["layer"] != "lm_head":
            assert float(row["quantized_before"]) > float(row["latent_after"])


def test_the_quantizers_options_are_filled_in() -> None:
    options = configuration.method_info("bitdistiller").options.model_validate({"quantizer": "r2q"})
    assert options.model_dump()["quantizer_options"] == {"refine": "none", "rounds": 15}


@pytest.mark.parametrize("step", ["quantize", "quantize_weight"])
@pytest.mark.parametrize("method", ["gptq", "bitdistiller"])
def test_a_quantizer_that_is_more_than_its_groups_is_no_part_of_another_method(
    method: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPTQ would be that of another quantizer, and training would store what it did not compute with."""
    monkeypatch.setattr(RTN, step, lambda self, *_: None)
    with pytest.raises(ValueError, match=f"recipe x: quantizer rtn has a {step} of its own, and a method inside"):
        make_method(Recipe("x", method, "g32", options={"quantizer": "rtn"}))


@pytest.mark.parametrize("step", ["fit_groups", "encode_groups"])
@pytest.mark.parametrize("method", ["gptq", "bitdistiller"])
def test_a_quantizer_that_changes_what_it_is_given_is_refused(
    method: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had changed the latent weights at every step, and those that error feedback went on with."""
    real = getattr(RTN, step)
    monkeypatch.setattr(RTN, step, lambda self, values, *grid: real(self, values.clamp_(-1, 1), *grid))
    with pytest.raises(ValueError, match="recipe x: quantizer rtn changes the weights that it is given"):
        make_method(Recipe("x", method, "g32", options={"quantizer": "rtn"}))


def test_levels_without_a_gradient_are_no_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RTN, "fit_groups", torch.no_grad()(RTN.fit_groups))
    model = tiny_model("llama")
    with pytest.raises(RuntimeError, match=r"layer model\..*: no gradient flows through the levels of rtn"):
        trained(model, random_data(), recipe("bitdistiller", gradient="through-scales"))


def test_an_operation_that_does_not_repeat_itself_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the setting goes with the run."""
    model = tiny_model("llama")
    method = make_method(recipe("bitdistiller", deterministic=True))
    seen = []
    monkeypatch.setattr(frames.Trainer, "run", lambda self: seen.append(torch.are_deterministic_algorithms_enabled()))
    with pytest.raises(IndexError):  # a run that records nothing
        method.quantize(model, list_targets(model), random_data())
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()

    def refused(self: Any) -> None:
        raise RuntimeError("put_ does not have a deterministic implementation, but you set it. You can turn it off.")

    monkeypatch.setattr(frames.Trainer, "run", refused)
    with pytest.raises(ValueError, match="deterministic: put_ does not have a deterministic implementation, but"):
        method.quantize(model, list_targets(model), random_data())


def test_without_data_there_is_a_reason() -> None:
    with pytest.raises(ValueError, match="needs training data"):
        trained(tiny_model("llama"), None, recipe("bitdistiller"))


def test_training_starts_from_another_recipes_levels(tmp_path: Path) -> None:
    """Clamped to the levels of a packed model with shrunken ranges, min-max quantization gives that model's weights."""
    model = load_full(str(tiny_folder("llama", tmp_path / "full")))
    clip = make_method(Recipe("clip", "rtn", "g32", options={"clip": "mse"}))
    expected = clip.quantize(model, list_targets(model), None).layers
    packed = load_full(str(tmp_path / "full"))
    apply(clip, packed, list_targets(packed), torch.device("cpu"))
    save(packed, None, tmp_path / "clip", {})
    data = replace(random_data(tmp_path / "run"), start=tmp_path / "clip")
    still = recipe("bitdistiller", quantizer="rtn", start="clip-g32", learning_rate=1e-12)
    result = trained(model, data, still)
    same = [
        torch.isclose(result.layers[name].dequantize(), weight.dequantize(), rtol=2e-3, atol=1e-6).float().mean()
        for name, weight in expected.items()
    ]
    assert min(same) > 0.97
    for row in csv.DictReader((tmp_path / "run" / "drift.csv").open()):
        if row["layer"] != "lm_head":  # clipped at the start, and hardly moved from there
            assert float(row["latent_before"]) > 1e-6
            assert float(row["latent_moved"]) < 1e-12
    data = replace(data, folder=None)
    away = trained(model, data, replace(still, options=still.options | {"start": None}))
    name = next(iter(expected))
    moved = torch.isclose(away.layers[name].dequantize(), expected[name].dequantize(), rtol=2e-3, atol=1e-6)
    assert moved.float().mean() < 0.9
    with pytest.raises(ValueError, match="has other groups"):
        trained(model, data, replace(still, granularity="channel"))
    with pytest.raises(ValueError, match="asked for and not given"):
        trained(model, random_data(), still)


OWN_LOOP = """
from baselines.rtn import RTN
from r2q.quantization.method import Method

class Mine(Method):
    needs = "training"
    stochastic = True

    def quantize(self, model, targets, data):
        assert data.train.tokens.shape == (8, 24)
        return RTN(self.recipe).quantize(model, targets, None)
"""


def test_a_method_that_trains_in_a_way_of_its_own_reads_the_rows_and_leaves_no_records(
    tmp_path: Path, module: Callable[[str], str]
) -> None:
    """It has none of a frame's options: no quantizer, no start, no steps."""
    source, results = teacher_folder(tmp_path / "full"), tmp_path / "results"
    make(source, results / "rows.safetensors", device="cpu")
    written = yaml.safe_load((results / "config.yaml").read_text())
    written["recipes"] = {"own-g32": {"method": f"{module(OWN_LOOP)}.Mine", "granularity": "g32"}}
    (results / "config.yaml").write_text(yaml.safe_dump(written))
    facts = {"fingerprint": "a" * 64, "family": "llama"}
    (results / "prepared.json").write_text(json.dumps({"models": {"tiny": facts}}))
    given = (results / "config.yaml", results / "prepared.json", "tiny", "own-g32", 0, results / "tiny/own-g32/seed0")
    quantize(*given, training=results / "rows.safetensors")
    assert json.loads((given[-1] / "report.json").read_text())["status"] == "ok"
    plan = Plan(configuration.load(given[0]))
    assert plan.training(plan.units[0]) == ["results/test/tiny/training_data.safetensors"]
    assert not plan.trained
    gather_training(given[0], results)
    assert len((results / "training.csv").read_text().splitlines()) == 1
    with pytest.raises(configuration.ConfigError, match="training: required by recipes own-g32"):
        configuration.parse({name: part for name, part in written.items() if name != "training"}, "x.yaml")
