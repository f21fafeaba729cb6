"""Reading text and rows: what is not text is named with its file and row."""

import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from r2q.evaluation.local_data import load_splits
from r2q.files import lines_of, read_documents


def test_a_lone_surrogate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "whole \\ud83d\\ude00"}\n{"text": "cut \\ud83d off"}\n')
    with pytest.raises(ValueError, match=r"text\.jsonl, row 2: holds the lone surrogate"):
        read_documents(path)


def test_half_a_surrogate_pair_in_a_parquet_file_is_named(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["t.txt.gz", "t.txt.xz", "t.parquet"])
def test_a_damaged_file_is_named_wherever_the_damage_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    texts = [f"document {i} of {i * i}" for i in range(30)]
    if path.suffix == ".parquet":
        parquet.write_table(pa.table({"text": texts}), path)
    else:
        pack = {".gz": gzip.compress, ".xz": lzma.compress}[path.suffix]
        path.write_bytes(pack("\n".join(texts).encode()))
    whole, said = path.read_bytes(), []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read_documents(path)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > len(whole) / 2  # a parquet file has no sum over its pages
    assert all(line.startswith(str(path)) and "\n" not in line for line in said)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n", encoding="utf-8-sig")
    (tmp_path / "t.jsonl").write_text('{"text": "one"}\n', encoding="utf-8-sig")
    assert read_documents(tmp_path / "t.txt") == ["one\n"]
    assert read_documents(tmp_path / "t.jsonl") == ["one"]


def test_lines_are_those_of_an_editor() -> None:
    assert lines_of("a\u2028b\x0cc\x85d\r\ne\n\nf") == ["a\u2028b\x0cc\x85d", "e", "", "f"]


@pytest.mark.parametrize("bad", ['{"text": ', '{"n": ' + "9" * 5000 + "}", '{"n": ' + "[" * 10**5 + "]" * 10**5 + "}"])
def test_what_is_no_json_is_named_with_its_row(bad: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"text": "good"}}\n\n{bad}\n')
    with pytest.raises(ValueError, match=r"t\.jsonl, row 3: not JSON lines"):
        read_documents(tmp_path / "t.jsonl")


def test_a_number_of_a_task_that_no_table_holds_is_named(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"answer": 18446744073709551616}\n')
    with pytest.raises(ValueError, match=r"test\.jsonl: a column holds a number beyond 64 bits"):
        load_splits({"test": [str(tmp_path / "test.jsonl")]})


def test_a_file_without_rows_is_named(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").touch()
    for name in ("t.parquet", "t.jsonl"):
        with pytest.raises(ValueError, match=rf"{name}: no rows"):
            read_documents(tmp_path / name)
