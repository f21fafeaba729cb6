"""Options of `baselines/external.py`."""

from r2q.config import MethodOptions
from r2q.config.base import PathText


class Options(MethodOptions):
    """Where the checkpoint is.

    Attributes:
        path: a folder in Hugging Face layout with safetensors, or a hub id ``owner/name``.
        revision: commit, tag or branch of a hub id.
    """

    path: PathText
    revision: str | None = None
