"""R2Q: a reproducible benchmark for 2-bit weight quantization.

Importing this package is light (no torch). It makes `AutoModelForCausalLM.from_pretrained` understand the folders that
`r2q quantize` writes: the quantizer "r2q" is registered as soon as transformers loads its own list of quantizers.
"""

from r2q._hook import after_import

__version__ = "0.1.0"


def _register() -> None:
    from r2q.models.plugin import register

    register()


after_import("transformers.quantizers.auto", _register)
