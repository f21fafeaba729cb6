"""The verb ``quantize``: reports, kept units, failures that are rows, memory."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from baselines.rtn import RTN
from r2q import quantize as verb
from r2q.models.apply import apply, checksum, describe
from r2q.models.devices import pick_device
from r2q.models.save import folder_digest
from r2q.models.targets import list_targets
from r2q.quantization.method import Quantized, Recipe, make_method
from r2q.training.trainer import Diverged
from tests.configs import config_of
from tests.models.tiny import tiny_folder, tiny_model, tokens
from tests.units import quantize

Module = Callable[[str], str]  # the fixture `module`


class Run:
    """A run folder with one tiny model, as the workflow would lay it out."""

    def __init__(self, folder: Path) -> None:
        self.source = tiny_folder("llama", folder / "full", torch.bfloat16)
        self.results = folder / "results" / "test"
        self.results.mkdir(parents=True)
        self.fingerprint = "a" * 64
        self.recipes: dict[str, Any] = {
            "full_precision": {"method": "full_precision"},
            "r2q-g32": {"method": "r2q", "granularity": "g32"},
            "random_codes-g32": {"method": "random_codes", "granularity": "g32", "seeds": [0, 1]},
        }

    def quantize(self, *recipes: str) -> None:
        config = self.results / "config.yaml"
        config.write_text(yaml.safe_dump(config_of(self.recipes, self.source, device="cpu")))
        facts = {"models": {"tiny": {"fingerprint": self.fingerprint, "family": "llama"}}}
        (self.results / "prepared.json").write_text(json.dumps(facts))
        quantize(config, self.results / "prepared.json", "tiny", list(recipes), self.results / "tiny")

    def kept(self, *recipes: str) -> int:
        """How many units are kept when these recipes are asked for."""
        with redirect_stdout(StringIO()) as printed:
            self.quantize(*recipes)
        return printed.getvalue().count("kept")

    def report(self, recipe: str, seed: int = 0) -> dict[str, Any]:
        return json.loads((self.results / "tiny" / recipe / f"seed{seed}" / "report.json").read_text())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_reports(run: Run) -> None:
    run.quantize("full_precision", "r2q-g32", "random_codes-g32")
    full, r2q = run.report("full_precision"), run.report("r2q-g32")
    assert (full["bits_per_weight"], full["layers"], full["status"]) == (16.0, [], "ok")
    assert (r2q["bits_per_weight"], r2q["group_size"], r2q["method"]) == (3.0, 32, "r2q")
    folder = run.results / "tiny" / "r2q-g32" / "seed0"
    assert r2q["file_bytes"] == (folder / "model.safetensors").stat().st_size < full["file_bytes"]
    assert r2q["formula_bytes"] == pytest.approx(r2q["file_bytes"], rel=0.15)  # a tiny file is part header
    assert r2q["hashes"]["weights"] == folder_digest(folder)
    assert len(r2q["layers"]) == 14
    state = load_file(run.source / "model.safetensors")
    assert r2q["quantized_weights"] == sum(v.numel() for k, v in state.items() if "_proj" in k)
    assert run.report("random_codes-g32", 1)["seed"] == 1
    assert r2q["limits"] == {"threads": 1}


def test_a_function_of_one_weight_that_quantizes_in_a_way_of_its_own_is_asked_it() -> None:
    class Doubled(RTN):
        def quantize(self, model: Any, targets: Any, data: Any) -> Quantized:
            return Quantized({target.name: self.quantize_weight(2 * target.weight) for target in targets})

    model, doubled = tiny_model("llama"), tiny_model("llama")
    for target in list_targets(doubled):
        target.weight.data *= 2
    recipe = Recipe("x", "rtn", "g32")
    for method, asked in ((Doubled(recipe), model), (RTN(recipe), doubled)):
        apply(method, asked, list_targets(asked), torch.device("cpu"))
    assert torch.equal(model(tokens()).logits, doubled(tokens()).logits)


def test_layer_errors_are_the_identity(run: Run) -> None:
    """relative_error = 1 - sum (alpha_1^2 + alpha_2^2) / sum w^2, but for the rounding of the scales."""
    run.quantize("r2q-g32")
    layer = next(x for x in run.report("r2q-g32")["layers"] if x["name"] == "model.layers.0.mlp.up_proj")
    weight = load_file(run.source / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].double().reshape(-1, 32)
    first = weight.abs().mean(-1)
    second = (weight.abs() - first.unsqueeze(-1)).abs().mean(-1)
    mse = (weight.square().mean(-1) - first.square() - second.square()).mean().item()
    assert layer["mse"] == pytest.approx(mse, rel=1e-3)
    assert layer["relative_error"] == pytest.approx(mse / weight.square().mean().item(), rel=1e-3)


def test_units_are_kept_until_something_changes(run: Run) -> None:
    run.quantize("r2q-g32", "random_codes-g32")
    first = run.report("r2q-g32")
    assert run.kept("r2q-g32", "random_codes-g32") == 3
    assert run.report("r2q-g32") == first
    run.recipes["r2q-g32"]["options"] = {"refine": "refit"}
    assert run.kept("r2q-g32", "random_codes-g32") == 2
    run.fingerprint = "b" * 64
    assert run.kept("r2q-g32", "random_codes-g32") == 0


def test_a_look_at_a_unit_that_another_version_made_makes_it_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.quantize("r2q-g32")
    monkeypatch.setattr(verb, "versions", lambda *names: dict.fromkeys(names, "0.0"))
    assert run.kept("r2q-g32") == 0
    assert set(run.report("r2q-g32")["versions"].values()) == {"0.0"}


def test_a_model_of_somebody_else_is_not_written_over(run: Run, tmp_path: Path) -> None:
    run.quantize("r2q-g32")
    shutil.copytree(run.source, tmp_path / "mine")
    before = {file.name: file.read_bytes() for file in run.source.iterdir()}
    for out, said in ((run.source, "is the model that is"), (tmp_path / "mine", "config.json was not written by")):
        with pytest.raises(ValueError, match=said):
            verb.quantize(run.results / "config.yaml", run.results / "prepared.json", "tiny", "r2q-g32", 0, out)
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_damaged_unit_is_made_again(run: Run) -> None:
    run.quantize("r2q-g32")
    file = run.results / "tiny" / "r2q-g32" / "seed0" / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-10])
    assert run.kept("r2q-g32") == 0
    assert file.read_bytes() == good


def test_a_recipe_that_fails_is_a_report_and_the_others_go_on(run: Run) -> None:
    """A folder never holds a report of one attempt beside the weights of another."""
    run.quantize("r2q-g32")
    run.fingerprint = "c" * 64
    state = load_file(run.source / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(state, run.source / "model.safetensors", metadata={"format": "pt"})
    run.quantize("r2q-g32", "full_precision")
    report = run.report("r2q-g32")
    assert report["status"] == "failed"
    assert "model.layers.1.mlp.up_proj" in report["reason"]
    assert "not finite" in report["reason"]
    assert report["bits_per_weight"] is None
    assert not list((run.results / "tiny" / "r2q-g32" / "seed0").glob("*.safetensors"))
    assert run.report("full_precision")["status"] == "ok"


def test_training_that_diverges_is_a_report_of_its_own_kind_and_tried_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(verb, "drop_checkpoints", lambda folder: dropped.append(folder.parent.parent.name))
    real = verb.apply

    def apply(method: Any, *rest: Any) -> Any:
        if method.recipe.name == "r2q-g32":
            raise Diverged("diverged at step 4: loss nan, gradient norm 2.0; the checkpoint of step 2 is kept")
        return real(method, *rest)

    monkeypatch.setattr(verb, "apply", apply)
    for _ in range(2):  # nothing of it is kept, neither the report nor what an evaluation could find
        run.quantize("r2q-g32", "full_precision")
        report = run.report("r2q-g32")
        assert (report["status"], report["bits_per_weight"], report["hashes"]["weights"]) == ("diverged", None, None)
        assert report["reason"].startswith("step 4, loss nan")
        printed = capsys.readouterr().out
        assert "seed 0: DIVERGED: step 4, loss nan, gradient norm 2.0; the checkpoint of step 2 is kept\n" in printed
        assert run.report("full_precision")["status"] == "ok"
    assert dropped == ["full_precision"]  # the checkpoint stays
    monkeypatch.setattr(verb, "apply", real)
    run.quantize("r2q-g32")
    assert run.report("r2q-g32")["status"] == "ok"


def test_a_group_size_that_does_not_divide_stops_the_job(run: Run) -> None:
    run.recipes["r2q-g48"] = {"method": "r2q", "granularity": "g48"}
    with pytest.raises(ValueError, match=r"group size 48 does not divide the 64 input features of model\.layers\.0"):
        run.quantize("r2q-g48")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no GPU"):
        pick_device("cuda:0")
    assert pick_device("auto") == torch.device("cpu")


def test_the_part_of_an_error_beyond_the_levels() -> None:
    """Levels of R2Q for 1, 1, 1, 5: alpha 2 and 1.5, so 0.5 and 3.5; of 28 squared weights 1.5 squared is clipped."""
    weight = torch.tensor([[1.0, -1.0, 1.0, 5.0]])
    method = make_method(Recipe("r", "r2q", "channel"))
    found = describe("layer", method.quantize_weight(weight), weight)
    assert found["clipped_error"] == pytest.approx(1.5**2 / 28)
    assert found["relative_error"] == pytest.approx((3 * 0.5**2 + 1.5**2) / 28)


@pytest.mark.parametrize("lacking", ["import a_library_that_is_not_there", "open('needed.txt')"])
@pytest.mark.parametrize("when", ["imported", "used"])
def test_a_method_that_lacks_something_is_a_row_and_tried_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Module, lacking: str, when: str
) -> None:
    monkeypatch.chdir(tmp_path)
    head, body = (lacking, "pass") if when == "imported" else ("", lacking)
    name = module(
        f"from baselines.rtn import RTN\n{head}\n\n\nclass Mine(RTN):\n"
        f"    def fit_groups(self, values):\n        {body}\n        return super().fit_groups(values)\n"
    )
    run.recipes["mine-g32"] = {"method": f"{name}.Mine", "granularity": "g32"}
    run.quantize("mine-g32")
    report = run.report("mine-g32")
    assert (report["status"], report["retry"]) == ("failed", True)
    assert lacking.split("'")[1] in report["reason"] if "'" in lacking else lacking.split()[1] in report["reason"]
    if "'" in lacking:  # the same command, once the cause is gone
        (tmp_path / "needed.txt").write_text("")
        run.quantize("mine-g32")
        assert run.report("mine-g32")["status"] == "ok"


FAULTY = """
from baselines.rtn import RTN
from r2q.quantization.method import Method, WeightMethod


class One(RTN):
    def fit_groups(self, values):
        FAULT


class Whole(Method):
    def quantize(self, model, targets, data):
        FAULT
"""


@pytest.fixture
def faulty(run: Run, module: Module, fault: str) -> str:
    """Two recipes whose methods run into a fault; the name of their module."""
    name = module(FAULTY.replace("FAULT", fault))
    for kind in ("One", "Whole"):
        run.recipes[f"{kind.lower()}-g32"] = {"method": f"{name}.{kind}", "granularity": "g32"}
    return name


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("return {}['scale']", "KeyError: 'scale'"),
        ("values = None; return values @ values", "TypeError: unsupported operand type(s) for @"),
        ("raise RuntimeError('two\\n  lines')", "RuntimeError: two lines"),
        ("assert False", "AssertionError"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("compile('1 +', 'kernel', 'exec')", "SyntaxError: invalid syntax"),
        ("raise RuntimeError(chr(27) + '[31mred')", "RuntimeError: \N{REPLACEMENT CHARACTER}[31mred"),
    ],
)
def test_a_fault_in_a_method_is_a_row_and_its_traceback_is_printed(
    run: Run, faulty: str, capsys: Any, said: str
) -> None:
    """The next recipe is quantized."""
    run.quantize("one-g32", "whole-g32", "r2q-g32")
    layer = "recipe one-g32, layer model.layers.0.self_attn.q_proj: "
    starts = {"one-g32": f"method {faulty}.One: {layer}{said}", "whole-g32": f"method {faulty}.Whole: {said}"}
    for recipe, start in starts.items():
        report = run.report(recipe)
        assert (report["status"], report["retry"], report["hashes"]["weights"]) == ("failed", False, None)
        assert report["reason"].startswith(start)
    printed = capsys.readouterr()
    assert f"quantize tiny one-g32 seed 0: FAILED: {starts['one-g32']}" in printed.out
    assert printed.err.count(f'{faulty}.py", line') >= 2  # of both
    assert run.report("r2q-g32")["status"] == "ok"


@pytest.mark.parametrize(
    "fault",
    [
        "raise RuntimeError('no values') from ImportError('no library')",
        "open('/')",
        """
        try:
            open("no such file")
        except FileNotFoundError:
            return {}["scale"]
        """,
    ],
)
def test_what_a_method_makes_of_what_is_not_there_is_a_row_to_be_tried_again(run: Run, faulty: str) -> None:
    for recipe in ("one-g32", "whole-g32"):
        run.quantize(recipe)
        assert (run.report(recipe)["status"], run.report(recipe)["retry"]) == ("failed", True)


@pytest.mark.parametrize(
    "fault",
    [
        "raise OSError(28, 'No space left')",
        "import torch; raise torch.AcceleratorError('unplugged')",
        "raise RuntimeError('[enforce fail] DefaultCPUAllocator: can\\'t allocate memory: 9 bytes')",
    ],
)
def test_trouble_of_the_machine_is_no_row(run: Run, faulty: str) -> None:
    """The same command tries again, on a cluster with more memory."""
    with pytest.raises((OSError, RuntimeError)):
        run.quantize("one-g32")
    assert not (run.results / "tiny" / "one-g32" / "seed0" / "report.json").exists()


CHANGING = """
from baselines.rtn import RTN
from r2q.quantization.method import Method, Quantized


class One(RTN):
    def fit_groups(self, values):
        grid = super().fit_groups(values)
        CHANGE_VALUES
        return grid


class Whole(Method):
    def quantize(self, model, targets, data):
        rtn = RTN(self.recipe)
        layers = {target.name: rtn.quantize_weight(target.weight, target.name) for target in targets}
        CHANGE_MODEL
        return Quantized(layers)
"""


@pytest.mark.parametrize(
    ("values", "model", "name"),
    [
        ("values.mul_(2)", "targets[3].weight.mul_(2)", "model.layers.0.self_attn.o_proj.weight"),
        ("values.data[0, 0, 0] += 1", "model.model.norm.weight.data[5] += 1", "model.norm.weight"),
        ("values.copy_(values.flip(0))", "targets[0].weight.copy_(targets[0].weight.flip(0))", "model.layers.0."),
        ("values.copy_(values.flip(2))", "model.config.vocab_size = 3", "config"),
        ("values[:, 0].neg_()", "model.train()", "training"),
        ("values[0, 0, 0] = 7", "model.to('meta')", "lm_head.weight"),
        ("values.clamp_(0)", "targets[0].weight.data = targets[0].weight.data * 2", "model.layers.0.self_attn.q_proj."),
    ],
)
def test_a_method_that_changes_the_model_that_it_is_given_is_refused(
    module: Module, values: str, model: str, name: str
) -> None:
    """Its errors would be to weights that the model never had, and a part of the change in no one's account."""
    changing = module(CHANGING.replace("CHANGE_VALUES", values).replace("CHANGE_MODEL", model))
    for method, said in (("One", "quantize_weight changes model.layers.0."), ("Whole", f"quantize changes {name}")):
        given = tiny_model("llama", torch.float32)  # whose weights a method sees as they are, not as a copy in float32
        recipe = Recipe("mine", f"{changing}.{method}", "g32")
        with pytest.raises(ValueError, match=f"recipe mine: {re.escape(said)}.* of the model that it is given"):
            apply(make_method(recipe), given, list_targets(given), torch.device("cpu"))


def test_a_model_that_counts_its_passes_is_not_changed_by_its_method(
    module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count is put back: what is stored does not depend on how often a method looked."""
    looking = module(CHANGING.replace("CHANGE_VALUES", "").replace("CHANGE_MODEL", "model(input_ids=data)"))
    model = tiny_model("llama")
    model.model.norm.register_buffer("passes", torch.zeros((), dtype=torch.int64))
    targets, seen = list_targets(model), []
    model.model.norm.register_forward_hook(lambda norm, *_: seen.append(norm.passes.add_(1).item()))
    method = make_method(Recipe("mine", f"{looking}.Whole", "g32"))
    monkeypatch.setattr(method, "quantize", lambda m, t, _: type(method).quantize(method, m, t, tokens()))
    layers, _ = apply(method, model, targets, torch.device("cpu"))
    assert (seen, model.model.norm.passes.item(), len(layers)) == ([1], 0, 14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.uint8])
def test_a_checksum_tells_any_change_and_no_place(dtype: torch.dtype) -> None:
    whole = torch.arange(3 * 37).reshape(3, 37).to(dtype)
    for tensor in (whole, whole[1], whole[1, 1:], whole.T, whole[0, 0]):
        before = checksum(tensor)
        assert checksum(tensor.clone()) == before
        changed = tensor.contiguous().clone().view(-1)
        changed[-1] = changed[-1] == 0
        assert checksum(changed) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("shape", [(64, 64), (256, 640), (5, 3)])
def test_a_checksum_tells_values_that_only_moved(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Such as rows and columns in another order."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(9).to(dtype)
    bits = weight.view(torch.int8)
    swapped = bits.clone()
    swapped[[0, -1]] = bits[[-1, 0]]
    sums = [checksum(moved.view(dtype)) for moved in (bits, bits.flip(0), bits.flip(1), bits.roll(8, 1), swapped)]
    assert len(set(sums)) == len(sums)
