"""BitDistiller: self-distillation with CAKLD (arXiv 2402.10631), with any quantizer.

The full-precision model teaches its own quantized copy on text that it generated itself. Defaults are those of the
published training code (``train/train.sh``): AdamW at a constant 8e-6 without decay, 128 rows a step, gradients clipped
at 1, all parameters trained, the last step kept. What differs here: losses are means per token (the code sums over
tokens); latent weights are float32 (`latent: bfloat16` halves them), as are the masters that DeepSpeed, under which the
code runs, keeps of its bfloat16 weights; the learning rate stays a choice.

The published code first shrinks the range of every group by a search on activations and trains from clipped weights.
That start belongs to the min-max quantizer: R2Q's levels are means, not ends of a range, so for R2Q there is none.
`quantizer: rtn, quantizer_options: {clip: mse}` searches the range by weight error at every step instead.
"""

from baselines.options.bitdistiller import Options
from r2q.training.frame import TrainingMethod


class BitDistillerMethod(TrainingMethod):
    """Confidence-aware distillation of a model into its quantized copy."""

    Options = Options
