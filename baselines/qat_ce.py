"""Plain quantization-aware training: cross entropy on the labels, no teacher. The control for distillation."""

from __future__ import annotations

from typing import Literal

from r2q.training.frame import TrainingMethod
from r2q.training.options import TrainingOptions


class Options(TrainingOptions):
    """Options of plain training; all but the defaults are shared with the other frames."""

    loss: Literal["ce", "forward_kl", "reverse_kl", "jsd", "cakld"] = "ce"


class PlainMethod(TrainingMethod):
    """Cross entropy through the quantizer."""

    Options = Options
    needs = "training"
    stochastic = True
