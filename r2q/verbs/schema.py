"""print the JSON schema of the config

r2q schema > workflow/schemas/config.schema.json
"""

import sys
from typing import Annotated


def schema(
    check: Annotated[bool, "", "only say what is stale: the schema, the table of keys in config/README.md"] = False,
) -> int:
    from r2q.config.schema import schema_text, stale

    if not check:
        sys.stdout.write(schema_text())
        return 0
    problems = stale()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0
