"""Options of `baselines/qat_ce.py`."""

from r2q.training.options import Loss, TrainingOptions


class Options(TrainingOptions):
    """Options of plain training; all but the defaults are shared with the other frames."""

    loss: Loss = "ce"
