"""print the JSON schema of the config

r2q schema > workflow/schemas/config.schema.json
"""

import sys
from typing import Annotated


def schema(check: Annotated[bool, "", "print nothing; exit with 1 when the schema file is stale"] = False) -> int:
    from r2q.schema import schema_path, schema_text

    if not check:
        sys.stdout.write(schema_text())
        return 0
    path = schema_path()
    if path.is_file() and path.read_text(encoding="utf-8") == schema_text():
        return 0
    print(f"error: {path} is not what r2q/config.py says; run: python -m r2q schema > {path}", file=sys.stderr)
    return 1
