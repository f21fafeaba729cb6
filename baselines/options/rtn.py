"""Options of `baselines/rtn.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from r2q.config import MethodOptions


class Options(MethodOptions):
    """Options of round to nearest."""

    counts_with: ClassVar = {"steps": ("clip", "mse"), "smallest": ("clip", "mse")}
    clip: Literal["none", "mse"] = "none"  # ``none`` keeps the whole range; ``mse`` searches the range by weight error
    steps: int = Field(default=81, ge=2, le=1000)  # factors tried, evenly spaced from 1 down to ``smallest``
    smallest: float = Field(default=0.2, gt=0, lt=1)  # the smallest factor tried
