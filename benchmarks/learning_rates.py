"""Learning rates of the embedded run: the same small grid for every recipe, judged by held-out loss, never by scores.

    snakemake --cores all
    python -m benchmarks.learning_rates --config config/embedded.yaml --results results/embedded --model mini-llama

trains every recipe of the config that trains, as it is configured, once for each rate of the grid (first seed), on the
run's own rows and from its own packed starts, and writes the loss on rows that were kept back, after the last step.
`--part 4` takes a quarter of the steps. The embedded run takes one rate for a frame, the one of least mean over its
recipes; `--apply` writes the best rate of each recipe into the config, also for those that differ from it in the number
of steps alone (not searched).
"""

import argparse
import csv
import multiprocessing
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from r2q import config as configuration
from r2q.models.devices import pick_device
from r2q.models.load import load_full, quiet
from r2q.models.source import model_folder
from r2q.models.targets import list_targets
from r2q.quantization.method import make_method, recipe_of
from r2q.training.trainer import Diverged
from r2q.training.unit import read_training

GRID = (1e-4, 3e-4, 1e-3, 3e-3)
COLUMNS = ("model", "recipe", "learning_rate", "steps", "held_out_loss_start", "held_out_loss", "status", "seconds")
Trial = tuple[str, str, str, str, float, int]


def train(trial: Trial) -> dict[str, Any]:
    """One recipe at one rate."""
    path, results, name, recipe_name, rate, part = trial
    torch.set_num_threads(1)
    quiet()
    config, folder = configuration.load(path), Path(results) / name
    device = pick_device(config.device)
    recipe = recipe_of(config, recipe_name, config.seeds_of(recipe_name, name)[0])
    start = recipe.options["start"]
    steps, warmup = (max(1, recipe.options[key] // part) for key in ("steps", "warmup_steps"))
    short = {"steps": steps, "warmup_steps": warmup, "evaluate_every": steps, "flips_every": 0, "gradients_every": 0}
    recipe = replace(recipe, options=recipe.options | short | {"learning_rate": rate, "checkpoint_every": 0})
    data = read_training(folder / "training_data.safetensors", device)
    data = replace(data, start=start and folder / start / f"seed{config.seeds_of(start, name)[0]}")
    model = load_full(str(model_folder(config.models[name])))
    row = {"model": name, "recipe": recipe_name, "learning_rate": rate, "steps": steps}
    started = time.perf_counter()
    try:
        notes = make_method(recipe).quantize(model, list_targets(model), data).notes["training"]
        row |= {key: f"{notes[key]:.5f}" for key in ("held_out_loss_start", "held_out_loss")} | {"status": "ok"}
    except Diverged as error:
        row["status"] = str(error)
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="config/embedded.yaml")
    parser.add_argument("--results", default="results/embedded", help="the finished run that has rows and starts")
    parser.add_argument("--model", default="mini-llama")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    parser.add_argument("--grid", type=float, nargs="+", default=GRID)
    parser.add_argument("--part", type=int, default=1, help="the steps are divided by it")
    parser.add_argument("--apply", action="store_true", help="write the best rates into the config")
    parser.add_argument("--out", type=Path, default=Path("config/learning_rates.csv"))
    given = parser.parse_args()
    config = configuration.load(given.config)
    same: dict[str, list[str]] = {}  # recipes that differ in the number of steps alone
    for name in config.recipes_of(given.model):
        if config.trains(name):
            entry = config.recipes[name].model_dump() | {"seeds": None}
            entry["options"] = {k: v for k, v in entry["options"].items() if k not in ("steps", "learning_rate")}
            same.setdefault(repr(entry), []).append(name)
    names = [min(group, key=lambda name: config.recipes[name].options["steps"]) for group in same.values()]
    trials = [(given.config, given.results, given.model, n, rate, given.part) for n in names for rate in given.grid]
    losses: dict[str, list[tuple[float, float]]] = {}
    with given.out.open("w", newline="") as file, multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in pool.imap(train, trials, chunksize=1):
            writer.writerow(row)
            file.flush()
            print(row, flush=True)
            if row["status"] == "ok":
                losses.setdefault(row["recipe"], []).append((float(row["held_out_loss"]), row["learning_rate"]))
    if given.apply:
        text = Path(given.config).read_text()
        for first, group in zip(names, same.values(), strict=True):
            for name in group:
                text = with_rate(text, name, min(losses[first])[1])
        Path(given.config).write_text(text)


def with_rate(text: str, recipe: str, rate: float) -> str:
    """The YAML of a config with another learning rate of a recipe, which has to state one."""
    place = re.compile(rf"(^  {re.escape(recipe)}:.*?learning_rate: )[0-9.e-]+", re.S | re.M)
    if not place.search(text):
        raise ValueError(f"recipe {recipe} states no learning_rate")
    return place.sub(rf"\g<1>{rate:g}", text, count=1)


if __name__ == "__main__":
    main()
