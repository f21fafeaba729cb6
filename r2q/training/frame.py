"""What every training frame does around the loop: student and teacher, records of drift, the result."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from r2q import records
from r2q.models.targets import Target
from r2q.quantization.method import Method, Quantized, Recipe
from r2q.training.data import TrainingData
from r2q.training.options import TrainingOptions
from r2q.training.processes import Group, spread
from r2q.training.schedule import repeatable
from r2q.training.start import Ranges, Weights
from r2q.training.student import Student, teacher_of
from r2q.training.trainer import Trainer
from r2q.training.watch import Drift


class TrainingMethod(Method):
    """A frame: loss, data, what is trained. The quantizer is an option, so any frame goes with any of them."""

    needs = "training"
    stochastic = True
    # codes stay as the quantizer chose them at the start, and only scales are trained
    scales_only: ClassVar[bool] = False

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.quantizer()  # one that training cannot go by is refused before any work

    def quantize(self, model: torch.nn.Module, targets: Sequence[Any], data: Any) -> Quantized:
        """Train a copy of the model and quantize what came out.

        Raises:
            Diverged: a loss or gradient was not finite.
            ValueError: there is no training data, a group size does not divide, or a weight is not finite.
        """
        if not isinstance(data, TrainingData):
            raise ValueError(f"recipe {self.recipe.name}: method {self.recipe.method} needs training data")
        if self.options.start is not None and data.start is None:
            raise ValueError(f"recipe {self.recipe.name}: start: {self.options.start} is asked for and not given")
        work = partial(self.train, model, list(targets), data)
        if data.processes == 1:
            return work(Group(device=data.device))
        assert data.folder is not None
        return spread(work, data.processes, data.device, data.folder)

    def train(self, model: torch.nn.Module, targets: Sequence[Target], data: TrainingData, group: Group) -> Quantized:
        """What each process of the run does; all of them return the same."""
        options: TrainingOptions = self.options
        with repeatable(options):
            student = self.student(model, targets, data, group)
            teacher = teacher_of(model, options, group)
            trainer = Trainer(student, teacher, options, data, self.recipe.seed, group)
            drift = Drift(model, student)
            drift.measure("before")
            trainer.run()
            drift.measure("after")
        trainer.store.write_csv("drift", records.Drift, drift.rows.values())
        dtypes = {name: p.dtype for name, p in model.named_parameters()}
        other = {name: value.to("cpu", dtypes[name]) for name, value in student.others()}
        return Quantized(student.quantized(), other, {"training": _notes(trainer, data)})

    def student(self, model: Any, targets: Sequence[Target], data: TrainingData, group: Group) -> Student:
        """The copy that is trained."""
        kind = Weights if self.options.start_from == "weights" else Ranges
        start = None if data.start is None or self.options.start is None else kind(data.start)
        return Student(model, targets, self.quantizer(), self.options, group, start, self.scales_only)


def _notes(trainer: Trainer, data: TrainingData) -> dict[str, Any]:
    """What a report says about a training run; JSON values."""
    options = trainer.options
    held_out = [row for row in trainer.rows if row.get("held_out_loss") is not None]
    at_kept = next((row for row in held_out if row["step"] == trainer.kept_step), held_out[-1])
    return {
        "steps": options.steps,
        "tokens": trainer.tokens,
        "processes": data.processes,
        "data": data.kind,
        "data_sha256": data.digest,
        "loss_on": trainer.loss_on,
        "start_agreement": trainer.student.start_agreement,
        "coefficient": None if math.isnan(trainer.gamma) else trainer.gamma,
        "coefficient_from": options.coefficient if options.loss == "cakld" else None,
        "kept": options.keep,
        "kept_step": trainer.kept_step,
        "held_out_loss_start": held_out[0]["held_out_loss"],
        "held_out_loss": at_kept["held_out_loss"],
        "held_out_forward_kl": at_kept["held_out_forward_kl"],
        "held_out_reverse_kl": at_kept["held_out_reverse_kl"],
    }
