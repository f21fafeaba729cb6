"""LLM-QAT's training (arXiv 2305.17888): full logit distillation on data that the teacher generated, any quantizer.

KL(teacher || student) per token, AdamW, cosine from 2e-5. Its quantizer is the per-row symmetric rule of
``baselines/llm_qat.py`` (granularity `channel`); activations and the key-value cache stay in full precision here.
"""

from baselines.options.llm_qat_training import Options
from r2q.training.frame import TrainingMethod


class LLMQATMethod(TrainingMethod):
    """Distillation by forward divergence."""

    Options = Options
