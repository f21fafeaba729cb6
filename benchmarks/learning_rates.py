"""Learning rates of the embedded run: the same small grid for every recipe, judged by held-out loss, never by scores.

    snakemake --cores all
    python -m benchmarks.learning_rates --config config/embedded.yaml --results results/embedded --model mini-llama

trains every recipe of the config that trains, as it is configured, once for each rate of the grid (first seed), on the
run's own rows and from its own packed starts, and writes config/learning_rates.csv: the loss of each frame on rows that
were kept back, after the last step. One rate is taken for a frame: the one of least mean over its recipes.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from r2q import config as configuration
from r2q.models.load import load_full, quiet
from r2q.models.targets import list_targets
from r2q.quantization.method import make_method
from r2q.quantize import recipe_of
from r2q.training.trainer import Diverged
from r2q.training.unit import read_training

GRID = (1e-4, 3e-4, 1e-3, 3e-3)
COLUMNS = ("model", "recipe", "learning_rate", "steps", "held_out_loss_start", "held_out_loss", "status", "seconds")
Trial = tuple[str, str, str, str, float]


def train(trial: Trial) -> dict[str, Any]:
    """One recipe at one rate."""
    path, results, name, recipe_name, rate = trial
    torch.set_num_threads(1)
    quiet()
    config, folder = configuration.load(path), Path(results) / name
    recipe = recipe_of(config, recipe_name, config.seeds_of(recipe_name, name)[0])
    start = recipe.options["start"]
    recipe = replace(recipe, options=recipe.options | {"learning_rate": rate, "flips_every": 0, "gradients_every": 0})
    data = read_training(folder / "training_data.safetensors", torch.device("cpu"))
    data = replace(data, start=start and folder / start / f"seed{config.seeds_of(start, name)[0]}")
    model = load_full(config.models[name].path)
    row = {"model": name, "recipe": recipe_name, "learning_rate": rate, "steps": recipe.options["steps"]}
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
    parser.add_argument("--out", type=Path, default=Path("config/learning_rates.csv"))
    given = parser.parse_args()
    config = configuration.load(given.config)
    names = [name for name in config.recipes_of(given.model) if config.trains(name)]
    trials = [(given.config, given.results, given.model, name, rate) for name in names for rate in GRID]
    with given.out.open("w", newline="") as file, multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in pool.imap(train, trials, chunksize=1):
            writer.writerow(row)
            file.flush()
            print(row, flush=True)


if __name__ == "__main__":
    main()
