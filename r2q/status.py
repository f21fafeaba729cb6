"""How a unit ended: `ok`, `failed`, or `diverged` where a loss or gradient of its training was not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OK, FAILED, DIVERGED = "ok", "failed", "diverged"


def in_words(record: Mapping[str, Any]) -> str:
    """Status and reason of a report or evaluation on one line: `failed: no memory`, `diverged: step 4, loss nan`."""
    status, reason = record["status"], " ".join(str(record["error"]).split())
    if status == DIVERGED:  # the reason is a sentence of its own: "diverged at step 4: loss nan"
        reason = reason.removeprefix(f"{DIVERGED} at ").replace(": ", ", ", 1)
    return f"{status}: {reason}"


def parts(words: str) -> tuple[str, str]:
    """The status and the reason in what `in_words` gave; `ok` has no reason."""
    status, _, reason = words.partition(": ")
    return status, reason
