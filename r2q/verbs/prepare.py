"""check every model, recipe and task before any work

r2q prepare --config config/embedded.yaml --out prepared.json
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Config


def prepare(
    config: Config,
    out: Annotated[Path, "JSON", "where the findings go"],
    model: Annotated[str | None, "NAME", "only this model of the config, and no tasks"] = None,
) -> None:
    from r2q.prepare import prepare

    prepare(config, out, model)
