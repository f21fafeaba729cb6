"""Options of `baselines/omniquant_lwc.py`."""

from pydantic import Field

from baselines.options._calibrated import GroupedOptions


class Options(GroupedOptions):
    """Options of the training.

    Attributes:
        epochs: passes over the calibration windows, per block.
        batch: windows a step.
        rate: learning rate.
        start: where b_lo and b_hi start.
        aug_loss: also match the full-precision block on the quantized block's inputs.
    """

    epochs: int = Field(default=40, ge=0, le=10**5)
    batch: int = Field(default=1, ge=1, le=10**6)
    rate: float = Field(default=1e-2, gt=0)
    start: float = Field(default=4.0, ge=-20, le=20)
    aug_loss: bool = True
