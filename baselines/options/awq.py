"""Options of `baselines/awq.py`."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from baselines.options._calibrated import GroupedOptions


class Options(GroupedOptions):
    """Options of AWQ."""

    counts_with: ClassVar = dict.fromkeys(("clip_steps", "clip_grid", "tokens"), ("clip", True))
    # how many r are tried, evenly spaced from 0, below 1; 1 tries r = 0 alone: no scales
    exponents: int = Field(default=20, ge=1, le=1000)
    clip: bool = True  # whether ranges are searched
    clip_steps: int = Field(default=10, ge=1, le=1000)  # bounds tried; the i-th is 1 - i / clip_grid of the whole
    clip_grid: int = Field(default=20, ge=1, le=1000)  # divides the unit: the repository's ``n_grid``
    tokens: int = Field(default=512, ge=1, le=10**9)  # inputs that ranges are judged by

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.clip_steps > self.clip_grid:
            raise ValueError(f"clip_steps: {self.clip_steps} are more than clip_grid, {self.clip_grid}: bounds below 0")
        return self
