# Checks the config, then builds every path of a run; the verbs of r2q only ever receive paths.

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version, validate

min_version("9.27")

sys.path.insert(0, str(workflow.basedir))

from r2q import config as r2q_config
from r2q.kept import source_hash, write_atomic
from r2q.strict_yaml import read_yaml

# Jobs run in the environment that Snakemake runs in, also when that was not activated.
os.environ.update(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")


def checked_config():
    """The config with all its problems found at once; what was given with --config counts, too."""
    files = [os.path.relpath(path) for path in workflow.configfiles]
    given = ["--config"] if workflow.config_settings.config else []
    try:
        for path in files:
            read_yaml(path)  # a key that stands twice is silent in Snakemake's own reading
        return r2q_config.parse(config, source=" + ".join(files + given) or "config")
    except r2q_config.ConfigError as error:
        raise WorkflowError(f"the config is not valid\n{error}") from None


CONFIG = checked_config()
validate(config, "../schemas/config.schema.json", set_default=False)

RESULTS = f"results/{CONFIG.run}"
FIGURE_FOLDER = f"figures/{CONFIG.run}"
RUN_CONFIG = f"{RESULTS}/config.yaml"
PREPARED = f"{RESULTS}/prepared.json"
WORLD = "results/prepared/mini"


def gpus_per_job():
    """1 where the heavy jobs use a GPU: the one place that decides it. The profile says how many run at once."""
    return 0 if CONFIG.device == "cpu" or CONFIG.device == "auto" and shutil.which("nvidia-smi") is None else 1


GPU = gpus_per_job()


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


def model_files(model):
    """Files of a local model folder: a change of one of them re-runs what was made from it."""
    entry = CONFIG.models[model]
    folder = Path(entry.path)
    return sorted(map(str, folder.glob("*"))) if entry.is_folder and folder.is_dir() else []


def below(path, folder):
    """Whether a path is a folder or stands in it."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def task_files():
    """Tasks, their data and all texts, as far as they are local files; the world's come by its rule."""
    texts = [text.path for text in CONFIG.perplexity.values() if text.is_file] + calibration_text() + training_text()
    folders = [*CONFIG.task_include, *([] if CONFIG.task_data is None else [CONFIG.task_data])]
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


def recipe_entries(recipes):
    """Recipes with all their options, seeds included."""
    resolved = CONFIG.resolved()["recipes"]
    return {name: {**resolved[name], "seeds": CONFIG.seeds_of(name)} for name in recipes}


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
    print(f"figures {FIGURE_FOLDER}/")


def print_logs():
    print(f"\nThe run stopped. Each job's log, with warnings and tracebacks, is in {RESULTS}/logs/;")
    print("whatever was finished is kept, and the same command goes on from here.")
