"""Texts of a config: what is evaluated, what methods calibrate on, what they train on."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from r2q.config.base import PathText, Positive, Section, Seed, Tokens

CALIBRATION_PRESETS = {
    "wikitext2": "Salesforce/wikitext:wikitext-2-raw-v1:train",
    "c4": "allenai/c4:en:c4-train.00000-of-01024.json.gz",
    "pile": "mit-han-lab/pile-val-backup::validation",
}
DOCUMENT_PRESETS = ("c4", "pile")
HUB_TEXT = re.compile(r"^[\w.-]+/[\w.-]+:[\w.-]*:[\w.-]+$")  # owner/name:config:split
TEXT_FILE = re.compile(r"\.(txt|jsonl|parquet)(\.(xz|gz))?$")
TEXT_KINDS = "a .txt, .jsonl or .parquet file (also .xz, .gz) or owner/name:config:split"


class TextSource(Section):
    """Where a text is."""

    path: PathText
    """a .txt, .jsonl or .parquet file (also .xz, .gz), a hub data set `owner/name:config:split`, or one file of it, `owner/name:folder:file.json.gz`"""  # noqa: E501
    field: Annotated[str, Field(min_length=1)] = "text"
    """column that holds it"""

    @property
    def is_file(self) -> bool:
        """Whether `path` means a file here, not a hub data set."""
        return TEXT_FILE.search(self.path) is not None


class JoinedText(TextSource):
    """A text whose documents are joined."""

    separator: str = "\n\n"
    """what stands between joined documents; blank lines as in the GPTQ repository, or a model's own token"""


class Perplexity(JoinedText):
    """Token perplexity on joined windows (GPTQ's convention)."""

    window: Tokens = 2048
    """tokens a window; part of the metric's name, `token_ppl_2048` (GPTQ's definition)"""
    windows: Positive | None = None
    """only the first so many windows; null: all"""


class Fidelity(JoinedText):
    """Distance to the full-precision model on held-out text: KL per token, equal top-1 tokens."""

    window: Tokens = 2048
    """tokens a window"""
    windows: Positive | None = 64
    """only the first so many windows; null: all"""
    top_k: Annotated[int, Field(ge=1, le=2**20)] = 128
    """likeliest tokens of full precision that are told apart, all others are one; exact where there are no others, else a lower bound. 8 bytes each for every token of the text"""  # noqa: E501


class Calibration(JoinedText):
    """Text that methods look at while they quantize. Never the text that is evaluated."""

    path: PathText
    """text for methods that look at some: as for `perplexity`, or a preset: `wikitext2` (its train split), `c4` (first file of its train split), `pile` (the held-out backup split). Never the evaluated text. Was called `source`, which still works"""  # noqa: E501
    lines: bool = False
    """every line of a text is a document; otherwise a .txt file is one"""
    slicing: Literal["auto", "joined", "document"] = "auto"
    """`joined` cuts windows out of all documents joined, `document` takes one out of a random document that is long enough (`get_wikitext2` and `get_c4` of the GPTQ repository); auto: document for c4 and pile, else joined"""  # noqa: E501
    windows: Annotated[int, Field(ge=1, le=10**6)] = 128
    """how many; an eighth as many more (rounded up) are held out to measure output errors on"""
    window: Tokens = 2048
    """tokens a window"""
    seed: Seed = 0
    """of the random places"""
    offload: bool = False
    """keep a block's inputs in main memory instead of the GPU's: a 7B model then calibrates on a 24 GB card"""
    minimum_tokens: Annotated[int, Field(ge=0, le=10**9)] = 256
    """an expert that the router gives fewer tokens than this is shown all of them; recorded"""

    @property
    def cuts_documents(self) -> bool:
        """Whether a window is cut out of one document, not of all joined."""
        return self.slicing == "document" or (self.slicing == "auto" and self.path in DOCUMENT_PRESETS)

    @model_validator(mode="after")
    def _check_separator(self) -> Self:
        if self.cuts_documents and self.separator != type(self).model_fields["separator"].default:
            raise ValueError("separator: counts with slicing: joined alone")
        return self

    @model_validator(mode="before")
    @classmethod
    def _older_name(cls, values: Any) -> Any:
        """`source` was the name of `path`."""
        if isinstance(values, dict) and "source" in values and "path" not in values:
            return {"path" if key == "source" else key: value for key, value in values.items()}
        return values


class Texts(TextSource):
    """Where prompts, texts or supervised pairs come from."""

    path: PathText
    """as for `perplexity`"""
    field: Annotated[str, Field(min_length=1)] = "text"
    """column of the prompt or text; several joined by line breaks: `instruction+input`"""
    response: Annotated[str, Field(min_length=1)] = "response"
    """supervised: column of the response"""
    lines: bool = False
    """each line of a .txt file is a document; else the file is one"""
    rows: Positive
    """how many are drawn"""
    characters: Positive | None = None
    """only the first so many of a document; null: all"""
    minimum_characters: Positive = 1
    """shorter documents are left out"""


class Training(Section):
    """Rows of tokens, made once per model and the same for all of its recipes."""

    counts_with: ClassVar = dict.fromkeys(
        ("engine", "prompt_tokens", "temperature", "top_p", "batch_size"), ("kind", "generated")
    )
    kind: Literal["generated", "text", "supervised"] = "generated"
    """`generated`: the full-precision model continues prompts (BitDistiller, LLM-QAT); `text`: windows of joined text; `supervised`: prompt and response as they are"""  # noqa: E501
    engine: Literal["transformers", "vllm"] = "transformers"
    """generated: `transformers`, or `vllm`, which has to be installed beside this package, in the environment that Snakemake runs in. Tried with vLLM 0.32 built for the CPU and a model of this repository; never yet run on a GPU or with a large model"""  # noqa: E501
    texts: Annotated[list[Texts], Field(min_length=1)]
    """list of sources, mixed"""
    length: Annotated[int, Field(ge=4, le=2**20)] = 1024
    """tokens a row, at most"""
    prompt_tokens: Positive | None = None
    """generated: prompts are cut to so many tokens; null: as long as they are"""
    held_out: Positive = 64
    """rows kept back for the held-out loss"""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.7
    """generated: of sampling; 0 is the likeliest token"""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """generated: sampling from the likeliest tokens that hold so much probability"""
    seed: Seed = 0
    """of the choice of documents, their order, and sampling"""
    batch_size: Annotated[int, Field(ge=1, le=2**16)] = 64
    """generated: prompts at once, of any lengths; moves what is sampled. With vllm a row has a seed of its own, and the batch size moves no more than the engine's arithmetic"""  # noqa: E501

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        if self.temperature == 0 and self.top_p != 1:
            raise ValueError("top_p: counts with a temperature above 0 alone")
        return self

    @property
    def rows(self) -> int | None:
        """Rows to train on, without the held-out ones; None for windows of text, whose number the text decides."""
        return None if self.kind == "text" else sum(texts.rows for texts in self.texts) - self.held_out
