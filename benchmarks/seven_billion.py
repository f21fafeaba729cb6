"""Models of 7B with random weights through the whole workflow: what every job takes at full size, without a hub.

    python -m benchmarks.seven_billion --make llama-7b
    snakemake --cores all --resources gpu=1 --quiet host --configfile results/prepared/random/llama-7b.yaml
    python -m benchmarks.seven_billion --measured results/seven-billion-llama-7b

and the same for opt-6.7b and qwen3-8b. The first line writes a folder, results/prepared/random/<model>: the published
shape in bfloat16, on the GPU where there is one, with the embedded models' tokenizer, which uses the first ids of the
vocabulary; and beside it the config of this model alone, out of `seven_billion.yaml`: models are run one after another,
and a folder deleted before the next, where the disk has no room for all. The last line prints a table beside what
`r2q estimate` says, and the lines of `costs.csv` that follow from it. `--small` makes two blocks of width 256.
"""

import argparse
import csv
import io
import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.costs import PUBLISHED
from r2q import config as configuration
from r2q.plan import Plan
from r2q.plan.estimate import Estimate, machine
from r2q.plan.shapes import catalogue
from r2q.records import OK, Evaluation, Report, read_json

CONFIG, MODELS = Path(__file__).with_suffix(".yaml"), Path("results/prepared/random")
TOKENIZER = Path(__file__).parents[1] / "mini/models/mini-llama"
SMALL = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 2048}
INNER = {"intermediate_size": 512, "ffn_dim": 512, "num_key_value_heads": 4, "head_dim": 64, "word_embed_proj_dim": 256}
POSITIONS, END, PAD = 2048, 0, 1  # of Llama and OPT; ids of the tokenizer
GIB, MIB = 2**30, 2**20


def shape_of(name: str, small: bool = False) -> dict[str, Any]:
    """What config.json says of a model."""
    shape = catalogue()[PUBLISHED[name]]
    shape = shape | (SMALL | {key: value for key, value in INNER.items() if key in shape} if small else {})
    return shape | {"max_position_embeddings": POSITIONS, "bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD}


def make(name: str, small: bool = False) -> None:
    """Write the folder of a model with random weights, and its config."""
    folder = MODELS / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape_of(name, small)), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="5GB")
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder)
    config = yaml.safe_load(CONFIG.read_text())
    config |= {"run": f"{config['run']}-{name}", "models": {name: config["models"][name]}}
    folder.with_name(f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} G parameters")


def records(run: Path) -> Iterator[tuple[str, Report, Report | Evaluation]]:
    """Rule, report and record of every job of a run that is done."""
    for unit in Plan(configuration.load(run / "config.yaml")).units:
        path = run / unit.path / "report.json"
        if not path.is_file():
            continue
        report, evaluation = read_json(path, Report), path.with_name("evaluation.json")
        yield "train" if "training" in report.notes else "quantize", report, report
        if evaluation.is_file() and report.status == OK:
            yield "evaluate", report, read_json(evaluation, Evaluation)


def step_seconds(run: Path, report: Report) -> float:
    """Median of a training's steps but the first two."""
    path = run / report.model / report.recipe / f"seed{report.seed}" / "training/training.csv"
    with path.open(newline="") as file:
        return statistics.median(float(row["seconds"]) for row in list(csv.DictReader(file))[3:] if row["seconds"])


def table(run: Path) -> str:
    """A line for each job: seconds without start-up, GiB of the GPU and of main memory, and what was estimated."""
    config = configuration.load(run / "config.yaml")
    models = {name: entry.model_copy(update={"path": PUBLISHED[name]}) for name, entry in config.models.items()}
    config = config.model_copy(update={"models": models})  # its folder may be gone
    jobs = {(job.rule, job.what): job for job in Estimate(config, machine(config, 1, 139)).jobs}
    lines = ["| job | seconds | estimated | GPU GiB | estimated | main GiB | estimated |", "|---|" + "---:|" * 6]
    for rule, report, record in records(run):
        name = f"{report.model}: {report.recipe} seed {report.seed}"
        if record.status != OK:
            lines.append(f"| {rule} {name} | {record.status}: {record.reason} |" + " |" * 5)
            continue
        job, gpu = jobs[rule, name], record.gpu_mib or 0.0
        host = (record.peak_mib or 0.0) - gpu
        cells = [
            record.seconds or 0.0,
            job.seconds,
            gpu * MIB / GIB,
            job.gpu_bytes / GIB,
            host * MIB / GIB,
            job.host_bytes / GIB,
        ]
        lines.append(f"| {rule} {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
        if rule == "train":
            lines.append(f"| a step of it | {step_seconds(run, report):.3f} |" + " |" * 5)
    return "\n".join(lines)


def costs(run: Path) -> str:
    """Lines of `costs.csv`, with options as `seven_billion.yaml` has them."""
    config, recipes = configuration.load(run / "config.yaml"), yaml.safe_load(CONFIG.read_text())["recipes"]
    text, (shown,) = config.calibration, config.perplexity.values()
    assert text is not None
    out, evaluated = io.StringIO(), {}
    writer = csv.writer(out, lineterminator="\n")

    def line(kind: str, model: str, settings: dict[str, Any], measured: float, unit: str) -> None:
        source = "NOTES: models of 7B through the workflow"
        told = f"{measured:.{3 if kind == 'step' else 1}f}"  # as in the table
        writer.writerow([kind, model, json.dumps(settings), told, unit, "held back", source])

    for rule, report, record in records(run):
        if record.status != OK:
            continue
        gpu = (record.gpu_mib or 0.0) * MIB / GIB
        options = {"method": report.method} | recipes[report.recipe].get("options", {})
        if rule == "evaluate":
            evaluated[report.model] = max(gpu, evaluated.get(report.model, 0.0))
        elif rule == "train":
            del options["method"]
            line("step", report.model, options, step_seconds(run, report), "s")
            line("train memory", report.model, options, gpu, "GiB")
        elif report.granularity is not None:
            options |= {"windows": text.windows, "window": text.window}
            line("unit", report.model, options, record.seconds or 0.0, "s")
            line("quantize memory", report.model, options, gpu, "GiB")
    for model, gpu in evaluated.items():
        settings = {"batch": config.limits.batch_size, "window": shown.window}
        line("evaluate memory", model, settings, gpu, "GiB")
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", nargs="+", default=[], choices=list(PUBLISHED), metavar="MODEL")
    parser.add_argument("--small", action="store_true", help="not of its published shape, for a look at the workflow")
    parser.add_argument("--measured", type=Path, nargs="+", default=[], help="folders of runs, results/<run>")
    given = parser.parse_args()
    for name in given.make:
        make(name, given.small)
    for run in given.measured:
        print(f"{table(run)}\n\n{costs(run)}")


if __name__ == "__main__":
    main()
