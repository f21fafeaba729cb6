"""Options of `baselines/efficientqat_block.py`."""

from pydantic import Field

from baselines.options._calibrated import GroupedOptions


class Options(GroupedOptions):
    """Options of the training.

    Attributes:
        epochs: passes over the calibration windows, per block.
        batch: windows a step.
        rate: learning rate of scales and zero points.
        weight_rate: learning rate of weights.
        final: both rates end at this part of themselves.
    """

    epochs: int = Field(default=2, ge=0, le=10**5)
    batch: int = Field(default=2, ge=1, le=10**6)
    rate: float = Field(default=1e-4, gt=0)
    weight_rate: float = Field(default=2e-5, gt=0)
    final: float = Field(default=0.05, ge=0, le=1)
