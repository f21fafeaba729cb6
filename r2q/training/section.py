"""The section `training` of a config: the rows of tokens that recipes with training see. Read without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Texts(_Closed):
    """Where prompts, texts or supervised pairs come from.

    Attributes:
        path: a .txt, .jsonl or .parquet file (also .xz, .gz), or a hub data set `owner/name:config:split`.
        field: column of the prompt or text; several joined by line breaks: `instruction+input`.
        response: column of the response, for supervised rows.
        lines: whether each line of a .txt file is a document; else the file is one.
        rows: how many are drawn.
        characters: only the first so many of a document; null = all.
        minimum_characters: shorter documents are left out.
    """

    path: Annotated[str, Field(min_length=1)]
    field: Annotated[str, Field(min_length=1)] = "text"
    response: Annotated[str, Field(min_length=1)] = "response"
    lines: bool = False
    rows: Positive
    characters: Positive | None = None
    minimum_characters: Positive = 1


class Training(_Closed):
    """Rows of tokens, made once per model and the same for all of its recipes.

    Attributes:
        kind: `generated`: the full-precision model continues prompts (BitDistiller, LLM-QAT); `text`: windows of joined
            text; `supervised`: prompt and response as they are.
        engine: generated only: what runs the model: `transformers`, or `vllm` if it is installed.
        texts: where from; rows of several sources are mixed.
        length: tokens a row, at most.
        prompt_tokens: generated only: prompts are cut to so many tokens; null = as long as they are.
        held_out: rows kept back, for the held-out loss.
        temperature: generated only: of sampling; 0 = the likeliest token.
        top_p: generated only: sampling from the likeliest tokens that hold so much probability.
        seed: of the choice of documents, their order, and sampling.
        batch_size: generated only: prompts at once; moves what is sampled (with vllm, as far as the engine lets it).
    """

    kind: Literal["generated", "text", "supervised"] = "generated"
    engine: Literal["transformers", "vllm"] = "transformers"
    texts: Annotated[list[Texts], Field(min_length=1)]
    length: Annotated[int, Field(ge=4)] = 1024
    prompt_tokens: Positive | None = None
    held_out: Positive = 64
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    batch_size: Positive = 64

    @property
    def uses_vllm(self) -> bool:
        """Whether rows are to be written through vLLM."""
        return self.kind == "generated" and self.engine == "vllm"
