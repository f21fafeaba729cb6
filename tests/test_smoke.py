"""The smoke run from end to end: whole, repeated, broken off and resumed, damaged and repaired."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from r2q import cli
from r2q.config import load
from r2q.plan import Plan
from tests.workflow import Copy

FILES = "config.yaml scores.csv layers.csv provenance.json tables/main.csv tables/main.md tables/main.tex report.html"
DRAWN = [
    f"{name}.{ending}"
    for name in ("lattice", "mechanism", "frontier-bytes", "layer_errors-mini-llama", "tasks-mini-opt")
    for ending in ("png", "svg", "csv")
]


def lines(output: str, verb: str) -> list[str]:
    """What the jobs of a verb said of their units."""
    return [line for line in output.splitlines() if line.startswith(f"{verb} ") and "seed" in line]


def test_a_whole_run_leaves_everything_and_shows_the_table(finished: Copy, tmp_path: Path) -> None:
    written = [finished.path(name) for name in FILES.split()]
    drawn = [finished.folder / "figures" / "smoke" / name for name in DRAWN]
    assert not [file for file in written + drawn if file.stat().st_size == 0]
    plan = Plan(load(finished.folder / "config/smoke.yaml"))
    units = [(unit.model, unit.recipe) for unit in plan.units]
    assert len(lines(finished.output, "quantize")) == len(lines(finished.output, "evaluate")) == len(units)
    scores = finished.scores()
    assert {(row["model"], row["recipe"]) for row in scores} == set(units)
    assert {row["status"] for row in scores} == {"ok"}
    assert {row["run"] for row in scores} == {"smoke"}
    provenance = json.loads(finished.path("provenance.json").read_text())
    assert {row["provenance"] for row in scores} <= provenance.keys()
    ends = re.findall(r"(?m)^(\d+) of (\d+) jobs done(, about )?", finished.output)
    planned = Copy(tmp_path / "fresh").planned()
    assert planned["quantize"] == planned["evaluate"] == len(units)
    assert planned["figure"] == len(plan.drawn)
    total = sum(planned.values())
    assert [(int(done), int(of)) for done, of, _ in ends] == [(done, total) for done in range(1, total + 1)]
    assert all(bool(left) == (int(done) < total) for done, _, left in ends)
    assert "Finished jobid" not in finished.output
    shown = finished.output.split(f"{total} of {total} jobs done")[1]
    assert all(
        text in shown
        for text in ("mini-llama", "r2q-g64", "chance", "results/smoke/tables/main", "results/smoke/report.html")
    )
    assert "quantize mini-llama rtn-g64: done in" in finished.output


def test_a_unit_that_was_deleted_comes_back_as_it_was_and_alone(finished: Copy) -> None:
    before = finished.scores()
    shutil.rmtree(finished.path("mini-llama/rtn-g64"))
    done = finished.run()
    assert done.returncode == 0, done.stdout
    (quantized,) = lines(done.stdout, "quantize")
    (evaluated,) = lines(done.stdout, "evaluate")
    assert "mini-llama rtn-g64 seed 0:" in quantized
    assert "mini-llama rtn-g64 seed 0:" in evaluated
    assert finished.scores() == before
    assert finished.planned() == {}


def test_a_run_that_was_killed_goes_on_to_the_same_scores(finished: Copy, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "killed", of=finished.folder)
    for done in [finished.folder / "results" / "prepared", *finished.folder.glob("results/smoke/*/prepared.json")]:
        place = copy.folder / done.relative_to(finished.folder)  # these jobs are over before anything is at stake
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if done.is_dir() else shutil.copy2)(done, place)
    with (tmp_path / "output").open("w") as output:
        run = subprocess.Popen(
            copy.command("--cores", "1"),
            cwd=copy.folder,
            env=copy.environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + 240
    while not list(copy.path("").glob("*/*/*/evaluation.json")):
        assert run.poll() is None, (tmp_path / "output").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not copy.path("scores.csv").exists()
    before = {file: file.read_text() for file in copy.path("").glob("*/*/*/evaluation.json")}
    resumed = copy.run()
    assert resumed.returncode == 0, resumed.stdout
    assert {file: file.read_text() for file in before} == before  # seconds and all: not done twice
    assert copy.scores() == finished.scores()
    for table in ("main.csv", "main.md", "main.tex"):
        assert copy.path(f"tables/{table}").read_text() == finished.path(f"tables/{table}").read_text()
    assert copy.planned() == {}


EXAMPLES = [
    "bench", "check", "collect", "compare", "controls", "evaluate", "export", "figure", "latency", "lattice", "page",
    "prepare", "quantize", "reference", "table",
]  # fmt: skip


def test_examples_of_verbs_do_what_they_say(finished: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--help` has them, of this run in place of the default one."""
    shutil.copytree(finished.folder, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    for verb in EXAMPLES:
        text = str(cli.parser(verb).epilog).replace("\\\n", " ").replace("embedded", "smoke")
        examples = [line.split() for line in text.splitlines() if line.strip().startswith(f"r2q {verb} ")]
        words = next(words for words in examples if "results/reference/smollm2" not in words)
        noise = (0, 1, 3) if verb == "compare" else (0,)
        assert cli.main(words[1:]) in noise, " ".join(words)


@pytest.mark.parametrize("recipe", ["full_precision", "r2q-g64"])
def test_what_is_scored_is_what_a_user_would_load(finished: Copy, recipe: str) -> None:
    """A unit's folder loads with plain transformers after `import r2q`, to the weights that its report hashes."""
    folder = finished.path(f"mini-opt/{recipe}/seed0")
    code = (
        "import r2q, sys\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "print(sum(map(len, (info['missing_keys'], info['unexpected_keys']))))"
    )
    done = subprocess.run(
        [*finished.command()[:1], "-c", code, str(folder)], env=finished.environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "0", done.stderr
