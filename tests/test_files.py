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


def test_half_a_surrogate_pair_in_a_parquet_file_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    values = pa.array([b"good", "cut \ud83d off".encode("utf-8", "surrogatepass")], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": values}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet, row 2: not UTF-8 text"):
        read_documents(tmp_path / "t.parquet")


def test_half_a_surrogate_pair_in_a_hub_data_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    class Rows:
        column_names = ("text",)

        def __getitem__(self, name: str) -> list[str]:
            return ["good", "cut \ud83d off"]

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Rows())
    with pytest.raises(ValueError, match=r"owner/name:c:test, row 2: holds the lone surrogate .ud83d"):
        read_documents("owner/name:c:test")
