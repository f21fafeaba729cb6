"""run lm-eval's own command line, which can then read packed folders

r2q lm-eval run --model hf --model_args pretrained=results/embedded/mini-llama/r2q-g64/seed0 --tasks wikitext
"""

import sys
from typing import Annotated


def lm_eval(arguments: Annotated[list[str], "...", "as lm-eval takes them"], /) -> None:
    from lm_eval.__main__ import cli_evaluate  # `import r2q` registers the plug-in as soon as transformers is loaded

    sys.argv = ["lm-eval", *arguments]
    cli_evaluate()
