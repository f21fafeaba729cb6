"""Options of `baselines/bitdistiller_clip.py`."""

from typing import Self

from pydantic import Field, model_validator

from baselines.options._calibrated import GroupedOptions


class Options(GroupedOptions):
    """Options of the search."""

    steps: int = Field(default=10, ge=1, le=100)  # factors of each end; the i-th is 1 - i / grid
    grid: int = Field(default=20, ge=1, le=1000)  # divides the unit: the repository's ``n_grid``
    tokens: int = Field(default=512, ge=1, le=10**9)  # inputs that the error is measured on

    @model_validator(mode="after")
    def _check_factors(self) -> Self:
        if self.steps > self.grid:
            raise ValueError(f"steps: {self.steps} are more than grid, {self.grid}: factors below 0")
        return self
