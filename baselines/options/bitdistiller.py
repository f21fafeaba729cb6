"""Options of `baselines/bitdistiller.py`."""

from r2q.training.options import Loss, TrainingOptions


class Options(TrainingOptions):
    """Options of BitDistiller; all but the defaults are shared with the other frames."""

    loss: Loss = "cakld"
