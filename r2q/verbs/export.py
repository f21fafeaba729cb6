"""write a packed folder as a GPTQ checkpoint, which vLLM and transformers load without this package

r2q export results/embedded/mini-llama/rtn-g64/seed0 --out rtn-g64-gptq
"""

from pathlib import Path
from typing import Annotated


def export(
    folder: Annotated[Path, "FOLDER", "a packed folder, of evenly spaced levels"],
    /,
    out: Annotated[Path, "DIR", "where the checkpoint goes"],
) -> None:
    from r2q.models.export import export

    export(folder, out)
