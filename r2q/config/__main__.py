"""`python -m r2q.config FILE`: whether a config is right, before Snakemake opens it; one sentence per problem."""

from __future__ import annotations

import sys

from r2q.config import ConfigError, leaks, load

if __name__ == "__main__":
    for path in sys.argv[1:]:
        try:
            problems = [f"{path}: {line}" for line in leaks(load(path))]
        except ConfigError as error:
            problems = str(error).splitlines()
        if problems:
            sys.exit("\n".join(f"error: {line}" for line in problems))
