"""End-to-end training of scales alone: EfficientQAT's second phase (E2E-QP, arXiv 2407.11062), for any quantizer.

The quantizer runs once; its codes (and integer zero points) stay, and what it stores in 16 bits is trained through the
whole model on cross entropy: AdamW, 2e-5, gradients clipped at 0.3. The first phase (block by block) is another method.
Everything else in the model stays as it is.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from r2q.training.frame import TrainingMethod
from r2q.training.options import TrainingOptions


class Options(TrainingOptions):
    """Options of the phase; `train` and `gradient` do not apply, the rest is shared with the other frames."""

    loss: Literal["ce", "forward_kl", "reverse_kl", "jsd", "cakld"] = "ce"
    train: Literal["layers"] = "layers"  # type: ignore[assignment]
    gradient: Literal["identity"] = "identity"  # type: ignore[assignment]
    learning_rate: float = Field(default=2e-5, gt=0)
    batch_rows: int = Field(default=32, ge=1)
    max_gradient_norm: float | None = Field(default=0.3, gt=0)


class ScalesMethod(TrainingMethod):
    """Frozen codes, trained scales."""

    Options = Options
    needs = "training"
    stochastic = True
    scales_only = True
