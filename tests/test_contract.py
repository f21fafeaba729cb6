"""What every method promises, checked for every recipe that a shipped config names, and at 3 and 4 bits."""

from __future__ import annotations

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
from r2q.quantization.method import Recipe, make_method
from tests.models.tiny import tiny_folder

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
                    options |= {"steps": 2, "batch_rows": 4, "warmup_steps": 0, "start": None, "compiled": False}
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
        ("2", "", "weights stay untouched: quantize_weight changes the weight that it is given"),
        (
            "1",
            "levels = levels * torch.rand(1)",
            "the same seed gives the same bits: the same seed",
        ),
        ("1", "levels = levels.nan_to_num()", "weights that are not finite are refused: no error says 'not finite'"),
    ],
)
def test_a_method_of_another_package_is_checked(
    factor: str, noise: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    module = f"elsewhere_{abs(hash((factor, noise)))}"
    (tmp_path / f"{module}.py").write_text(BROKEN.format(factor=factor, noise=noise))
    monkeypatch.syspath_prepend(tmp_path)
    status = main(["check-method", f"{module}:Broken"])
    assert message in capsys.readouterr().out
    assert status == (0 if message == "all promises kept" else 1)


def test_there_must_be_a_method_to_check(capsys: Any) -> None:
    assert main(["check-method", "baselines.rtn:RTM"]) == 2
    assert main(["check-method", "rtn", "--options", '{"clop": "mse"}']) == 2
    assert "clop" in capsys.readouterr().err
