"""What every method promises, checked for every recipe that a shipped config names, and at 3 and 4 bits."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from r2q import config as configuration
from r2q import contract
from r2q.cli import main
from r2q.models.apply import apply
from r2q.models.load import load_full, load_packed
from r2q.models.save import save
from r2q.models.targets import list_targets
from r2q.quantization.grid import CodebookGrid
from r2q.quantization.method import Quantized, QuantizedWeight, Recipe, WeightMethod, make_method
from tests.models.tiny import tiny_folder

Module = Callable[[str], str]  # the fixture `module`
CONFIGS = sorted((Path(__file__).parent.parent / "config").glob("*.yaml"))


def shipped_recipes() -> list[Recipe]:
    """Every different recipe of the shipped configs, and the weight methods once more at 3 and 4 bits."""
    found: dict[str, Recipe] = {}
    for path in CONFIGS:
        for name, entry in configuration.load(path).recipes.items():
            granularity = "g32" if (entry.granularity or "").startswith("g") else entry.granularity
            for bits in {entry.bits, 3, 4} if configuration.method_info(entry.method).weight_method else {entry.bits}:
                label = f"{name.removesuffix(f'-{entry.granularity}')}-{granularity}-{bits}bit"
                options = dict(entry.options)
                if configuration.method_info(entry.method).needs == "training":
                    options |= {"steps": 2, "batch_rows": 4, "warmup_steps": 0, "compiled": False}
                    options |= {"start": None, "start_from": "levels"}
                found[label] = Recipe(name, entry.method, granularity, bits, 0, options)
    return [found[label] for label in sorted(found)]


RECIPES = shipped_recipes()


def label(recipe: Recipe) -> str:
    return f"{recipe.name}-{recipe.granularity}-{recipe.bits}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("full"))


CASES = [
    (check, recipe)
    for recipe in RECIPES
    for check in contract.checks_of(recipe)
    if recipe.bits == 2 or check in contract.CHECKS[:5]
]


@pytest.fixture(scope="module")
def bench() -> contract.Bench:
    return contract.Bench()


@pytest.mark.parametrize(("check", "recipe"), CASES, ids=[f"{check.__name__}-{label(r)}" for check, r in CASES])
def test_a_promise_is_kept(check: contract.Check, recipe: Recipe, bench: contract.Bench) -> None:
    check(recipe, bench)


def test_full_precision_changes_nothing(source: Path, tmp_path: Path) -> None:
    model = load_full(str(source))
    layers, _ = apply(make_method(Recipe("full_precision", "full_precision")), model, [], torch.device("cpu"))
    assert layers == []
    save(model, None, tmp_path / "plain", {})
    original, copy = load_full(str(source)).state_dict(), load_packed(tmp_path / "plain").state_dict()
    assert all(torch.equal(original[key], copy[key]) for key in original)


class Fixed(WeightMethod):
    """Levels that know nothing of the weights."""

    def fit_groups(self, values: torch.Tensor) -> CodebookGrid:
        return CodebookGrid(torch.linspace(-0.1, 0.1, 4).half().expand(*values.shape[:2], -1).contiguous())


class OwnStep(Fixed):
    def quantize_weight(self, weight: torch.Tensor, name: str = "weight") -> QuantizedWeight:
        return super().quantize_weight(weight.nan_to_num(), name)


class Whole(OwnStep):
    def quantize(self, model: Any, targets: Any, data: Any) -> Quantized:
        return super().quantize(model, targets, data)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [Fixed, OwnStep, Whole])
def test_weights_that_are_not_finite_are_refused(kind: type[WeightMethod], value: float) -> None:
    """Whatever a method would make of them; one that fails to look had made numbers of them."""
    bench, name = contract.Bench(), "model.layers.1.mlp.up_proj"
    model = bench.model()
    model.get_submodule(name).weight.data[3, 5] = value
    with pytest.raises(ValueError, match=f"recipe x, layer {name}: weights are not finite"):
        apply(kind(Recipe("x", "mine.Kind", "g32")), model, list_targets(model), torch.device("cpu"))


def test_a_method_is_given_what_it_says_that_it_needs() -> None:
    """Text is also there to measure the errors of outputs on, of every method."""
    seen: list[Any] = []

    class Looks(Whole):
        def quantize(self, model: Any, targets: Any, data: Any) -> Quantized:
            seen.append(data)
            return super().quantize(model, targets, data)

    bench = contract.Bench()
    text, rows = bench.calibration(), bench.rows()
    for needs in ("weights", "calibration", "training"):
        Looks.needs = needs  # type: ignore[assignment]
        model = bench.model()
        apply(Looks(Recipe("x", "mine.Looks", "g32")), model, list_targets(model), torch.device("cpu"), text, rows)
    assert seen == [None, text, rows]


BROKEN = """
import torch
from r2q.quantization.grid import CodebookGrid, stored
from r2q.quantization.method import WeightMethod


class Broken(WeightMethod):
    def fit_groups(self, values):
        values.mul_({factor})
        levels = torch.linspace(-1, 1, 2**self.recipe.bits).expand(*values.shape[:2], -1) * values.abs().amax(-1, True)
        {noise}
        return CodebookGrid(stored(levels))
"""


@pytest.mark.parametrize(
    ("factor", "noise", "message"),
    [
        ("1", "", "all promises kept"),
        ("2", "", "weights stay untouched: quantize changes "),
        ("1", "levels = levels * torch.rand(1)", "the same seed gives the same bits: the same seed"),
    ],
)
def test_a_method_of_another_package_is_checked(
    factor: str, noise: str, message: str, module: Module, capsys: Any
) -> None:
    status = main(["check-method", f"{module(BROKEN.format(factor=factor, noise=noise))}:Broken"])
    assert message in capsys.readouterr().out
    assert status == (0 if message == "all promises kept" else 1)


BETWEEN = """
from dataclasses import dataclass
import torch
from baselines.rtn import RTN, min_max_grid
from r2q.quantization.grid import AffineGrid, stored

class WholeLayer(RTN):
    def fit_groups(self, values):
        return min_max_grid(values.clamp(-3 * values.std(), 3 * values.std()), self.recipe.bits)

class Elsewhere(RTN):
    def quantize_weight(self, weight, name="weight"):
        return super().quantize_weight(weight * 0.9, name)

class Remembers(RTN):
    seen = 0.0

    def fit_groups(self, values):
        self.seen = max(self.seen, values.abs().amax() / 100)
        return min_max_grid(values * (1 - self.seen), self.recipe.bits)

class WholeRow(RTN):
    def fit_groups(self, values):
        largest = values.abs().amax((1, 2), keepdim=True)
        return min_max_grid(values.clamp(-largest / 2, largest / 2), self.recipe.bits)

class FirstOfRow(RTN):
    def fit_groups(self, values):
        shrunk = values.clone()
        shrunk[:, 0] *= 0.7
        return min_max_grid(shrunk, self.recipe.bits)

class LeftBehind(RTN):
    def fit_groups(self, values):
        self.step = values.abs().mean(-1, keepdim=True)
        return min_max_grid(values, self.recipe.bits)

    def encode_groups(self, values, grid):
        return (values > self.step).to(torch.uint8)

class Wider(AffineGrid):
    def decode(self, codes):
        return 1.1 * super().decode(codes)

class Decodes(RTN):
    def fit_groups(self, values):
        grid = min_max_grid(values, self.recipe.bits)
        return Wider(grid.scale, grid.zero, grid.width)

class Free(AffineGrid):
    side_bits = 0

class Costs(RTN):
    def fit_groups(self, values):
        grid = min_max_grid(values, self.recipe.bits)
        return Free(grid.scale, grid.zero, grid.width)

@dataclass(frozen=True)
class Ternary(AffineGrid):
    threshold: torch.Tensor

    def encode(self, values):
        at = self.threshold.float().unsqueeze(-1)
        return 1 + (values > at).to(torch.uint8) - (values < -at).to(torch.uint8)

class Threshold(RTN):
    def fit_groups(self, values):
        scale = stored(values.abs().mean(-1))
        return Ternary(scale, torch.ones_like(scale, dtype=torch.uint8), self.recipe.bits, scale * 0.7)
"""
ALONE = "it fits the levels of a group by other groups, or by its place among them"
LEFT = "it chooses codes by what fit_groups left behind, not by the values and levels it is given alone"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("WholeLayer", "groups of a part of the rows get other numbers than in the whole weight"),
        ("Elsewhere", "fit_groups and encode_groups give other numbers than quantize_weight"),
        ("Remembers", "a weight gives other numbers after another one was quantized"),
        ("WholeRow", ALONE),
        ("FirstOfRow", ALONE),
        ("LeftBehind", LEFT),
    ],
)
def test_groups_that_depend_on_others_break_a_promise(name: str, message: str, module: Module) -> None:
    """Training quantizes many layers at once, weights come in parts: what is stored would not be what was trained."""
    recipe = Recipe("x", f"{module(BETWEEN)}.{name}", "g32")
    with pytest.raises(contract.Broken, match=message):
        contract.a_group_is_quantized_by_itself(recipe, contract.Bench())


@pytest.mark.parametrize("frame", ["gptq", "qat_ce"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("WholeLayer", ALONE),
        ("WholeRow", ALONE),
        ("FirstOfRow", ALONE),
        ("LeftBehind", LEFT),
        ("Remembers", "it fits levels by what it fitted before"),
        ("Decodes", "it gives what cannot be stored: levels are stored as AffineGrid, from which Wider may differ in"),
        ("Costs", "it gives what cannot be stored: levels are stored as AffineGrid, from which Free may differ in"),
    ],
)
def test_such_methods_are_no_part_of_another(
    name: str, message: str, frame: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPTQ fits one group at a time and asks for codes of single columns of any: it had been another method's row."""
    (tmp_path / "between.py").write_text(BETWEEN)
    monkeypatch.syspath_prepend(tmp_path)
    sentence = message.replace("it ", f"recipe x: quantizer between.{name} ", 1)
    for granularity in ("g32", "channel") if name == "WholeLayer" else ("g32",):
        with pytest.raises(ValueError, match=sentence):
            make_method(Recipe("x", frame, granularity, options={"quantizer": f"between.{name}"}))


@pytest.mark.parametrize("name", ["Decodes", "Costs", "Threshold"])
def test_a_grid_of_ones_own_differs_in_what_codes_it_chooses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors, and bits, had been those that it says; what is stored are the kind's."""
    (tmp_path / "between.py").write_text(BETWEEN)
    monkeypatch.syspath_prepend(tmp_path)
    bench, recipe = contract.Bench(), Recipe("x", f"between.{name}", "g32")
    if name != "Threshold":
        with pytest.raises(ValueError, match=r"layer model.*: levels are stored as AffineGrid"):
            bench.quantize(recipe, bench.model())
        return
    for check in contract.checks_of(recipe):
        if check is not contract.more_bits_mean_less_error:
            check(recipe, bench)
    gptq = Recipe("x", "gptq", "g32", options={"quantizer": recipe.method, "static_groups": True})
    contract.few_levels_in_the_bits_of_the_formula(gptq, bench)


FAULTY = """
import sys
import torch
from r2q.quantization.grid import CodebookGrid
from r2q.quantization.method import WeightMethod

class Leaves(WeightMethod):
    def fit_groups(self, values):
        sys.exit("no licence")

class Levels(WeightMethod):
    def fit_groups(self, values):
        return values.amax(-1)

class Pair(WeightMethod):
    def fit_groups(self, values):
        return CodebookGrid(torch.stack([-values.abs().mean(-1), values.abs().mean(-1)] * 2, -1).half())
"""


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        # what is wrong everywhere is said once, also where Python itself is asked to end
        ("Leaves", 1, ["FAILED  every layer is quantized: SystemExit: no licence", "weights stay untouched: the same"]),
        (
            "Levels",
            1,
            ["FAILED  every layer is quantized: ValueError: recipe Levels", "more bits mean less error: the same"],
        ),
        (
            "Pair",
            1,
            ["more bits mean less error: at 3 bits: recipe Pair, layer model.layers.0", "in `problems` of its Options"],
        ),
    ],
)
def test_what_check_method_says(
    name: str, status: int, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check-method", f"faulty:{name}"]) == status
    out = capsys.readouterr().out
    assert all(sentence in out for sentence in said), out


TWO_BITS = """
import torch
from r2q.config import MethodOptions
from r2q.quantization.grid import CodebookGrid, stored
from r2q.quantization.method import WeightMethod


class Options(MethodOptions):
    def problems(self, recipe, config):
        return ["bits: there are four levels"] if recipe.bits != 2 else []


class Quartiles(WeightMethod):
    Options = Options

    def fit_groups(self, values):
        return CodebookGrid(stored(torch.tensor([-1, -0.3, 0.3, 1]) * values.abs().amax(-1, keepdim=True)))
"""


def test_bits_that_a_method_refuses_break_no_promise(module: Module, capsys: Any) -> None:
    method = f"{module(TWO_BITS)}:Quartiles"
    assert main(["check-method", method]) == 0, capsys.readouterr().out
    assert main(["check-method", method, "--bits", "3"]) == 2
    assert "bits: there are four levels" in capsys.readouterr().err


ODD = """
import datetime, enum, pathlib
from r2q.config import MethodOptions
from baselines.rtn import RTN

class Norm(enum.Enum):
    L1 = "l1"
    L2 = "l2"

class Inner(MethodOptions):
    depth: int = 1

class Options(MethodOptions):
    ends: tuple[float, float] = (-1.0, 1.0)
    norm: Norm = Norm.L1
    path: pathlib.Path = pathlib.Path("book.pt")
    day: datetime.date | None = None
    sizes: dict[int, float] = {4: 0.5}
    inner: Inner = Inner()

class Odd(RTN):
    Options = Options

    def __init__(self, recipe):
        super(RTN, self).__init__(recipe)
        self.given, self.factors = self.options, None
        self.options = type("Plain", (), {"clip": "none"})
"""


def test_options_may_be_of_any_type_that_a_config_can_write(module: Module, capsys: Any) -> None:
    name = module(ODD)
    assert main(["check-method", f"{name}:Odd"]) == 0, capsys.readouterr()
    given = {"ends": [0, 2], "norm": "l2", "path": "a/b.pt", "day": "2026-01-02", "sizes": {8: 1.0}}
    recipe = {"method": f"{name}.Odd", "granularity": "g32", "options": {**given, "inner": {"depth": 3}}}
    config = configuration.Config.model_validate({"run": "x", "models": {"m": {"path": "m"}}, "recipes": {"o": recipe}})
    for options in (recipe["options"], config.resolved()["recipes"]["o"]["options"]):  # as given, as written for jobs
        method: Any = make_method(Recipe("o", f"{name}.Odd", "g32", options=options))
        assert (method.given.ends, method.given.norm.name, method.given.path) == ((0, 2), "L2", Path("a/b.pt"))
        assert (method.given.day.year, method.given.sizes, method.given.inner.depth) == (2026, {8: 1.0}, 3)
    assert json.loads(json.dumps(configuration.describe_recipe(config, "o").settings))["inner"] == {"depth": 3}


def test_there_must_be_a_method_to_check(capsys: Any) -> None:
    assert main(["check-method", "no_such_file:Mine"]) == 2
    assert "no file of a module no_such_file in this folder" in capsys.readouterr().err
    assert main(["check-method", "baselines.rtn:RTM"]) == 2
    assert "baselines.rtn has no class RTM" in capsys.readouterr().err
    assert main(["check-method", "rtn", "--options", '{"clop": "mse", "steps": -1}']) == 2
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()] == [" options.steps", " options.clop"]
    assert main(["check-method", "rtn", "--options", "{clip}"]) == 2
    assert "--options: {clip} is not JSON" in capsys.readouterr().err
    for granularity in ("g7", "x", "g0"):  # its own mistake breaks no promise of a method
        assert main(["check-method", "rtn", "--granularity", granularity]) == 2
        assert f"granularity: {granularity} " in capsys.readouterr().err


WHOLE = """
import math, torch
from dataclasses import replace
from baselines.rtn import RTN
from r2q.quantization.method import Method, Quantized, QuantizedWeight

class Mine(Method):
    def quantize(self, model, targets, data):
        def rtn(bits=2, granularity="g32"):
            one = RTN(replace(self.recipe, bits=bits, granularity=granularity, options={}))
            return {t.name: one.quantize_weight(t.weight, t.name) for t in targets}
        layers, other, notes = rtn(), {}, {}
        first = targets[0].name
        grid = layers[first].grid

        def alter(**fields):
            layers[first] = replace(layers[first], **fields)

        CHANGE
        return Quantized(layers, other, notes)
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pass", "all promises kept"),
        (  # one tensor in several layers is stored in each of them
            "s = torch.ones(64).half(); n = targets[1].name; "
            "layers |= {x: replace(layers[x], in_scale=s) for x in (first, n)} | {targets[2].name: layers[n]}",
            "all promises kept",
        ),
        ("del layers[first]", "recipe Mine: model.layers.0.self_attn.q_proj is not quantized (1 such)"),
        ("layers['lm_head'] = layers[first]", "lm_head is none of the layers to quantize"),
        ("layers = rtn(bits=4)", "levels are for 4 bits and [64, 2] [rows, groups], not 2 bits and [64, 2]"),
        ("layers = rtn(granularity='g16')", "levels are for 2 bits and [64, 4] [rows, groups], not 2 bits and [64, 2]"),
        ("layers[first] = layers[targets[1].name]", "q_proj: the weight is [64, 64], not [32, 64]"),
        (
            "alter(grid=replace(grid, scale=grid.scale.float()))",
            "q_proj: scale is stored as torch.float16 [64, 2], not torch.float32 [64, 2]",
        ),
        ("alter(grid=replace(grid, scale=grid.scale * math.nan))", "q_proj: scale is not finite"),
        ("alter(in_scale=torch.zeros(64).half())", "q_proj: in_scale is finite and above zero"),
        ("alter(in_scale=torch.full((64,), math.inf).half())", "q_proj: in_scale is finite and above zero"),
        ("alter(in_scale=torch.ones(64))", "q_proj: in_scale is torch.float16 [64], not torch.float32 [64]"),
        ("other['model.norm.weight'] = torch.ones(3)", "norm.weight, which it changes, is finite torch.float32 [64]"),
        (  # finite, but not as it is stored
            "other['model.norm.weight'] = torch.full((64,), 1e39, dtype=torch.float64)",
            "model.norm.weight, which it changes, is finite torch.float32 [64]",
        ),
        (
            "other['model.norm.weight'] = torch.full((64,), 3e38)",
            "FAILED  the same bits after saving: logits are not finite",
        ),
        ("other[first + '.weight'] = targets[0].weight", "q_proj.weight, which it changes, is no parameter that stays"),
        ("notes['x'] = math.nan", "notes are plain JSON (Out of range float values"),
        ("notes['layers'] = {first: {'seconds': 1.0, 'mine': 2.0}}", "all promises kept"),
        ("notes['layers'] = {first: {'mse': 0.0}}", "notes of model.layers.0.self_attn.q_proj: mse is measured, no"),
        ("notes['layers'] = {first: {'kind': 'x'}}", "q_proj: kind is measured, no note; give it another name"),
        ("notes['layers'] = {first: {'model': 'x'}}", "q_proj: model is measured, no note; give it another name"),
        ("notes['layers'] = {'head': {'mine': 1}}", "notes speak of head, which is none of the layers to quantize"),
        ("targets[0].weight.data.mul_(2)", "quantize changes model.layers.0.self_attn.q_proj.weight of the model"),
        ("model.model.norm.weight.data.mul_(2)", "quantize changes model.norm.weight of the model"),
        ("return layers", "recipe Mine: quantize gives a Quantized, not dict"),
    ],
)
def test_what_a_method_of_whole_models_gives_is_held_against_its_recipe(
    change: str, message: str, module: Module, capsys: Any
) -> None:
    status = main(["check-method", f"{module(WHOLE.replace('CHANGE', change))}:Mine"])
    assert message in capsys.readouterr().out
    assert status == (0 if message == "all promises kept" else 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fit_groups = lambda self, values: None", "levels are a Grid of r2q.quantization.grid, not NoneType"),
        ("fit_groups = lambda self, values: CodebookGrid(values[:1, :1, :4].half())", "not 2 bits and [64, 2]"),
        (
            "fit_groups = lambda self, values: CodebookGrid(values[..., :4])",
            "book is stored as torch.float16 [64, 2, 4], not torch.float32 [64, 2, 4]",
        ),
        (
            "fit_groups = lambda self, values: CodebookGrid(values[..., :5].half())",
            "book is stored as torch.float16 [64, 2, 4], not torch.float16 [64, 2, 5]",
        ),
        ("encode_groups = lambda self, values, grid: grid.encode(values)[:1]", "shape of the weights, [64, 2, 32]"),
        ("encode_groups = lambda self, values, grid: None", "codes have the shape of the weights, [64, 2, 32]"),
    ],
)
def test_levels_and_codes_of_a_method_of_one_weight_are_checked(change: str, message: str, module: Module) -> None:
    head = "from baselines.rtn import RTN\nfrom r2q.quantization.grid import CodebookGrid\n"
    name = module(f"{head}class Mine(RTN):\n    {change}\n")
    method = make_method(Recipe("mine", f"{name}.Mine", "g32"))
    assert isinstance(method, WeightMethod)
    with pytest.raises(ValueError, match=re.escape("recipe mine, layer q_proj: ")) as error:
        method.quantize_weight(torch.randn(64, 64), "q_proj")
    assert message in str(error.value)
