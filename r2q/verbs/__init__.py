"""The verbs: a file here is a verb of the command line and a function of that name; a rule runs the verb of its name.

The first line of a file's docstring is its help, the rest the epilog. The function's parameters are the arguments: the
annotation is `Annotated[type, "METAVAR", "help"]`; what has no default is required, what stands before a `/` has no
dashes. A verb gets paths and writes only below its `out`. Imports of torch stand inside of the function.
"""

from pathlib import Path
from typing import Annotated

Config = Annotated[Path, "YAML", "the run's config"]
Prepared = Annotated[Path, "JSON", "what `prepare` wrote of the model"]
Model = Annotated[str, "NAME", "a model of the config"]
Results = Annotated[Path, "DIR", "results/<run>"]
Published = Annotated[Path | None, "DIR", "numbers that others published; without, those of the repository"]
Stem = Annotated[Path, "STEM", "path without .png, .svg, .csv"]
