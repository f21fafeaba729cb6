"""Reading text and rows: what is not text is named with its file and row."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2q.files import read_documents


def test_a_lone_surrogate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "whole \\ud83d\\ude00"}\n{"text": "cut \\ud83d off"}\n')
    with pytest.raises(ValueError, match=r"text\.jsonl, row 2: holds the lone surrogate"):
        read_documents(path)
