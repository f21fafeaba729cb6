"""`python -m r2q.config FILE`: whether a config is right, before Snakemake opens it; one sentence per problem."""

from __future__ import annotations

import sys

from r2q.config import ConfigError, load_to_run

if __name__ == "__main__":
    for path in sys.argv[1:]:
        try:
            load_to_run(path)
        except ConfigError as error:
            sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))
