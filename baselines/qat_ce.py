"""Plain quantization-aware training: cross entropy on the labels, no teacher. The control for distillation."""

from baselines.options.qat_ce import Options
from r2q.training.frame import TrainingMethod


class PlainMethod(TrainingMethod):
    """Cross entropy through the quantizer."""

    Options = Options
