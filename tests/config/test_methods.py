"""What the config knows of a method is what its class says, whoever wrote it; the shipped ones cost no torch."""

import copy
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from baselines.rtn import RTN
from r2q.cli import main
from r2q.config import (
    FACTS,
    ConfigError,
    built_in_methods,
    forget,
    import_method,
    method_info,
    own_step,
    parse,
)  # fmt: skip
from r2q.kept import ROOT
from r2q.measure import package_of, versions
from r2q.plan.sources import method_code
from r2q.quantization.method import Recipe, WeightMethod, make_method
from tests.config.test_config import GOOD, changed, problems

ONE_FILE = """
import torch
from pydantic import Field
from r2q.config import MethodOptions
from r2q.quantization.grid import CodebookGrid
from r2q.quantization.method import WeightMethod

class Options(MethodOptions):
    power: float = Field(default=2, gt=0)

class Mine(WeightMethod):
    Options = Options
    stochastic = True
    version: int = 3 + 4

    def fit_groups(self, values):
        return CodebookGrid(torch.zeros(*values.shape[:2], 2**self.recipe.bits, dtype=torch.float16))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", built_in_methods())
def test_what_is_read_from_the_source_is_what_the_class_says(name: str) -> None:
    info = method_info(name)
    cls: Any = getattr(importlib.import_module(info.module), info.name)
    assert (info.module, info.name) == (cls.__module__, cls.__name__)
    assert info.options is cls.Options
    assert {fact: getattr(info, fact) for fact in FACTS} == {fact: getattr(cls, fact) for fact in FACTS}
    assert info.weight_method == issubclass(cls, WeightMethod)
    assert info.own_step == (own_step(cls) if info.weight_method else info.own_step)
    assert info.label == name


def test_a_method_in_one_file_with_its_options(folder: Path) -> None:
    (folder / "one_file_method.py").write_text(ONE_FILE)
    info = method_info("one_file_method.Mine")
    assert (info.module, info.name, info.stochastic, info.version) == ("one_file_method", "Mine", True, 7)
    assert info.weight_method
    recipe = {"method": "one_file_method.Mine", "granularity": "g64", "options": {"powr": 3}}
    assert problems(changed("recipes/mine", recipe)) == ["recipes.mine.options.powr: unknown key; nearest valid: power"]
    config = parse(changed("recipes/mine", recipe | {"options": {"power": 3}}), "x.yaml")
    assert config.seeds_of("mine", "small") == [0]
    assert config.resolved()["recipes"]["mine"]["options"] == {"power": 3.0}


def test_what_is_forgotten_of_a_method_is_read_again(folder: Path) -> None:
    """A file, its helper and what is read of its text may be edited while a server, which forks all jobs, lives on."""
    before = set(sys.modules)
    helper, own = folder / "forgotten_helper.py", folder / "forgotten.py"
    helper.write_text("POWER = 2\n")
    own.write_text("from forgotten_helper import POWER\n" + ONE_FILE)
    assert (method_info("forgotten.Mine").version, import_method("forgotten.Mine").__module__) == (7, "forgotten")
    helper.write_text("POWER = 2.5\n")
    own.write_text("from forgotten_helper import POWER\n" + ONE_FILE.replace("3 + 4", "11"))
    forget(before | {"forgotten"})
    assert method_info("forgotten.Mine").stochastic
    assert vars(sys.modules["forgotten"])["POWER"] == 2  # it was there before
    forget(before)
    assert method_info("forgotten.Mine").version == 11
    assert vars(sys.modules["forgotten"])["POWER"] == 2.5
    assert import_method("rtn") is RTN


def test_options_and_facts_that_no_plain_assignment_gives_are_those_of_the_class(folder: Path) -> None:
    (folder / "nested_options.py").write_text(
        "from r2q.config import MethodOptions\nfrom baselines.random_codes import RandomCodes\n"
        "class Mine(RandomCodes):\n    class Options(MethodOptions):\n        rounds: int = 3\n"
        "    if True:\n        stochastic = False\n    version, other = 4, 5\n"
    )
    info = method_info("nested_options.Mine")
    assert info.options.model_validate({"rounds": 5}).model_dump() == {"rounds": 5}
    assert (info.stochastic, info.version) == (False, 4)
    (folder / "decorated.py").write_text(
        "from baselines.rtn import RTN\n\ndef seeded(cls):\n    cls.stochastic = True\n    return cls\n\n"
        "@seeded\nclass Mine(RTN):\n    pass\n\nclass Heir(Mine):\n    version = 2\n"
    )
    assert method_info("decorated.Mine").stochastic
    assert (method_info("decorated.Heir").stochastic, method_info("decorated.Heir").version) == (True, 2)


@pytest.mark.parametrize("how", ["from baselines.rtn import RTN", "import baselines.rtn as other\nRTN = other.RTN"])
def test_a_subclass_of_rtn_is_a_weight_method(folder: Path, how: str) -> None:
    name = f"subclass_{len(how)}"
    (folder / f"{name}.py").write_text(f"{how}\nclass Mine(RTN):\n    version = 5\n")
    info = method_info(f"{name}.Mine")
    assert (info.weight_method, info.version, info.needs) == (True, 5, "weights")
    assert info.options is method_info("rtn").options
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    recipe = Recipe("x", f"{name}.Mine", "g64", options={"clip": "mse"})
    mine, rtn = make_method(recipe), make_method(Recipe("x", "rtn", "g64", options={"clip": "mse"}))
    assert isinstance(mine, WeightMethod)
    assert isinstance(rtn, WeightMethod)
    assert torch.equal(mine.quantize_weight(weight).dequantize(), rtn.quantize_weight(weight).dequantize())
    frame = {"quantizer": f"{name}.Mine", "quantizer_options": {"clip": "mse"}}
    for method in ("gptq", "bitdistiller"):
        filled = method_info(method).options.model_validate(frame).model_dump()["quantizer_options"]
        assert filled == {"clip": "mse", "steps": 81, "smallest": 0.2}


OWN = {
    "a step": "class Mine(RTN):\n    def STEP(self, *given): ...\n",
    "of an ancestor": "class Middle(RTN):\n    STEP = print\nclass Mine(Middle):\n    version = 5\n",
    "unread": "@(lambda cls: cls)\nclass Mine(RTN):\n    def STEP(self, *given): ...\n",
}


@pytest.mark.parametrize("step", ["quantize", "quantize_weight"])
@pytest.mark.parametrize("body", OWN.values(), ids=OWN)
def test_a_quantizer_that_would_not_be_asked_is_refused_with_the_config(folder: Path, body: str, step: str) -> None:
    """Inside another method its levels would stand under its name; by itself it is a recipe like any other."""
    name = f"own_{step}_{abs(hash(body)):x}"
    (folder / f"{name}.py").write_text(f"from baselines.rtn import RTN\n{body.replace('STEP', step)}")
    alone = {"method": f"{name}.Mine", "granularity": "g64"}
    parse(changed("recipes/x", alone), "x.yaml")
    inside = alone | {"method": "gptq", "options": {"quantizer": f"{name}.Mine"}}
    (line,) = problems(changed("recipes/x", inside) | {"calibration": {"path": "c4"}})
    assert line.startswith(f"recipes.x.options.quantizer: {name}.Mine has a {step} of its own, and a method inside")


def test_a_class_two_files_away_and_relative_imports(folder: Path) -> None:
    (folder / "far_package").mkdir()
    (folder / "far_package" / "__init__.py").write_text("")
    (folder / "far_package" / "base.py").write_text(
        "from baselines.bitdistiller import BitDistillerMethod\nclass Base(BitDistillerMethod):\n    pass\n"
    )
    (folder / "far_package" / "mine.py").write_text("from .base import Base\nclass Mine(Base):\n    pass\n")
    info = method_info("far_package.mine.Mine")
    assert (info.needs, info.stochastic, info.weight_method) == ("training", True, False)


MINE = "from baselines.rtn import RTN\nclass Mine(RTN):\n    "


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class Mine(Method)\n    pass\n", "line 1 is not valid Python"),
        ("import nothing_of_this_name\nclass Mine(nothing_of_this_name.Base):\n    pass\n", "cannot be imported"),
        ("class Mine:\n    pass\n", "does not build on r2q.quantization.method.Method"),
        ("from r2q.quantization.method import Method\nx = Method\n", "does not build on|has no class"),
        (f"{MINE}Options = dict\n", "must be a subclass of MethodOptions"),
        (f"{MINE}needs = 'calibraton'\n", "needs of Mine is 'calibraton'; valid: weights, calibration"),
        (f"{MINE}version = '2'\n", "version of Mine is '2', not of type int"),
        ("from baselines.rtn import RTN\nclass Min(RTN):\n    pass\n", "has no class Mine; nearest valid: Min"),
    ],
)
def test_a_method_file_that_breaks_the_rules_is_refused(folder: Path, body: str, message: str) -> None:
    name = f"broken_{abs(hash(body))}"
    (folder / f"{name}.py").write_text(body)
    with pytest.raises(ConfigError, match=message):
        method_info(f"{name}.Mine")


def test_an_option_that_everything_reads_as_a_methods_name_is_refused(folder: Path) -> None:
    (folder / "rounds.py").write_text(
        "from baselines.rtn import RTN\nfrom r2q.config import MethodOptions\n"
        "class Options(MethodOptions):\n    quantizer: str = 'fast'\n"
        "class Mine(RTN):\n    Options = Options\n"
    )
    with pytest.raises(ConfigError, match="an option quantizer is a method's name"):
        method_info("rounds.Mine")


def test_a_method_of_the_working_folder_has_a_key_wherever_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake itself, unlike a verb, does not import from there before a method's options are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "of_here.py").write_text("from baselines.rtn import RTN\n\nclass Mine(RTN):\n    pass\n")
    assert method_info("of_here.Mine").path == tmp_path / "of_here.py"
    assert method_code("of_here.Mine", {}) != method_code("rtn", {})


@pytest.mark.parametrize("method", ["no.such.Method", "baselines.rtn.Nothing", "a b", "os.path.join", ""])
def test_a_name_that_leads_nowhere(method: str) -> None:
    assert problems(changed("recipes/x", {"method": method, "granularity": "g64"}))[0].startswith("recipes.x.method: ")


def test_the_walkthrough_of_the_contributors_guide(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file, its command and its recipes, as they stand in the text, in a working folder of their own."""
    part = (ROOT / "CONTRIBUTING.md").read_text().split("### A codebook method")[1].split("\n## ")[0]
    code, command, recipes = (re.search(rf"```{kind}\n(.*?)```", part, re.S)[1] for kind in ("python", "bash", "yaml"))  # type: ignore[index]
    assert len(code.splitlines()) <= 30
    (folder / "kmeans.py").write_text(code)
    monkeypatch.chdir(folder)
    assert main(shlex.split(command.removeprefix("python -m r2q"))) == 0
    assert "all promises kept" in capsys.readouterr().out
    data = copy.deepcopy(GOOD)
    data["recipes"] |= yaml.safe_load(recipes)["recipes"]
    data["calibration"] = {"path": "owner/text:default:train"}
    config = parse(data, "x.yaml")
    assert config.resolved()["recipes"]["kmeans-g64"]["options"] == {}
    weight = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    method = make_method(Recipe("mine", "kmeans.KMeans", "g64"))
    assert isinstance(method, WeightMethod)
    quantized = method.quantize_weight(weight)
    found = quantized.dequantize()
    for values, decoded in zip(weight.reshape(-1, 64).tolist(), found.reshape(-1, 64).tolist(), strict=True):
        levels = [sum(sorted(values)[i : i + 16]) / 16 for i in range(0, 64, 16)]
        for _ in range(10):
            clusters: list[list[float]] = [[] for _ in levels]
            for value in values:
                clusters[min(range(4), key=lambda j: abs(levels[j] - value))].append(value)
            levels = [sum(c) / len(c) if c else level for c, level in zip(clusters, levels, strict=True)]
        assert all(min(abs(level - x) for level in levels) < 1e-3 for x in decoded)
    gptq = make_method(Recipe("g", "gptq", "g64", options={"quantizer": "kmeans.KMeans"}))
    assert type(gptq.quantizer()).__name__ == "KMeans"


def test_the_version_of_a_methods_package_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lattices").mkdir()
    (tmp_path / "lattices" / "__init__.py").touch()
    info = tmp_path / "more_lattices-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-lattices\nVersion: 1.2\n")
    (info / "top_level.txt").write_text("lattices\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_of("lattices.kmeans") == "more-lattices"
    assert versions("more-lattices")["more-lattices"] == "1.2"
    assert package_of("baselines.rtn") is None
    assert package_of("a_file_of_the_working_folder") is None
