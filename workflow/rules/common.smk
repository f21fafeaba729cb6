# Checks the config, then builds every path of a run; the verbs of r2q only ever receive paths.

import fcntl
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version, update_config, validate

min_version("9.27")

sys.path.insert(0, str(workflow.basedir))

from mini.tasks import TASKS as MINI_TASKS
from mini.world import MODEL_NAMES as MINI_MODELS
from r2q import config as r2q_config
from r2q.kept import source_hash, write_atomic
from r2q.models.source import MADE, made_folder
from r2q.prepare import engine_problems, future_paths, missing_paths, recipe_problems, task_problems
from r2q.strict_yaml import read_yaml

# Jobs run in the environment that Snakemake runs in, also when that was not activated.
os.environ.update(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")


def config_source():
    """What the config was read from, for messages."""
    files = [os.path.relpath(path) for path in workflow.configfiles]
    return " + ".join(files + (["--config"] if workflow.config_settings.config else [])) or "config"


def typed(value):
    """Values of --config as YAML means them: Snakemake leaves numbers inside of braces as text."""
    if isinstance(value, dict):
        return {key: typed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [typed(part) for part in value]
    return yaml.safe_load(value) if isinstance(value, str) else value


def checked_config():
    """The config with all its problems found at once; what was given with --config counts, too."""
    update_config(config, typed(dict(workflow.config_settings.config)))
    try:
        for path in workflow.configfiles:
            read_yaml(os.path.relpath(path))  # a key that stands twice is silent in Snakemake's own reading
        return r2q_config.parse(config, source=CONFIG_SOURCE)
    except r2q_config.ConfigError as error:
        raise WorkflowError(f"the config is not valid\n{error}") from None


CONFIG_SOURCE = config_source()
CONFIG = checked_config()
validate(config, "../schemas/config.schema.json", set_default=False)

RESULTS = f"results/{CONFIG.run}"
FIGURE_FOLDER = f"figures/{CONFIG.run}"
RUN_CONFIG = f"{RESULTS}/config.yaml"
WORLD = "results/prepared/mini"
WORLD_FILES = [
    f"{WORLD}/world.json",
    f"{WORLD}/train.txt",
    *[f"{WORLD}/tasks/{task.name}.{ending}" for task in MINI_TASKS for ending in ("yaml", "jsonl")],
]


def gpus_per_job():
    """1 where the heavy jobs use a GPU: the one place that decides it. The profile says how many run at once."""
    return 0 if CONFIG.device == "cpu" or CONFIG.device == "auto" and shutil.which("nvidia-smi") is None else 1


GPU = gpus_per_job()


def hold_lock():
    """Be the only Snakemake at work on this run, for as long as this process lives.

    The profiles switch Snakemake's own lock off: it outlives a kill -9, and then asks for --unlock. The kernel lets go
    of this one whatever happens.
    """
    global LOCK
    Path(RESULTS).mkdir(parents=True, exist_ok=True)
    LOCK = open(f"{RESULTS}/.lock", "w")
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(f"another snakemake is at work on {RESULTS}; wait for it, or stop it first") from None


def write_config():
    """Write the resolved config of the run, which all jobs read; kept untouched while it stays the same."""
    text = yaml.safe_dump(CONFIG.resolved(), sort_keys=False, allow_unicode=True)
    if not Path(RUN_CONFIG).is_file() or Path(RUN_CONFIG).read_text() != text:
        write_atomic(RUN_CONFIG, text)


def log_of(*names):
    return f"{RESULTS}/logs/{'-'.join(names)}.log"


def benchmark_of(*names):
    return f"{RESULTS}/benchmarks/{'-'.join(names)}.tsv"


def folder_of_output(wildcards, output):
    return str(Path(output[0]).parent)


def model_folder(wildcards, output):
    return str(Path(output[0]).parents[2])  # <model>/<recipe>/seed<k>/<file>


def run_folder(wildcards, input):
    return str(Path(input[0]).parents[3])  # <run>/<model>/<recipe>/seed<k>/<file>


def stem_of_output(wildcards, output):
    return os.path.splitext(output[0])[0]


def unit_files(model, recipes, file):
    """`file` of every unit (recipe and seed) of a model, for the recipes named."""
    return [f"{RESULTS}/{model}/{name}/seed{seed}/{file}" for name, seed in CONFIG.units(model) if name in recipes]


def all_unit_files(file):
    return [path for model in CONFIG.models for path in unit_files(model, CONFIG.recipes, file)]


def jobs():
    """(model, number of the batch as text, its recipes) of every heavy job."""
    return [(m, str(n), batch) for m in CONFIG.models for n, batch in enumerate(CONFIG.batches(m), 1)]


def rule_name(verb, *parts):
    return "_".join([verb, *parts])


def prepared_file(model):
    """What is known of a model before any work: family, layers, hash of its weights."""
    return f"{RESULTS}/{model}/prepared.json"


def made_files(model):
    """What the rule `source` writes of a model that comes as a GGUF file; it may write more beside."""
    return [str(made_folder(CONFIG.models[model]) / name) for name in MADE]


def model_state(model):
    """Size, inode and times of what a model is read from: the time of change moves even where the other is set back."""
    entry = CONFIG.models[model]
    files = [entry.path] if entry.kind == "gguf" else [] if entry.is_gguf else model_files(model)
    stats = [(file, os.stat(file)) for file in files]
    return [[file, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns] for file, stat in stats]


def model_files(model):
    """Files of a local model folder: a change of one of them re-runs what was made from it."""
    entry = CONFIG.models[model]
    if entry.is_gguf:
        return made_files(model)
    folder = Path(entry.path)
    return sorted(map(str, folder.glob("*"))) if entry.is_folder and folder.is_dir() else []


def below(path, folder):
    """Whether a path is a folder or stands in it."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def task_data_folders():
    """The folders of `task_data` that the tasks read; all of it where a task's folder is not named like the task."""
    if CONFIG.task_data is None:
        return []
    names = [folder.name for folder in Path(CONFIG.task_data).iterdir() if folder.is_dir()]
    read = {task: [name for name in names if task == name or task.startswith(f"{name}_")] for task in CONFIG.tasks}
    if not all(read.values()):
        return [CONFIG.task_data]
    return sorted({str(Path(CONFIG.task_data) / name) for found in read.values() for name in found})


def task_files():
    """Tasks, their data and all texts, as far as they are local files; the world's come by its rule."""
    texts = [text.path for text in CONFIG.perplexity.values() if text.is_file] + calibration_text() + training_text()
    folders = [*CONFIG.task_include, *task_data_folders()]
    found = {path for path in texts if not below(path, WORLD)}
    for folder in folders:
        if not below(folder, WORLD):
            found.update(str(path) for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
    used = any(below(path, WORLD) for path in folders + texts)
    return sorted(found) + (WORLD_FILES if used else [])


def calibration_file(model):
    """Tokens that the methods of a model's recipes look at."""
    return f"{RESULTS}/{model}/calibration.safetensors"


def calibration_text():
    """The file that calibration tokens are cut from, if it is one; the world's comes by its rule."""
    return [CONFIG.calibration.source] if CONFIG.calibration is not None and CONFIG.calibration.is_file else []


def training_file(model):
    """Rows that a model's recipes train on."""
    return f"{RESULTS}/{model}/training_data.safetensors"


def training_text():
    """The files that training rows come from; the world's comes by its rule."""
    texts = CONFIG.training.texts if CONFIG.training is not None else []
    return [text.path for text in texts if r2q_config.TEXT_FILE.search(text.path)]


def trained(recipes):
    """Those of the recipes that train."""
    return [name for name in recipes if CONFIG.trains(name)]


def verb_of(recipes):
    """What a job does with its recipes, in the names of rules and logs."""
    return "train" if trained(recipes) else "quantize"


def processes_of(recipes):
    """Processes, each with a GPU where there are any, that a job is spread over."""
    return CONFIG.limits.training_processes if trained(recipes) else 1


# Models with a recipe that trains: they need rows.
TEACHERS = [name for name in CONFIG.models if trained(CONFIG.recipes_of(name))]


def starts(recipes):
    """Recipes whose packed weights these recipes start training from."""
    entries = recipe_entries(trained(recipes)).values()
    return [entry["options"]["start"] for entry in entries if entry["options"]["start"] is not None]


def recipe_entries(recipes):
    """Recipes with all their options."""
    resolved = CONFIG.resolved()["recipes"]
    return {name: {**resolved[name], "seeds": None} for name in recipes}  # seeds are in the outputs' names


def asked(**parts):
    """The piece of the config that a job depends on, as one stable line: when it changes, the job runs again."""
    return json.dumps(parts, sort_keys=True)


def method_sources(recipes):
    """Source files of the recipes' methods, and the trainer for those that train."""
    methods = {CONFIG.recipes[name].method for name in recipes}
    methods |= {entry["options"]["quantizer"] for entry in recipe_entries(trained(recipes)).values()}
    trainer = ["r2q/training"] if trained(recipes) else []
    return sorted({str(r2q_config.method_info(method).path) for method in methods}) + trainer


def print_results():
    """What a finished run has to show, on the terminal."""
    scores = Path(RESULTS, "scores.csv")
    if not scores.is_file():  # only a part of the run was asked for
        return
    from r2q.report.render import terminal
    from r2q.report.scores import read_scores
    from r2q.report.summary import summarize

    print(terminal(summarize(read_scores(scores))))
    print(f"scores  {RESULTS}/scores.csv (one row per number), {RESULTS}/layers.csv, {RESULTS}/provenance.json")
    print(f"tables  {RESULTS}/tables/main.md, main.csv, main.tex")
    if TEACHERS:
        print(f"claims  {RESULTS}/tables/claims.md")
    print(f"figures {FIGURE_FOLDER}/")


def print_logs():
    print(f"\nThe run stopped. Each job's log, with warnings and tracebacks, is in {RESULTS}/logs/;")
    print("whatever was finished is kept, and the same command goes on from here.")


def check_before_work():
    """Everything that can be known before the first job: paths, tasks, recipes that cannot be had of a model."""
    if not workflow.is_main_process:
        return
    there = CONFIG
    if not Path(WORLD, "world.json").is_file():  # the first job writes it; what it will hold is known
        names = {task.name for task in MINI_TASKS}
        there = CONFIG.model_copy(
            update={
                "tasks": {name: task for name, task in CONFIG.tasks.items() if name not in names},
                "task_include": [path for path in CONFIG.task_include if not below(path, WORLD)],
                "perplexity": {name: text for name, text in CONFIG.perplexity.items() if not below(text.path, WORLD)},
                "calibration": None,
                "training": None,
            }
        )
    problems = missing_paths(there) + future_paths(there) or task_problems(there)
    # Heavy jobs run in this environment, on a cluster, too: an engine that is missing here is missing there.
    problems += engine_problems(CONFIG, map(training_file, TEACHERS))
    for model in CONFIG.models:
        path = Path(prepared_file(model))
        times = [os.path.getmtime(file) for file in model_files(model) if Path(file).exists()]
        if path.is_file() and path.stat().st_mtime >= max(times, default=0):
            facts = json.loads(path.read_text())["models"][model]
            if [facts["path"], facts["revision"]] == [CONFIG.models[model].path, CONFIG.models[model].revision]:
                problems += recipe_problems(CONFIG, model, facts)
    if problems:
        raise WorkflowError("\n".join([f"{CONFIG_SOURCE}: {problem}" for problem in problems]))


check_before_work()
