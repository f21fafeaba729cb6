"""LLM-QAT's training (arXiv 2305.17888): full logit distillation on data that the teacher generated, any quantizer.

KL(teacher || student) per token, AdamW, cosine from 2e-5. Its quantizer is the per-row symmetric rule of
``baselines/llm_qat.py`` (granularity `channel`); activations and the key-value cache stay in full precision here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from r2q.training.frame import TrainingMethod
from r2q.training.options import TrainingOptions


class Options(TrainingOptions):
    """Options of LLM-QAT; all but the defaults are shared with the other frames."""

    quantizer: str = "llm_qat"
    learning_rate: float = Field(default=2e-5, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"


class LLMQATMethod(TrainingMethod):
    """Distillation by forward divergence."""

    Options = Options
    needs = "training"
    stochastic = True
