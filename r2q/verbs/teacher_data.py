"""make the rows that some recipes train on: the full-precision model's own text, or yours

r2q teacher-data --config results/embedded/config.yaml --prepared results/embedded/mini-llama/prepared.json \\
    --model mini-llama --out results/embedded/mini-llama/training_data.safetensors
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Config, Model, Prepared


def teacher_data(
    config: Config, prepared: Prepared, model: Model, out: Annotated[Path, "FILE", "where the rows go (.safetensors)"]
) -> None:
    from r2q.training.teacher_data import teacher_data

    teacher_data(config, prepared, model, out)
