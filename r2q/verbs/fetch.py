"""download models, texts and tasks of a config, and pin them; later runs of it need no network

r2q fetch config/paper.yaml
"""

from pathlib import Path
from typing import Annotated


def fetch(config: Annotated[Path, "YAML", "the run's config"], /) -> None:
    from r2q.inputs.fetch import fetch

    fetch(config)
