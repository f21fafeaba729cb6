"""Options of `baselines/omniquant_lwc.py`."""

from pydantic import Field

from baselines.options._calibrated import GroupedOptions


class Options(GroupedOptions):
    """Options of the training."""

    epochs: int = Field(default=40, ge=0, le=10**5)  # passes over the calibration windows, per block
    batch: int = Field(default=1, ge=1, le=10**6)  # windows a step
    rate: float = Field(default=1e-2, gt=0)  # learning rate
    start: float = Field(default=4.0, ge=-20, le=20)  # where b_lo and b_hi start
    aug_loss: bool = True  # also match the full-precision block on the quantized block's inputs
