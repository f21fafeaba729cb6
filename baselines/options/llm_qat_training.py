"""Options of `baselines/llm_qat_training.py`."""

from typing import Literal

from pydantic import Field

from r2q.training.options import TrainingOptions


class Options(TrainingOptions):
    """Options of LLM-QAT; all but the defaults are shared with the other frames."""

    quantizer: str = "llm_qat"
    learning_rate: float = Field(default=2e-5, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
