"""Options of `baselines/efficientqat_block.py`."""

from pydantic import Field

from baselines.options._calibrated import GroupedOptions


class Options(GroupedOptions):
    """Options of the training."""

    epochs: int = Field(default=2, ge=0, le=10**5)  # passes over the calibration windows, per block
    batch: int = Field(default=2, ge=1, le=10**6)  # windows a step
    rate: float = Field(default=1e-4, gt=0)  # learning rate of scales and zero points
    weight_rate: float = Field(default=2e-5, gt=0)  # learning rate of weights
    final: float = Field(default=0.05, ge=0, le=1)  # both rates end at this part of themselves
