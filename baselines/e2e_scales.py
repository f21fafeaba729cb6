"""End-to-end training of scales alone: EfficientQAT's second phase (E2E-QP, arXiv 2407.11062), for any quantizer.

The quantizer runs once; its codes and zero points stay, and its scales (or a codebook's levels) are trained through the
whole model on cross entropy: AdamW, 2e-5, gradients clipped at 0.3. The first phase (block by block) is another method.
Everything else in the model stays as it is.
"""

from baselines.options.e2e_scales import Options
from r2q.training.frame import TrainingMethod


class ScalesMethod(TrainingMethod):
    """Frozen codes, trained scales."""

    Options = Options
    scales_only = True
