"""R2Q: a reproducible benchmark for 2-bit weight quantization.

Importing this package is light (no torch). It makes `AutoModelForCausalLM.from_pretrained` understand the folders that
`r2q quantize` writes: the quantizer "r2q" is registered as soon as transformers loads its own list of quantizers.
"""

from r2q._hook import after_import

__version__ = "0.1.0"


def _register() -> None:
    import r2q.models.plugin  # noqa: F401  (importing it registers; it may be the importer itself, half-way)


after_import("transformers.quantizers.auto", _register)
