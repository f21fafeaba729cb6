"""Options of `baselines/external.py`."""

from r2q.config import MethodOptions
from r2q.config.base import PathText


class Options(MethodOptions):
    """Where the checkpoint is."""

    path: PathText  # a folder in Hugging Face layout with safetensors, or a hub id ``owner/name``
    revision: str | None = None  # commit, tag or branch of a hub id
