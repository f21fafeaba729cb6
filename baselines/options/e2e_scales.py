"""Options of `baselines/e2e_scales.py`."""

from typing import Literal

from pydantic import Field

from r2q.training.options import Loss, TrainingOptions


class Options(TrainingOptions):
    """Options of the phase; `train`, `gradient` and `start` do not apply, the rest is shared with the other frames."""

    loss: Loss = "ce"
    train: Literal["layers"] = "layers"  # type: ignore[assignment]
    start: None = None  # only latent weights have one
    gradient: Literal["identity"] = "identity"  # type: ignore[assignment]
    learning_rate: float = Field(default=2e-5, gt=0)
    batch_rows: int = Field(default=32, ge=1, le=10**6)
    max_gradient_norm: float | None = Field(default=0.3, gt=0)
