"""Options of `baselines/rtn.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from r2q.config import MethodOptions


class Options(MethodOptions):
    """Options of round to nearest.

    Attributes:
        clip: ``none`` keeps the whole range; ``mse`` searches the range by weight error.
        steps: factors tried, evenly spaced from 1 down to ``smallest``.
        smallest: the smallest factor tried.
    """

    counts_with: ClassVar = {"steps": ("clip", "mse"), "smallest": ("clip", "mse")}
    clip: Literal["none", "mse"] = "none"
    steps: int = Field(default=81, ge=2, le=1000)
    smallest: float = Field(default=0.2, gt=0, lt=1)
