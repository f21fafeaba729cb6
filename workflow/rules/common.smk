# The plan of the run: all that rules know of units, folders and inputs stands in r2q/plan.

import os
import shlex
import shutil
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")

sys.path.insert(0, str(Path(str(workflow.current_basedir)).parents[1]))  # the packages beside this file come first

from r2q.kept import ROOT  # theirs, or that of an installed r2q where this file came over the network

sys.path.insert(0, str(ROOT))

from mini.tasks import TASKS as MINI_TASKS
from mini.world import MODEL_NAMES as MINI_MODELS
from r2q.kept import source_hash
from r2q.models.source import MADE, SOURCES
from r2q.plan import Plan
from r2q.plan.checks import problems, stale
from r2q.plan.terminal import show_progress, with_any_letter, without_colour
from r2q.plan.snakemake import (
    again,
    checked,
    one_of,
    print_estimate,
    print_logs,
    print_results,
    run_jobs_here,
    start_with_jobs,
    stop_with,
)

run_jobs_here(workflow)
without_colour()
with_any_letter()

WORLD = "results/prepared/mini"
WORLD_FILES = [
    f"{WORLD}/world.json",
    f"{WORLD}/train.txt",
    *[f"{WORLD}/tasks/{task.name}.{ending}" for task in MINI_TASKS for ending in ("yaml", "jsonl")],
]
CONFIG, SOURCE = checked(workflow, config)
PLAN = Plan(CONFIG, made={WORLD: WORLD_FILES})
RESULTS, FIGURES = PLAN.results, PLAN.figures
UNIT = f"{RESULTS}/{{model}}/{{recipe}}/seed{{seed}}"
TRAINED = list(dict.fromkeys(unit.recipe for unit in PLAN.trained))
RUN_CONFIG = f"{RESULTS}/config.yaml"  # for the jobs, with every default; what they depend on of it is their `asked`
# 1 where the heavy jobs use a GPU: the one place that decides it. The profile says how many run at once.
GPU = 0 if CONFIG.device == "cpu" or CONFIG.device == "auto" and shutil.which("nvidia-smi") is None else 1


wildcard_constraints:
    model=one_of(CONFIG.models),
    recipe=one_of(CONFIG.recipes),
    seed="[0-9]+",


def run_folder(wildcards):
    return RESULTS


def figures_folder(wildcards):
    return FIGURES


def published_folder(wildcards):
    """Numbers that others published: of the working folder, else of this repository."""
    here = Path("results/published")
    return str(here if here.is_dir() else ROOT / here)


def published_files(wildcards):
    return sorted(map(str, Path(published_folder(wildcards)).glob("*.csv")))


def folder_of_output(wildcards, output):
    return str(Path(output[0]).parent)


def stem_of_output(wildcards, output):
    return os.path.splitext(output[0])[0]


def models_of_input(wildcards, input):
    return str(Path(input[0]).parents[1])  # <models>/<model>/<file>


def optional_inputs(wildcards, input):
    """Arguments for the inputs that only some recipes or configs have."""
    files = {name: input.get(name, []) for name in ("calibration", "training", "reference")}
    files["start"] = [str(Path(file).parent) for file in input.get("start", [])]
    return " ".join(f"--{name} {shlex.quote(str(found[0]))}" for name, found in files.items() if found)


def stale_outputs(wildcards):
    """No input; asked for inputs, it has Snakemake make again what is there, but damaged or failed for want of a file."""
    again(workflow, PLAN, STALE)
    if workflow.dryrun and not SAID:  # known no sooner
        SAID.append(True)
        print_estimate(workflow, PLAN, bool(GPU))
    return []


STALE = {}
SAID = []  # whether a dry run has said what the run costs
if workflow.is_main_process:
    stop_with(SOURCE, problems(PLAN, [task.name for task in MINI_TASKS]))
    STALE = stale(PLAN)
    start_with_jobs(workflow, PLAN, SOURCE, RUN_CONFIG)
