"""What runs, and what runs again, when something changes: by dry runs beside a finished one."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from r2q.config import load
from r2q.kept import ROOT
from tests.workflow import Copy

EVALUATE = {"evaluate_mini-llama_1", "evaluate_mini-opt_1"}
AFTERWARDS = {"collect", "table", "figure_lattice", "figure_weight_error", "all"}


@contextmanager
def changed(copy: Copy, name: str, old: str, new: str) -> Iterator[None]:
    """A file of the copy with a replacement in it, for as long as the block lasts."""
    file = copy.folder / name
    times = file.stat()
    before = copy.edit(name, old, new)
    try:
        yield
    finally:
        file.write_text(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("fresh"))


@pytest.mark.parametrize("name", ["smoke", "embedded"])
def test_a_fresh_run_has_a_job_per_model_and_batch(fresh: Copy, name: str) -> None:
    config = load(ROOT / "config" / f"{name}.yaml")
    planned = Counter(rule.split("_mini-")[0] for rule in fresh.planned(config=name))
    batches = sum(len(config.batches(model)) for model in config.models)
    trained = sum(config.trains(batch[0]) for model in config.models for batch in config.batches(model))
    assert planned["train"] == trained
    assert planned["quantize"] == batches - trained
    assert planned["evaluate"] == batches
    assert planned["prepare"] == len(config.models)
    assert planned["world"] == 1
    assert "pretrain" not in planned
    assert planned.keys() >= AFTERWARDS


def test_a_model_that_is_a_gguf_file_has_a_folder_made_first(fresh: Copy) -> None:
    (fresh.folder / "tiny.gguf").write_bytes(b"GGUF")
    (fresh.folder / "text.txt").write_text("text")
    models = {"here": {"path": "./tiny.gguf"}, "packed": {"path": "pypi:tiny==1:tiny.gguf", "sha256": "a" * 64}}
    models["same"] = models["here"] | {"add_bos": True}
    recipes, text = {"full_precision": {"method": "full_precision"}}, {"t": {"path": "text.txt"}}
    config = {"run": "gguf", "models": models, "recipes": recipes, "perplexity": text}
    (fresh.folder / "config" / "gguf.yaml").write_text(json.dumps(config))
    planned = fresh.planned("prepare", config="gguf")
    prepares = {f"prepare_{model}": 1 for model in models}
    assert planned == {"source_same": 1, "source_packed": 1, **prepares, "prepare": 1}
    (fresh.folder / "tiny.gguf").unlink()
    done = fresh.run("--dry-run", config="gguf")
    assert "config/gguf.yaml: models.here.path: there is no file ./tiny.gguf" in done.stdout


SLIP = "  rtn-g64: {method: rtn, granularity: g64}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            SLIP,
            "  rtn-g64: {method: rtn, granulrity: g64}",
            "recipes.rtn-g64.granulrity: unknown key; nearest valid: granularity",
        ),
        (SLIP, f"{SLIP}\n{SLIP}", "rtn-g64 stands twice, the second time in line "),
        ("  mini_facts:", "  mini_fact:", "there is no lm-eval task mini_fact; nearest valid: mini_facts"),
        (
            "mini/models/mini-llama}",
            "mini/models/mini-lama}",
            "models.mini-llama.path: there is no folder mini/models/mini-lama",
        ),
    ],
    ids=["key", "twice", "task", "path"],
)
def test_a_typo_stops_the_run_before_the_first_job(finished: Copy, old: str, new: str, message: str) -> None:
    with changed(finished, "config/smoke.yaml", old, new):
        done = finished.run()
    assert done.returncode == 1
    assert "config/smoke.yaml: " in done.stdout
    assert message in done.stdout
    assert "Job stats" not in done.stdout
    assert "Traceback" not in done.stdout


def test_values_can_be_set_on_the_command_line(finished: Copy) -> None:
    done = finished.run("--dry-run", "--config", "limits={itms: 3}")
    assert done.returncode == 1
    assert "config/smoke.yaml + --config: limits.itms: unknown key; nearest valid: items" in done.stdout
    jobs = finished.planned("--config", "limits={batch_size: 32}")
    assert set(jobs) == EVALUATE | AFTERWARDS - {"figure_lattice"}


def test_a_finished_run_has_nothing_to_do_and_says_so(finished: Copy) -> None:
    done = finished.run()
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout


MINI_LLAMA = {"quantize_mini-llama_1", "evaluate_mini-llama_1"}
MINI_OPT = {"quantize_mini-opt_1", "evaluate_mini-opt_1"}


@pytest.mark.parametrize(
    ("name", "old", "new", "jobs"),
    [
        # rtn-g64 is a recipe of mini-llama alone
        ("config/smoke.yaml", SLIP, SLIP.replace("g64}", "g64, lm_head: true}"), MINI_LLAMA),
        # a fifth recipe of mini-llama: a second batch beside the first one
        (
            "config/smoke.yaml",
            "\ntasks:",
            "  hqq-g64: {method: hqq, granularity: g64}\n\ntasks:",
            {"quantize_mini-llama_2", "evaluate_mini-llama_2"},
        ),
        (
            "config/smoke.yaml",
            "models:",
            "models:\n  mini-qwen: {path: mini/models/mini-qwen, recipes: [full_precision]}",
            {"prepare_mini-qwen", "quantize_mini-qwen_1", "evaluate_mini-qwen_1"},
        ),
        (
            "config/smoke.yaml",
            "  mini_facts:",
            "  mini_facts: {metric: acc_norm}",
            EVALUATE,
        ),
        # random_codes builds on rtn: both are recipes of mini-llama alone
        ("baselines/rtn.py", "from __future__", "# changed\nfrom __future__", MINI_LLAMA),
        ("r2q/quantization/residual.py", "from __future__", "# changed\nfrom __future__", MINI_LLAMA | MINI_OPT),
        (
            "r2q/evaluation/chance.py",
            "from __future__",
            "# changed\nfrom __future__",
            EVALUATE,
        ),
        ("r2q/report/table.py", "from __future__", "# changed\nfrom __future__", set()),
        ("baselines/hqq.py", "from __future__", "# changed\nfrom __future__", None),  # no recipe uses it
    ],
    ids=["recipe", "new recipe", "new model", "task", "method", "r2q", "evaluation", "report", "other method"],
)
def test_a_change_runs_again_what_depends_on_it(
    finished: Copy, name: str, old: str, new: str, jobs: set[str] | None
) -> None:
    with changed(finished, name, old, new):
        planned = set(finished.planned())
    if jobs is None:
        assert planned == set()
    elif jobs == EVALUATE:  # the lattice figure depends on packed weights only
        assert planned == jobs | AFTERWARDS - {"figure_lattice"}
    else:
        assert planned == jobs | AFTERWARDS


def test_a_changed_model_runs_again_and_no_other(finished: Copy) -> None:
    file = finished.folder / "mini/models/mini-opt/generation_config.json"
    before, times = file.read_text(), file.stat()
    file.write_text(before + "\n")
    try:
        planned = set(finished.planned())
    finally:
        file.write_text(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert planned == {"prepare_mini-opt"} | MINI_OPT | AFTERWARDS


def test_a_recipe_that_cannot_be_had_of_a_prepared_model_is_refused_at_once(finished: Copy) -> None:
    with changed(finished, "config/smoke.yaml", SLIP, f"{SLIP}\n  rtn-g48: {{method: rtn, granularity: g48}}"):
        done = finished.run()
    assert done.returncode == 1
    assert "recipes.rtn-g48.granularity: group size 48 does not divide" in done.stdout
    assert "Job stats" not in done.stdout


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_an_engine_that_is_not_installed_stops_the_run_where_rows_are_missing(fresh: Copy) -> None:
    wish = ("--dry-run", "--config", "run=made", "training={engine: vllm}")
    done = fresh.run(*wish, config="embedded")
    assert done.returncode == 1
    assert "config/embedded.yaml + --config: training.engine: vllm is not installed in this environment" in done.stdout
    assert "Job stats" not in done.stdout
    assert "Traceback" not in done.stdout
    config = load(ROOT / "config" / "embedded.yaml")
    assert config.training is not None
    made = config.training.model_dump(mode="json") | {"engine": "vllm"}
    for model in config.models:  # written in another environment
        folder = fresh.folder / "results" / "made" / model
        folder.mkdir(parents=True)
        (folder / "training_data.safetensors").touch()
        (folder / "training_data.json").write_text(json.dumps(made))
    assert fresh.run(*wish, config="embedded").returncode == 0
    other = fresh.run(*wish[:-1], "training={engine: vllm, seed: 1}", config="embedded")
    assert other.returncode == 1


def test_a_second_run_beside_the_first_is_refused(finished: Copy) -> None:
    import fcntl

    with finished.path(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = finished.run("--forcerun", "table")
    assert done.returncode == 1
    assert "another snakemake is at work on results/smoke" in done.stdout


def test_snakemake_needs_a_number_of_cores_or_none(fresh: Copy) -> None:
    """What the README says of `snakemake --cores`: if it works one day, the README may be shorter."""
    done = fresh.run("--cores")
    assert done.returncode == 2
    assert "argument --cores/-c: expected one argument" in done.stdout


def test_every_rule_of_a_job_is_logged_and_measured() -> None:
    """Each rule with a shell command has log, benchmark, message and params; none has run: or a lambda."""
    for path in sorted(Path(ROOT / "workflow" / "rules").glob("*.smk")):
        text = path.read_text()
        assert "lambda" not in text
        assert "    run:\n" not in text
        for rule in text.split("\nrule ")[1:] + text.split("    rule:\n")[1:]:
            head = rule.split("\nrule ")[0].split("    rule:\n")[0]
            if "shell:" in head:
                assert all(f"{word}:" in head for word in ("log", "benchmark", "message", "params")), head
