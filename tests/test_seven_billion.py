"""Random models of 7B: their published sizes, and what a run of small ones leaves for the model of costs."""

import csv
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import costs, seven_billion
from r2q import config as configuration
from r2q.models.load import load_full
from r2q.plan import cost
from r2q.prepare import prepare
from r2q.quantize import quantize

# safetensors' totals on the hub
PARAMETERS = {"llama-7b": 6_738_415_616, "opt-6.7b": 6_658_473_984, "qwen3-8b": 8_190_735_360}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_has_as_many_parameters_as_the_published_one(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**seven_billion.shape_of(name)))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small OPT, rounded, in the folder of a run; the working folder is elsewhere."""
    monkeypatch.chdir(tmp_path)
    seven_billion.make("opt-6.7b", small=True)
    text = (seven_billion.MODELS / "opt-6.7b.yaml").read_text()
    for name in ("results/prepared/mini/tasks/mini_text.jsonl", "results/prepared/mini/train.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f'{{"text": "{name}"}}\n')
    folder = Path("results/seven-billion-opt-6.7b")
    folder.mkdir()
    (folder / "config.yaml").write_text(text.replace("threads: 4", "threads: 1") + "device: cpu\n")
    prepare(folder / "config.yaml", folder / "prepared.json", "opt-6.7b")
    unit = folder / "opt-6.7b/rtn-g128/seed0"
    quantize(folder / "config.yaml", folder / "prepared.json", "opt-6.7b", "rtn-g128", 0, unit)
    return folder


def test_its_config_is_of_this_model_alone_and_its_weights_load(run: Path) -> None:
    assert list(configuration.load(run / "config.yaml").models) == ["opt-6.7b"]
    model = load_full(str(seven_billion.MODELS / "opt-6.7b"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_what_was_measured_is_told_beside_the_estimate_and_as_lines_of_costs(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = [line for line in seven_billion.table(run).splitlines() if "rtn-g128" in line]
    assert row.startswith("| quantize opt-6.7b: rtn-g128 seed 0 |")
    lines = list(csv.reader(seven_billion.costs(run).splitlines()))
    assert [line[:2] for line in lines] == [["unit", "opt-6.7b"], ["quantize memory", "opt-6.7b"]]
    Path("costs.csv").write_text(costs.MEASURED.read_text().splitlines()[0] + "\n" + seven_billion.costs(run))
    monkeypatch.setattr(costs, "MEASURED", Path("costs.csv"))
    one, _ = costs.measurements()
    assert one.held_back
    assert 10 < one.predicted(cost.rates()) < 100  # seconds, of the published shape
