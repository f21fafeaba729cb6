"""Options of `baselines/awq.py`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from baselines.options._calibrated import GroupedOptions


class Options(GroupedOptions):
    """Options of AWQ.

    Attributes:
        exponents: how many r are tried, evenly spaced from 0, below 1; 1 tries r = 0 alone: no scales.
        clip: whether ranges are searched.
        clip_steps: bounds tried; the i-th is 1 - i / clip_grid of the whole.
        clip_grid: divides the unit: the repository's ``n_grid``.
        tokens: inputs that ranges are judged by.
    """

    counts_with: ClassVar = dict.fromkeys(("clip_steps", "clip_grid", "tokens"), ("clip", True))
    exponents: int = Field(default=20, ge=1, le=1000)
    clip: bool = True
    clip_steps: int = Field(default=10, ge=1, le=1000)
    clip_grid: int = Field(default=20, ge=1, le=1000)
    tokens: int = Field(default=512, ge=1, le=10**9)

    @model_validator(mode="after")
    def _check_bounds(self) -> Options:
        if self.clip_steps > self.clip_grid:
            raise ValueError(f"clip_steps: {self.clip_steps} are more than clip_grid, {self.clip_grid}: bounds below 0")
        return self
