"""A checkpoint that somebody else quantized, as a row beside ours.

Whatever ``AutoModelForCausalLM.from_pretrained`` reads: GPTQ, AWQ, AQLM, bitsandbytes, compressed-tensors, HQQ, ...
with the library that the format needs, or a plain or a packed folder. Nothing is quantized and nothing is copied: the
unit's folder holds links to the checkpoint's files, which are loaded once to see that they can be, measured, and
evaluated like every other unit. A library that is missing, or a format that this machine cannot run, is a failed row
that says so.

Sizes are those of the files. ``file_bytes`` counts all weight files; ``bits_per_weight`` all stored bits (codes,
scales, zero points, group indices, whatever there is) but those of full-precision parameters that are not quantized
here (embeddings, norms, biases, the head), over the weights of the target layers. It is an average over the checkpoint:
the tensors of other formats are not told apart by layer.

Weight errors are measured where each layer can be run by itself, as it is loaded: its output on the unit vectors is the
weight that it computes with.

    my-gptq: {method: external, options: {path: /data/llama-2-7b-gptq-2bit}}

The checkpoint must be one of the model it stands under: name such a recipe in ``models.<name>.recipes``.
"""

from baselines.options.external import Options
from r2q.quantization.method import CheckpointMethod


class External(CheckpointMethod):
    """Takes a quantized checkpoint as it is."""

    Options = Options

    def checkpoint(self) -> tuple[str, str | None]:
        return self.options.path, self.options.revision
