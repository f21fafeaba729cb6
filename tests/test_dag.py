"""What runs, and what runs again, when something changes: by dry runs beside a finished one."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from r2q.config import load
from r2q.intact import sign
from r2q.kept import ROOT, held
from r2q.plan import Plan
from r2q.plan.checks import stale
from r2q.plan.estimate import Estimate
from r2q.plan.jobs import Machine
from tests.configs import full_precision_of
from tests.workflow import Copy

RECIPES = {
    "mini-llama": ["full_precision", "rtn-g64", "r2q-g64", "random_codes-channel"],
    "mini-opt": ["full_precision", "r2q-g64"],
}
AFTERWARDS = {"collect", "controls", "table", "figure", "lattice", "page", "all"}  # and `latency`, which not all have


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


@contextmanager
def moved(file: Path, away: Path) -> Iterator[None]:
    """A file in another folder for as long as the block lasts."""
    shutil.move(file, away / file.name)
    try:
        yield
    finally:
        shutil.move(away / file.name, file)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("fresh"))


@pytest.fixture
def inside(finished: Copy, monkeypatch: pytest.MonkeyPatch) -> Copy:
    """The finished run, looked at from its own folder."""
    monkeypatch.chdir(finished.folder)
    return finished


def to_be_made() -> dict[str, str]:
    """Files of the smoke run in this folder that Snakemake is told to make again, with the reason."""
    return stale(Plan(load("config/smoke.yaml")))


def jobs(verb: str, model: str, *recipes: str) -> set[str]:
    """A verb's jobs on units of a model."""
    return {f"{verb} {model}: {recipe} seed 0" for recipe in recipes}


def both(model: str, *recipes: str) -> set[str]:
    return jobs("quantize", model, *recipes) | jobs("evaluate", model, *recipes)


EVALUATE = {job for model, recipes in RECIPES.items() for job in jobs("evaluate", model, *recipes)}
ALL = EVALUATE | {job for model, recipes in RECIPES.items() for job in jobs("quantize", model, *recipes)}
HQQ = "hqq-g64: {method: hqq, granularity: g64}"
QWEN = "mini-qwen: {path: mini/models/mini-qwen, recipes: [full_precision]}"
# a comment in a source file, before its first import
IMPORT, FROM = (('"""\n\n' + word, f'"""\n\n# changed\n{word}') for word in ("import ", "from "))


@pytest.mark.parametrize("name", ["smoke", "embedded"])
def test_a_fresh_run_has_a_job_per_unit(fresh: Copy, name: str) -> None:
    config = load(ROOT / "config" / f"{name}.yaml")
    planned = fresh.planned(config=name)
    units = [recipe for model in config.models for recipe, _ in config.units(model)]
    trained = sum(map(config.trains, units))
    assert planned.get("train", 0) == trained
    assert planned["quantize"] == len(units) - trained
    assert planned["evaluate"] == len(units)
    assert planned["prepare"] == len(config.models)
    assert planned["world"] == 1
    assert "pretrain" not in planned
    assert planned.keys() >= AFTERWARDS


FULL_SIZE = {
    "paper": {  # 4 models with 30 recipes, of which 7 train, and one with the other 23; only one of 30 sees no text
        "prepare": 5, "check": 5, "calibrate": 5, "teacher_data": 4, "quantize": 4 * 23 + 23, "train": 4 * 7,
        "evaluate": 4 * 30 + 23, "collect": 1, "collect_training": 1, "claims": 1, "lattice": 1, "latency": 1,
        "controls": 1, "table": 1, "page": 1,
        "figure": 3 + 2 * 5 + 2 + 3,  # two frontiers, granularity; two a model; lattice, mechanism; of training
        "all": 1,
    },
    "modern": {  # 4 models with 19 recipes, 4 smaller ones with 3
        "prepare": 8, "check": 8, "calibrate": 8, "reference": 8, "quantize": 4 * 19 + 4 * 3,
        "evaluate": 4 * 19 + 4 * 3, "collect": 1, "lattice": 1, "controls": 1, "table": 1, "page": 1,
        "figure": 3 + 2 * 8 + 2, "all": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_run_has_the_jobs_that_were_counted_by_hand_and_says_what_it_costs(fresh: Copy, name: str) -> None:
    here = ("--config", "device=cpu", "limits={threads: 1}")  # what a machine without a GPU has
    done = fresh.run("--dry-run", *here, config=name)
    assert done.returncode == 0, done.stdout
    stats = done.stdout.split("Job stats:")[1].split("total")[0]
    assert {rule: int(n) for rule, n in re.findall(r"(?m)^(\S+) +(\d+)$", stats)} == FULL_SIZE[name]
    estimate = Estimate(load(ROOT / "config" / f"{name}.yaml"), Machine(1, None, 1))
    estimated = Counter(job.rule for job in estimate.jobs)
    assert estimated == {rule: len(jobs) for rule, jobs in estimate.rules().items()}  # each has its row
    assert estimated == {rule: count for rule, count in FULL_SIZE[name].items() if rule != "all"}
    (said,) = re.findall(r"(?m)^estimate of the whole run: (\d+) units, ", done.stdout)
    assert int(said) == FULL_SIZE[name]["evaluate"]


def test_a_dry_run_says_where_a_size_cannot_be_known_and_goes_on(fresh: Copy) -> None:
    (fresh.folder / "config" / "unknown.yaml").write_text(json.dumps(full_precision_of("unknown", "own/model")))
    done = fresh.run("--dry-run", config="unknown")
    assert done.returncode == 0, done.stdout
    assert "estimate of the whole run: models.tiny.path: the size of own/model cannot be known here" in done.stdout


def test_a_model_that_is_a_gguf_file_has_a_folder_made_first(fresh: Copy) -> None:
    (fresh.folder / "tiny.gguf").write_bytes(b"GGUF")
    (fresh.folder / "text.txt").write_text("text")
    models = {"here": {"path": "./tiny.gguf"}, "packed": {"path": "pypi:tiny==1:tiny.gguf", "sha256": "a" * 64}}
    models["same"] = models["here"] | {"add_bos": True}
    config = full_precision_of("gguf", "", "text.txt") | {"models": models}
    (fresh.folder / "config" / "gguf.yaml").write_text(json.dumps(config))
    planned = fresh.planned(config="gguf")
    assert (planned["source"], planned["prepare"]) == (2, 3)  # two models share a file
    (fresh.folder / "tiny.gguf").unlink()
    done = fresh.run("--dry-run", config="gguf")
    assert "config/gguf.yaml: models.here.path: there is no file ./tiny.gguf" in done.stdout


SLIP = "  rtn-g64: {method: rtn, granularity: g64}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rtn, granularity", "rtn, granulrity", "rtn-g64.granulrity: unknown key; nearest valid: granularity"),
        (SLIP, f"{SLIP}\n{SLIP}", "rtn-g64 stands twice, the second time in line "),
        ("  mini_facts:", "  mini_fact:", "there is no lm-eval task mini_fact; nearest valid: mini_facts"),
        ("mini-llama}", "mini-lama}", "models.mini-llama.path: there is no folder mini/models/mini-lama"),
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


def test_a_machine_that_lacks_what_is_asked_for_stops_the_run(fresh: Copy) -> None:
    """Before the first job; a dry run may be meant for another machine."""
    asked = ("--config", "limits={threads: 1000}")
    done = fresh.run(*asked)
    assert done.returncode == 1
    assert "config/smoke.yaml + --config: limits.threads: 1000, but this machine has " in done.stdout
    assert not list((fresh.folder / "results").rglob("prepared.json"))
    assert fresh.run("--dry-run", *asked).returncode == 0


def test_tables_of_a_finished_run_need_no_machine_that_could_make_it_again(finished: Copy, tmp_path: Path) -> None:
    asked = ("--config", "limits={items: 8, threads: 1000}")
    with moved(finished.path("tables/main.md"), tmp_path):
        done = finished.run(*asked)
        assert done.returncode == 0, done.stdout
        assert finished.path("tables/main.md").read_text() == (tmp_path / "main.md").read_text()
        with moved(finished.path("mini-opt/r2q-g64/seed0/report.json"), tmp_path):
            done = finished.run(*asked)
    assert done.returncode == 1
    assert "limits.threads: 1000, but this machine has" in done.stdout
    assert finished.run().returncode == 0  # as it was


def test_values_can_be_set_on_the_command_line(finished: Copy) -> None:
    done = finished.run("--dry-run", "--config", "limits={itms: 3}")
    assert done.returncode == 1
    assert "config/smoke.yaml + --config: limits.itms: unknown key; nearest valid: items" in done.stdout
    again = ("--config", "limits={batch_size: 32}")
    planned, units = finished.dry(*again)
    assert units == EVALUATE
    assert set(planned) - {"reference"} == {"evaluate"} | AFTERWARDS - {"lattice"}
    timed = finished.planned("--config", "latency={recipes: [r2q-g64], repeats: 4}")
    assert set(timed) == {"latency", "table", "page", "all"}


def test_a_finished_run_has_nothing_to_do_and_says_so(finished: Copy) -> None:
    done = finished.run()
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout


CHANGES: dict[str, tuple[str, str, str, set[str] | None]] = {
    "recipe": ("config/smoke.yaml", SLIP, SLIP.replace("g64}", "g64, lm_head: true}"), both("mini-llama", "rtn-g64")),
    "new recipe": ("config/smoke.yaml", "\ntasks:", f"  {HQQ}\n\ntasks:", both("mini-llama", "hqq-g64")),
    "new model": ("config/smoke.yaml", "models:", f"models:\n  {QWEN}", both("mini-qwen", "full_precision")),
    "task": ("config/smoke.yaml", "  mini_facts:", "  mini_facts: {metric: acc_norm}", EVALUATE),
    # random_codes builds on rtn
    "method": ("baselines/rtn.py", *IMPORT, both("mini-llama", "rtn-g64", "random_codes-channel")),
    "r2q": ("r2q/quantization/residual.py", *FROM, ALL),
    "evaluation": ("r2q/evaluation/chance.py", *IMPORT, EVALUATE),
    "tokens": ("r2q/tokens.py", *FROM, ALL),  # prepare encodes, too
    "files": ("r2q/files.py", *IMPORT, EVALUATE),
    "report": ("r2q/report/tables/summary.py", *IMPORT, set()),
    "other method": ("baselines/hqq.py", *IMPORT, None),  # no recipe uses it
}


@pytest.mark.parametrize(("name", "old", "new", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_runs_again_what_depends_on_it(
    finished: Copy, name: str, old: str, new: str, expected: set[str] | None
) -> None:
    with changed(finished, name, old, new):
        planned, units = finished.dry()
    assert units == (expected or set())
    if expected is None:
        assert planned == {}
    else:
        rest = set(planned) - {"quantize", "evaluate", "prepare", "check", "reference"}
        only_scores = set() if expected - EVALUATE else {"lattice"}  # it reads packed weights
        assert rest - {"latency"} == AFTERWARDS - only_scores
        assert ("latency" in rest) == any(job.startswith("quantize") and "r2q-g64" in job for job in expected)


FIDELITY = (
    "fidelity: {path: results/prepared/mini/tasks/mini_text.jsonl, separator: <|endoftext|>, window: 128, windows: 2"
)


def test_a_run_that_came_without_snakemakes_records_is_known_by_its_own(finished: Copy, tmp_path: Path) -> None:
    """A folder of results that was copied or moved: what was changed since had been taken for what was there."""
    with moved(finished.folder / ".snakemake", tmp_path):
        planned, units = finished.dry()
        assert (set(planned), units) == (AFTERWARDS | {"latency"}, set())
        with changed(finished, "config/smoke.yaml", SLIP, SLIP.replace("g64}", "g64, lm_head: true}")):
            assert finished.units() == both("mini-llama", "rtn-g64")
        with changed(finished, "config/smoke.yaml", FIDELITY, FIDELITY.replace("windows: 2", "windows: 1")):
            planned, units = finished.dry()
            assert (planned["reference"], units) == (2, EVALUATE)
        with changed(finished, "config/smoke.yaml", "path: mini/models/mini-opt", "path: ./mini/models/mini-opt"):
            planned, units = finished.dry()
            assert (planned["prepare"], units) == (1, both("mini-opt", *RECIPES["mini-opt"]))
        shutil.rmtree(finished.folder / ".snakemake")  # the dry runs' own


def test_what_was_touched_is_no_result_of_the_config(finished: Copy) -> None:
    """`--touch`, like `--rerun-triggers mtime`, has Snakemake take what is there for what is asked."""
    with changed(finished, "config/smoke.yaml", SLIP, SLIP.replace("g64}", "g64, lm_head: true}")):
        assert finished.run("--touch").returncode == 0
        assert finished.units() == both("mini-llama", "rtn-g64")
    assert finished.run("--touch").returncode == 0
    assert finished.planned() == {}


def test_a_changed_model_runs_again_and_no_other(finished: Copy) -> None:
    file = finished.folder / "mini/models/mini-opt/generation_config.json"
    before, times = file.read_text(), file.stat()
    file.write_text(before + "\n")
    try:
        units = finished.units()
    finally:
        file.write_text(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        again = finished.run()  # the time of change cannot be set back
    assert units == both("mini-opt", *RECIPES["mini-opt"])
    assert again.returncode == 0
    assert again.stdout.count(": kept") == 2 * len(RECIPES["mini-opt"])


def test_what_no_one_reads_is_no_input(finished: Copy) -> None:
    """Notes beside a model, and a link that leads nowhere."""
    folder = finished.folder / "mini/models/mini-opt"
    (folder / "NOTES.md").write_text("mine")
    (folder / "model-00002-of-00002.safetensors").symlink_to(folder / "gone")
    try:
        assert finished.planned() == {}
    finally:
        (folder / "NOTES.md").unlink()
        (folder / "model-00002-of-00002.safetensors").unlink()


DERIVED = ["scores.csv", "layers.csv", "items.csv", "provenance.json", "collected.sha256", "tables/main.md"]
DERIVED += ["lattice.csv", "latency.csv", "mini-opt/prepared.json", "../prepared/mini/tasks/mini_facts.jsonl"]
DERIVED += ["../../figures/smoke/granularity.svg"]
EDITED = {  # and the manifests that say so
    "scores.csv": "results/smoke/collected",
    "lattice.csv": "results/smoke/lattice",
    "latency.csv": "results/smoke/latency",
    "report.html": "results/smoke/report",
    "tables/main.csv": "results/smoke/tables/tables",
    "../../figures/smoke/frontier-bits.csv": "figures/smoke/frontier-bits",
}
RECORDS = {  # of a model, and the rules that make them again
    "prepared.json": "prepare",
    "r2q-g64/seed0/report.json": "quantize",
    "r2q-g64/seed0/evaluation.json": "evaluate",
}
OF_A_UNIT = ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "report.json"]
SCORED = ["evaluation.json", "lm_eval.json", "items.json"]


@pytest.mark.parametrize("name", DERIVED)
def test_a_derived_file_that_was_deleted_comes_back(finished: Copy, name: str, tmp_path: Path) -> None:
    with moved(finished.path(name), tmp_path):
        planned, units = finished.dry()
    assert set(planned) - {"all"}
    assert units == set() or "mini_facts" in name or "prepared" in name  # what follows is planned, and then kept


@pytest.mark.parametrize("name", [*OF_A_UNIT, *SCORED])
def test_a_file_of_a_unit_that_was_deleted_comes_back(finished: Copy, name: str, tmp_path: Path) -> None:
    with moved(finished.path(f"mini-opt/r2q-g64/seed0/{name}"), tmp_path):
        expected = both("mini-opt", "r2q-g64") if name in OF_A_UNIT else jobs("evaluate", "mini-opt", "r2q-g64")
        assert finished.units() == expected


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_named_and_made_again(finished: Copy, name: str, tmp_path: Path) -> None:
    file = finished.path(f"mini-opt/{name}")
    with moved(file, tmp_path):
        file.write_text("{}")
        done = finished.run("--dry-run")
    assert done.returncode == 0, done.stdout
    assert f"results/smoke/mini-opt/{name}: damaged" in done.stdout
    assert f": {RECORDS[name]} mini-opt" in done.stdout
    assert not re.search(r": (prepare|quantize|evaluate) mini-llama", done.stdout)


@pytest.mark.parametrize("damage", ["", "{", "{}", "[]", "null"])
@pytest.mark.parametrize("name", RECORDS)
def test_so_is_whatever_its_damage(inside: Copy, name: str, damage: str, tmp_path: Path) -> None:
    with moved(inside.path(f"mini-opt/{name}"), tmp_path):
        inside.path(f"mini-opt/{name}").write_text(damage)
        ((file, reason),) = to_be_made().items()
    assert file == f"results/smoke/mini-opt/{name}"
    assert reason.startswith(f"{file}: damaged")


def test_a_failure_whose_cause_may_be_gone_is_tried_again_and_no_other(finished: Copy, tmp_path: Path) -> None:
    file = finished.path("mini-opt/r2q-g64/seed0/report.json")
    failed = json.loads(file.read_text()) | {"status": "failed", "reason": "no library", "files": {}}
    with moved(file, tmp_path):
        failed |= {"digest": ""}
        file.write_text(json.dumps(failed | {"retry": True}))
        done, units = finished.run("--dry-run"), finished.units()
        file.write_text(json.dumps(failed))
        os.utime(file, ns=(tmp_path.stat().st_mtime_ns, (tmp_path / "report.json").stat().st_mtime_ns))
        final = finished.units()
    assert units == both("mini-opt", "r2q-g64")
    assert "mini-opt/r2q-g64/seed0: failed before (no library); tried again" in done.stdout
    assert both("mini-opt", "r2q-g64") & final <= jobs("evaluate", "mini-opt", "r2q-g64")


def edit(file: Path) -> None:
    """Another digit in the place of one."""
    text = file.read_text()
    place = next(i for i, letter in enumerate(text) if i > len(text) // 3 and letter.isdigit())
    file.write_text(f"{text[:place]}{9 - int(text[place])}{text[place + 1 :]}")


def test_edited_files_that_were_made_of_records_are_made_again(finished: Copy, tmp_path: Path) -> None:
    with ExitStack() as stack:
        for number, name in enumerate(EDITED):
            before = finished.path(name).read_text()
            (tmp_path / str(number)).mkdir()
            stack.enter_context(moved(finished.path(name), tmp_path / str(number)))
            finished.path(name).write_text(before)
        assert finished.planned() == {}
        for name in EDITED:
            edit(finished.path(name))
        done = finished.run("--dry-run")
    for manifest in EDITED.values():
        assert f"{manifest}.sha256: the files are not what was written; made again" in done.stdout
    assert "Job stats" in done.stdout


@pytest.mark.parametrize("name", [*OF_A_UNIT[1:], *SCORED])
def test_an_edit_of_the_same_length_in_a_unit_is_noticed(inside: Copy, name: str, tmp_path: Path) -> None:
    file = inside.path(f"mini-opt/r2q-g64/seed0/{name}")
    before = file.read_text()
    with moved(file, tmp_path):
        file.write_text(before)
        edit(file)
        record = "report.json" if name in OF_A_UNIT else "evaluation.json"
        assert [*to_be_made()] == [f"results/smoke/mini-opt/r2q-g64/seed0/{record}"]


def test_a_run_shows_nothing_that_it_had_by_another_config(finished: Copy, tmp_path: Path) -> None:
    """Figures of a model, times and claims that are no longer asked for stood on the page. What is no figure stays."""
    copy = Copy(tmp_path / "copy", of=finished.folder)
    for folder in ("results/smoke", "figures/smoke"):
        shutil.copytree(finished.folder / folder, copy.folder / folder)
    assert "Latency and memory" in copy.path("report.html").read_text()
    figures, left = copy.folder / "figures/smoke", ["latency.csv", "latency.sha256", "tables/claims.csv"]
    for ending in ("png", "svg", "csv"):
        shutil.copy(figures / f"tasks-mini-opt.{ending}", figures / f"tasks-gone.{ending}")
    sign(figures / "tasks-gone.sha256", [figures / f"tasks-gone.{ending}" for ending in ("png", "svg", "csv")])
    copy.path("tables/claims.csv").write_text("claim\n")
    sign(copy.path("tables/claims.sha256"), [copy.path("tables/claims.csv")])
    own = [figures / "mine.svg", copy.path("bench.csv"), copy.path("bench.sha256")]
    for file in own:
        file.write_text("mine")
    done = copy.run("--config", "latency=null", "--allowed-rules", "page", "--force", "results/smoke/report.html")
    assert done.returncode == 0, done.stdout
    assert "tasks-gone.svg" in done.stdout
    assert not [name for name in left if copy.path(name).exists()]
    assert not list(figures.glob("tasks-gone.*"))
    page = copy.path("report.html").read_text()
    assert "Latency and memory" not in page
    assert page.count("<figure") == finished.path("report.html").read_text().count("<figure")
    assert all(file.read_text() == "mine" for file in own)


def test_braces_in_free_text_are_text(fresh: Copy) -> None:
    models = fresh.folder / "my {models}"
    models.mkdir()
    shutil.copytree(fresh.folder / "mini/models/mini-opt", models / "{x}")
    (fresh.folder / "{t}.txt").write_text("a text {y}")
    text = (fresh.folder / "config/smoke.yaml").read_text()
    text = text.replace("mini/models/mini-opt", "'my {models}/{x}'").replace("run: smoke", "run: braces")
    text = text.replace("separator: <|endoftext|>", "separator: '{x} {{y'")
    text = text.replace("perplexity:", "perplexity:\n  mine: {path: '{t}.txt', separator: '{input}', window: 4}")
    (fresh.folder / "config/braces.yaml").write_text(text)
    planned = fresh.planned(config="braces")
    assert planned["quantize"] == 6


def test_another_file_in_the_place_of_an_input_counts_also_where_it_is_older(fresh: Copy, tmp_path: Path) -> None:
    """As `mv`, `cp -p`, `rsync -t` and archives leave them: Snakemake itself looks for newer files alone."""
    text = fresh.folder / "book.txt"
    text.write_text("the first book " * 40)
    config = full_precision_of("book", "mini/models/mini-opt", "book.txt")
    (fresh.folder / "config/book.yaml").write_text(yaml.safe_dump(config))
    record = "results/book/tiny/full_precision/seed0/evaluation.json"

    def value() -> float:
        done = fresh.run("--cores", "1", "--", record, config="book")
        assert done.returncode == 0, done.stdout
        return json.loads((fresh.folder / record).read_text())["scores"][0]["value"]

    first = value()
    text.replace(tmp_path / "first.txt")
    other = tmp_path / "other.txt"
    other.write_text("another one, quite as long " * 40)
    os.utime(other, (1, 1))
    other.replace(text)
    assert fresh.planned("--", record, config="book") == {"evaluate": 1}
    assert value() != first
    (tmp_path / "first.txt").replace(text)
    assert value() == first


def test_it_works_from_another_folder(tmp_path: Path) -> None:
    done = Copy(tmp_path / "copy")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for snakefile in ("Snakefile", "workflow/Snakefile"):
        config = ("--configfile", str(done.folder / "config/smoke.yaml"))
        command = [sys.executable, "-m", "snakemake", "-s", str(done.folder / snakefile), "--cores", "1"]
        for where, more in ((elsewhere, []), (tmp_path, ["--directory", str(elsewhere)])):
            ran = subprocess.run(
                [*command, *more, *config, "--", "results/smoke/mini-opt/r2q-g64/seed0/evaluation.json"],
                cwd=where, env=done.environment | {"PYTHONPATH": ""}, capture_output=True, text=True,
            )  # fmt: skip
            assert ran.returncode == 0, ran.stderr
    assert (elsewhere / "results/smoke/mini-opt/r2q-g64/seed0/evaluation.json").is_file()


MODULE = """
module r2q:
    snakefile: "{root}/workflow/Snakefile"
    config: config["r2q"]

use rule * from r2q as r2q_*

use rule quantize from r2q as r2q_quantize with:
    priority: 1

onstart:
    print("theirs")

rule served:
    shell: 'test -S "$R2Q_SERVER"'

rule everything:
    default_target: True
    input: rules.r2q_all.input
"""


def write_workflow(folder: Path, configs: dict[str, Any], text: str) -> None:
    """A workflow of somebody else's in a folder, with the configs of its modules."""
    (folder / "config.yaml").write_text(yaml.safe_dump(configs))
    (folder / "Snakefile").write_text('configfile: "config.yaml"\n' + text)


def beside(copy: Copy, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the workflow of another folder, which has that of the copy as a module."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    return subprocess.run(command, cwd=folder, env=copy.environment, capture_output=True, text=True)


@pytest.fixture
def smoke(fresh: Copy) -> dict[str, Any]:
    return yaml.safe_load((fresh.folder / "config/smoke.yaml").read_text())


def test_it_works_as_a_module_of_another_workflow(fresh: Copy, smoke: dict[str, Any], tmp_path: Path) -> None:
    write_workflow(tmp_path, {"r2q": smoke, "theirs": 1}, MODULE.replace("{root}", str(fresh.folder)))
    done = beside(fresh, tmp_path, "--dry-run", "--config", "theirs=2")
    assert done.returncode == 0, done.stderr
    assert "r2q_quantize" in done.stdout + done.stderr
    assert not (tmp_path / "results").exists()
    report = "results/smoke/mini-opt/full_precision/seed0/report.json"
    done = beside(fresh, tmp_path, "--config", "theirs=2", "--", report)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / report).is_file()
    for more in ([], ["--no-hooks"]):
        done = beside(fresh, tmp_path, *more, "--", "served")
        assert done.returncode == 0, done.stderr
        assert ("theirs" in done.stdout) == (not more)


@pytest.mark.parametrize("moved", ['prefix: "sub"', 'replace_prefix: {"results/": "results/sub/"}'])
def test_a_module_may_not_move_outputs(fresh: Copy, smoke: dict[str, Any], tmp_path: Path, moved: str) -> None:
    """Tables would have been looked for where they are not, after all units were made."""
    module = MODULE.replace("{root}", str(fresh.folder)).replace('config["r2q"]', f'config["r2q"]\n    {moved}')
    write_workflow(tmp_path, {"r2q": smoke}, module)
    done = beside(fresh, tmp_path, "--dry-run")
    assert done.returncode == 1
    assert "prefix and replace_prefix of a module: a run has results/<run>" in done.stdout + done.stderr


def test_two_runs_as_modules_of_one_workflow(fresh: Copy, smoke: dict[str, Any], tmp_path: Path) -> None:
    text = ""
    for name, without in (("one", ""), ("two", "exclude world, pretrain ")):
        text += f'module {name}:\n    snakefile: "{fresh.folder}/workflow/Snakefile"\n    config: config["{name}"]\n\n'
        text += f"use rule * from {name} {without}as {name}_*\n\n"
    write_workflow(tmp_path, {name: smoke | {"run": name} for name in ("one", "two")}, text)
    targets = ["results/prepared/mini/world.json"]
    targets += [f"results/{name}/mini-opt/checked.json" for name in ("one", "two")]
    done = beside(fresh, tmp_path, "--", *targets)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / target).is_file() for target in targets)


def test_a_module_says_what_this_machine_lacks_for_training(fresh: Copy, smoke: dict[str, Any], tmp_path: Path) -> None:
    smoke["recipes"] |= {"qat": {"method": "qat_ce", "granularity": "g64", "options": {"quantizer": "rtn"}}}
    smoke["training"] = {"texts": [{"path": "results/prepared/mini/train.txt", "rows": 256}], "length": 32}
    smoke["limits"] |= {"training_processes": 64}
    write_workflow(tmp_path, {"r2q": smoke | {"device": "cpu"}}, MODULE.replace("{root}", str(fresh.folder)))
    done = beside(fresh, tmp_path)
    assert done.returncode == 1
    assert "the config of the module: limits.training_processes: 64, but this machine has" in done.stderr


def test_what_two_runs_share_is_made_by_one_of_them(fresh: Copy) -> None:
    """Snakemake deletes a job's outputs before it starts: under another run that has just made them and reads them."""
    with held(fresh.folder / "results/prepared/mini.made"):
        done = fresh.run("--forcerun", "world")
        assert done.returncode == 1
        assert "another snakemake makes results/prepared/mini, which this run needs, too" in done.stdout
        assert "Traceback" not in done.stdout
        assert fresh.run("--cores", "1", "--", "results/smoke/mini-opt/prepared.json").returncode == 0


def test_without_hooks_jobs_read_the_config_of_this_run(fresh: Copy) -> None:
    asked = ("--config", "run=hooked", "--", "results/hooked/mini-opt/prepared.json")
    done = fresh.run("--no-hooks", "--cores", "1", *asked)
    assert done.returncode == 0, done.stdout


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


@pytest.mark.parametrize("name", ["snakemake", "mini-opt/r2q-g64/seed0"])
def test_a_run_beside_another_or_beside_jobs_that_outlived_one_is_refused(finished: Copy, name: str) -> None:
    with held(finished.path(name)):
        done = finished.run("--forcerun", "table")
    assert done.returncode == 1
    assert "another snakemake is at work on results/smoke, or jobs of one that was killed" in done.stdout
    assert f"process {os.getpid()} of {socket.gethostname()} on results/smoke/{name}" in done.stdout


def test_while_a_job_runs_snakemake_does_not_look_for_others(finished: Copy) -> None:
    targets = [str(finished.path(f"{model}/checked.json")) for model in RECIPES]
    relative = [os.path.relpath(target, finished.folder) for target in targets]
    done = finished.run("--forcerun", "check", "--verbose", "--cores", "1", *relative)
    assert done.returncode == 0, done.stdout
    looks = re.findall(r"Ready jobs: (\d+)", done.stdout)
    assert looks == ["2", "1"], done.stdout  # the first job takes seconds: it starts the server


def test_snakemake_needs_a_number_of_cores_or_none(fresh: Copy) -> None:
    """What the README says of `snakemake --cores`: if it works one day, the README may be shorter."""
    done = fresh.run("--cores")
    assert done.returncode == 2
    assert "argument --cores/-c: expected one argument" in done.stdout


def test_every_rule_of_a_job_is_logged() -> None:
    """Each rule with a shell command has log, message and params; none has run: or a lambda."""
    for path in sorted(Path(ROOT / "workflow" / "rules").glob("*.smk")):
        text = path.read_text()
        assert "lambda" not in text
        assert "    run:\n" not in text
        for rule in text.split("\nrule ")[1:]:
            if "shell:" in rule:
                assert all(f"{word}:" in rule for word in ("log", "message", "params")), rule
