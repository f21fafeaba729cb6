"""Options of `baselines/hqq.py`."""

from pydantic import Field

from r2q.config import MethodOptions


class Options(MethodOptions):
    """Options of HQQ.

    Attributes:
        p: norm of the error; 1 is soft thresholding.
        beta: weight of the quadratic term, at first.
        kappa: its growth a step.
        steps: at most so many steps.
    """

    p: float = Field(default=0.7, gt=0, le=1)
    beta: float = Field(default=10.0, gt=0, le=1e6)
    kappa: float = Field(default=1.01, ge=1, le=10)
    steps: int = Field(default=20, ge=0, le=1000)
