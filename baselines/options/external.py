"""Options of `baselines/external.py`."""

from __future__ import annotations

from pydantic import Field

from r2q.config import MethodOptions


class Options(MethodOptions):
    """Where the checkpoint is.

    Attributes:
        path: a folder in Hugging Face layout with safetensors, or a hub id ``owner/name``.
        revision: commit, tag or branch of a hub id.
    """

    path: str = Field(min_length=1)
    revision: str | None = None
