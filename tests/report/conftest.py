"""Hand-made runs: unit folders with the JSON that quantize and evaluate write."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from r2q.report.collect import collect
from tests.report.trained import trained_run

LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"]
GOOD = {  # recipe: (bits per weight, file bytes, accuracy, perplexity, relative error)
    "full-precision": (16.0, 4_000_000, 0.95, 10.0, None),
    "random-codes-g64": (2.28125, 800_000, 0.26, 9e7, 2.0),
    "rtn-g64": (2.28125, 800_000, 0.70, 30.5, 0.25),
    "r2q-g64": (2.5, 830_000, 0.85, 20.25, 0.125),
}
RECIPES: dict[str, dict[str, Any]] = {
    "full-precision": {"method": "full_precision"},
    "r2q-g64": {"method": "r2q", "granularity": "g64"},
    "rtn-g64": {"method": "rtn", "granularity": "g64"},
    "random-codes-g64": {"method": "random_codes", "granularity": "g64"},
}


def write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def score(task: str, metric: str, value: float | None, **changes: Any) -> dict[str, Any]:
    """One entry of an evaluation's `scores`: an accuracy on 400 items of four choices, but for `changes`."""
    record = {"task": task, "metric": metric, "filter": "none", "value": value, "stderr": 0.02, "n": 400}
    record |= {"chance": 0.25, "majority": 0.27, "higher_is_better": True, "in_table": True, "version": "1"}
    return record | changes


def perplexity_score(value: float | None) -> dict[str, Any]:
    return score("mini_text", "word_perplexity", value, stderr=0.5, n=50, chance=None, majority=None,
                 higher_is_better=False)  # fmt: skip


class Run:
    """A config and unit folders under `root`; change a unit before collecting."""

    def __init__(
        self,
        root: Path,
        models: tuple[str, ...] = ("mini-llama", "mini-opt"),
        entries: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> None:
        self.root, self.results, self.config_path = root, root / "results" / "demo", root / "config.yaml"
        self.config: dict[str, Any] = {
            "run": "demo",
            "models": entries or {name: {"path": f"mini/models/{name}"} for name in models},
            "recipes": RECIPES,
            "tasks": {"mini_text": None, "mini_facts": None, "mini_who": None},
        } | config
        root.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(yaml.safe_dump(self.config, sort_keys=False))
        for model in models:
            for recipe in RECIPES:
                self.unit(model, recipe)

    def folder(self, model: str, recipe: str, seed: int = 0) -> Path:
        return self.results / model / recipe / f"seed{seed}"

    def unit(self, model: str, recipe: str, seed: int = 0, shift: float = 0.0) -> None:
        """Write both files of a unit; `shift` is added to the accuracies."""
        bits, size, accuracy, ppl, error = GOOD[recipe]
        entry = RECIPES[recipe]
        hashes = {"weights": f"weights-of-{model}-{recipe}-{seed}", "code": "c0de"}
        layers = [
            {"name": name, "shape": [128, 64], "mse": 1e-4 * (i + 1), "relative_error": error * (1 + i / 10),
             "bits_per_weight": bits, "seconds": 0.01, "status": "ok", "block": i // 2, "kind": name.split(".")[-1],
             "notes": {"clipped": i}}
            for i, name in enumerate(LAYERS)
        ] if error else []  # fmt: skip
        facts = {"quantizer": entry["method"], "label": entry["method"], "kind": "weights",
                 "control": entry["method"] in ("full_precision", "random_codes")}  # fmt: skip
        report = {
            "format_version": 2, "key": "k", "status": "ok", "reason": "", "files": {}, "facts": facts,
            "model": model, "family": "llama",
            "recipe": recipe, "method": entry["method"], "granularity": entry.get("granularity"),
            "group_size": 64 if "granularity" in entry else None, "bits": 2, "seed": seed, "options": {},
            "bits_per_weight": bits, "quantized_weights": 10, "total_parameters": 20, "file_bytes": size,
            "formula_bytes": size, "layers": layers, "seconds": 1.5, "peak_mib": 90.0, "cpu_seconds": 3.5,
            "versions": {"torch": "2.13.0"}, "hashes": {**hashes, "source": f"source-of-{model}"}, "notes": {},
        }  # fmt: skip
        scores = [
            score("mini_who", "acc", accuracy + shift, chance=0.5, majority=0.5),
            score("mini_facts", "acc", accuracy - 0.01 + shift),
            score("mini_facts", "acc_norm", accuracy + shift, in_table=False),
            perplexity_score(ppl),
        ]
        evaluation = {
            "format_version": 2, "key": "k", "status": "ok", "reason": "", "files": {}, "scores": scores,
            "seconds": 7.0, "cpu_seconds": 1.5,
            "task_seconds": {"mini_text": 1.25, "mini_facts": 2.0, "mini_who": 0.5}, "peak_mib": 300.0, "device": "cpu",
            "dtype": "bfloat16", "batch_size": 64, "add_bos": None, "seeds": {"random": 0},
            "versions": {"torch": "2.13.0", "lm_eval": "0.4.13"}, "hashes": {**hashes, "tasks": "7a5c"},
            "truncated": {},
        }  # fmt: skip
        write(self.folder(model, recipe, seed) / "report.json", report)
        write(self.folder(model, recipe, seed) / "evaluation.json", evaluation)

    def change(self, model: str, recipe: str, file: str, seed: int = 0, /, **fields: Any) -> None:
        path = self.folder(model, recipe, seed) / file
        write(path, json.loads(path.read_text()) | fields)

    def fail(self, model: str, recipe: str, reason: str, seed: int = 0, status: str = "failed") -> None:
        """A unit whose quantization failed, or whose training diverged: a report without numbers and nothing else."""
        numbers = ("bits_per_weight", "quantized_weights", "total_parameters", "file_bytes", "formula_bytes")
        self.change(model, recipe, "report.json", seed, status=status, reason=reason, layers=[], hashes={},
                    **dict.fromkeys(numbers))  # fmt: skip
        (self.folder(model, recipe, seed) / "evaluation.json").unlink()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Make a run of its own: `make_run("name", models=(...), **config)`."""
    return lambda name="run", **arguments: Run(tmp_path / name, **arguments)


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    return make_run()


@pytest.fixture
def collected(run: Run) -> Path:
    """The folder of such a run with its CSV files."""
    collect(run.config_path, run.results)
    return run.results


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The folder of a run that trained, before its records are gathered."""
    return trained_run(tmp_path)
