"""`python -m r2q.config FILE ...`: whether configs are right, before Snakemake opens them; one sentence per problem."""

import sys

from r2q.config import ConfigError, load_to_run

if __name__ == "__main__":
    problems = [] if sys.argv[1:] else ["no config is given; usage: python -m r2q.config FILE ..."]
    for path in sys.argv[1:]:
        try:
            load_to_run(path)
        except ConfigError as error:
            problems += str(error).splitlines()
    if problems:
        sys.exit("\n".join(f"error: {line}" for line in problems))
