"""What every training frame does around the loop: student and teacher, records of drift, the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from r2q import config as configuration
from r2q.models.targets import Target
from r2q.quantization.method import Method, Quantized, Recipe, WeightMethod
from r2q.training.data import TrainingData
from r2q.training.options import TrainingOptions
from r2q.training.schedule import compute_dtype
from r2q.training.start import clamp_to_levels
from r2q.training.state import DRIFT_COLUMNS
from r2q.training.student import Student, teacher_of
from r2q.training.trainer import Trainer


class TrainingMethod(Method):
    """A frame: loss, data, what is trained. The quantizer is an option, so any frame goes with any of them.

    Attributes:
        scales_only: codes stay as the quantizer chose them at the start, and only scales are trained.
    """

    needs = "training"
    stochastic = True
    scales_only: ClassVar[bool] = False

    def quantizer(self) -> WeightMethod:
        """The method that runs at every step, at the recipe's granularity and bits."""
        recipe, options = self.recipe, self.options
        module, name = configuration.resolve_method(options.quantizer)
        inner = Recipe(
            recipe.name, options.quantizer, recipe.granularity, recipe.bits, recipe.seed, options.quantizer_options
        )
        method = getattr(__import__(module, fromlist=[name]), name)(inner)
        if not isinstance(method, WeightMethod):
            raise ValueError(f"recipe {recipe.name}: quantizer {options.quantizer} is no function of one weight")
        return method

    def quantize(self, model: torch.nn.Module, targets: Sequence[Any], data: Any) -> Quantized:
        """Train a copy of the model and quantize what came out.

        Raises:
            Diverged: a loss or gradient was not finite.
            ValueError: there is no training data, a group size does not divide, or a weight is not finite.
        """
        if not isinstance(data, TrainingData):
            raise ValueError(f"recipe {self.recipe.name}: method {self.recipe.method} needs training data")
        options: TrainingOptions = self.options
        latent = getattr(torch, options.latent)
        student = self.student(model, targets, latent, data.device)
        if options.start is not None:
            if data.start is None:
                raise ValueError(f"recipe {self.recipe.name}: start: {options.start} is asked for and not given")
            clamp_to_levels(student, data.start)
        teacher = teacher_of(model, compute_dtype(options, data.device.type), data.device)
        trainer = Trainer(student, teacher, options, data, self.recipe.seed)
        drift = _Drift(model, student)
        drift.measure("before")
        trainer.run()
        drift.measure("after")
        trainer.store.write_csv("drift", DRIFT_COLUMNS, list(drift.rows.values()))
        layers = student.quantized()
        dtypes = {name: p.dtype for name, p in model.named_parameters()}
        other = {name: value.to("cpu", dtypes[name]) for name, value in student.others().items()}
        return Quantized(layers, other, {"training": _notes(trainer, data)})

    def student(self, model: Any, targets: Sequence[Target], dtype: torch.dtype, device: torch.device) -> Student:
        """The copy that is trained."""
        what = "scales" if self.scales_only else self.options.train
        return Student(model, targets, self.quantizer(), what, self.options.gradient, dtype, device)


class _Drift:
    """Mean squared distance of every layer, and of the output head, to full precision."""

    def __init__(self, model: Any, student: Student) -> None:
        self.model, self.student = model, student
        self.rows: dict[str, dict[str, Any]] = {}

    @torch.no_grad()
    def measure(self, when: str) -> None:
        """Fill the columns ``latent_<when>`` and ``quantized_<when>``."""
        full = dict(self.model.named_parameters())
        for name, layer in self.student.layers.items():
            weight = full[name if name in full else f"{name}.{layer.target.parameter}"]
            row = self._row(name, weight)
            row[f"latent_{when}"] = _distance(layer.latent(), weight)
            row[f"quantized_{when}"] = _distance(layer.quantized().dequantize(), weight)
        head, own = self.model.get_output_embeddings(), self.student.model.get_output_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is head)
        if name not in self.student.layers:
            self._row(name, head.weight)[f"latent_{when}"] = _distance(own.weight, head.weight)

    def _row(self, name: str, weight: torch.Tensor) -> dict[str, Any]:
        power = {"layer": name, "weights": weight.numel(), "power": float(weight.float().square().mean())}
        return self.rows.setdefault(name, power)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.to(a.device).float()).square().mean())


def _notes(trainer: Trainer, data: TrainingData) -> dict[str, Any]:
    """What a report says about a training run; JSON values."""
    options = trainer.options
    held_out = [row for row in trainer.rows if row.get("held_out_loss") is not None]
    at_kept = next((row for row in held_out if row["step"] == trainer.kept_step), held_out[-1])
    return {
        "steps": options.steps,
        "tokens": trainer.tokens,
        "data": data.kind,
        "data_sha256": data.digest,
        "loss_on": trainer.loss_on,
        "coefficient": None if math.isnan(trainer.gamma) else trainer.gamma,
        "coefficient_from": options.coefficient if options.loss == "cakld" else None,
        "kept": options.keep,
        "kept_step": trainer.kept_step,
        "held_out_loss_start": held_out[0]["held_out_loss"],
        "held_out_loss": at_kept["held_out_loss"],
        "held_out_forward_kl": at_kept["held_out_forward_kl"],
        "held_out_reverse_kl": at_kept["held_out_reverse_kl"],
    }
