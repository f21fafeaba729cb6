"""The JSON schema of a config, generated from the models in `r2q.config`."""

from __future__ import annotations

import json
from pathlib import Path

from r2q.config.run import Config
from r2q.kept import ROOT


def schema_path() -> Path:
    """Where the workflow finds it."""
    return ROOT / "workflow" / "schemas" / "config.schema.json"


def schema_text() -> str:
    """The schema as it is committed, without the options of methods: `r2q.config` checks them by the method's file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
