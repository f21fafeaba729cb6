"""Learning rates of the embedded run: the same small grid for every recipe, judged by held-out loss, never by scores.

    python -m benchmarks.learning_rates --config config/embedded.yaml --model mini-llama

trains every recipe of the config that trains, as it is configured, once for each rate of the grid (first seed), on rows
that it makes first if there are none, and writes config/learning_rates.csv: the loss of each frame on rows that were
kept back, after the last step.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import replace
from pathlib import Path

import torch

from r2q import config as configuration
from r2q.models.load import load_full, quiet
from r2q.models.quantize import make_method, units_of
from r2q.models.targets import list_targets
from r2q.training.teacher_data import teacher_data
from r2q.training.trainer import Diverged
from r2q.training.unit import read_training

GRID = (1e-4, 3e-4, 1e-3, 3e-3)
COLUMNS = ("model", "recipe", "learning_rate", "steps", "held_out_loss_start", "held_out_loss", "status", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="config/embedded.yaml")
    parser.add_argument("--model", default="mini-llama")
    parser.add_argument("--recipes", help="only these, separated by commas")
    parser.add_argument("--data", default="results/prepared/training_data.safetensors")
    parser.add_argument("--out", type=Path, default=Path("config/learning_rates.csv"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    config = configuration.load(given.config)
    if not Path(given.data).is_file():
        teacher_data(given.config, given.model, given.data)
    data = read_training(Path(given.data), torch.device("cpu"))
    model = load_full(config.models[given.model].path)
    names = given.recipes.split(",") if given.recipes else config.recipes_of(given.model)
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name in [name for name in names if config.trains(name)]:
            recipe = next(units_of(config, name, given.model))
            for rate in GRID:
                started = time.perf_counter()
                trial = replace(recipe, options=recipe.options | {"learning_rate": rate})
                row = {"model": given.model, "recipe": name, "learning_rate": rate, "steps": recipe.options["steps"]}
                try:
                    notes = make_method(trial).quantize(model, list_targets(model), data).notes["training"]
                    row |= {key: f"{notes[key]:.5f}" for key in ("held_out_loss_start", "held_out_loss")}
                    row["status"] = "ok"
                except Diverged as error:
                    row["status"] = str(error)
                row["seconds"] = round(time.perf_counter() - started, 1)
                writer.writerow(row)
                file.flush()
                print(row, flush=True)


if __name__ == "__main__":
    main()
