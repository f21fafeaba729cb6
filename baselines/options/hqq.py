"""Options of `baselines/hqq.py`."""

from pydantic import Field

from r2q.config import MethodOptions


class Options(MethodOptions):
    """Options of HQQ."""

    p: float = Field(default=0.7, gt=0, le=1)  # norm of the error; 1 is soft thresholding
    beta: float = Field(default=10.0, gt=0, le=1e6)  # weight of the quadratic term, at first
    kappa: float = Field(default=1.01, ge=1, le=10)  # its growth a step
    steps: int = Field(default=20, ge=0, le=1000)  # at most so many steps
