"""run the whole workflow with a config; results go to this folder

r2q run config/smoke.yaml --cores 8

What follows the config is Snakemake's. A config or a profile that is not here may be one that comes with r2q, such as
config/smoke.yaml and `--workflow-profile profiles/slurm`.
"""

import os
import sys
from pathlib import Path
from typing import Annotated


def run(
    config: Annotated[Path, "YAML", "what to run"],
    options: Annotated[list[str], "...", "as snakemake takes them"] = [],  # noqa: B006
    /,
) -> None:
    from r2q.config import load_to_run
    from r2q.kept import ROOT, here_or_shipped

    config = here_or_shipped(config)
    load_to_run(config)
    given = ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--configfile", str(config)]
    if not any(option.startswith("--workflow-profile") for option in options):
        given += ["--workflow-profile", str(here_or_shipped("profiles/default"))]
    options = [str(here_or_shipped(option)) if option.startswith("profiles/") else option for option in options]
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *given, *options])
