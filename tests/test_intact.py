"""Files that were edited, cut off or written later are found."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from r2q.intact import Damaged, check_signature, check_tensors, digest_files, missing_files, sign, touched_files


def test_an_edited_or_cut_file_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("value,n\n0.30000000000000004,4\n0.5,8\n")
    sign(tmp_path / "collected.sha256", [path])
    subprocess.run(["sha256sum", "--check", "collected.sha256"], cwd=tmp_path, check=True, capture_output=True)
    whole = path.read_text()
    other = whole.replace("0.30000000000000004", "0.9", 1)
    for text in (other, whole.splitlines()[0] + "\n", whole[:-5], whole + "\n"):
        path.write_text(text)
        with pytest.raises(Damaged, match=r"scores\.csv is not .* \(see collected\.sha256\): start its run again"):
            check_signature(path)
    path.write_text(whole)
    check_signature(path)


def test_tensors_that_are_cut_off_are_found_without_reading_them(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "a.safetensors"
    save_file({"x": np.zeros((3, 5), np.int64), "y": np.ones(2, np.int8)}, path, metadata={"made": "by a test"})
    whole = path.read_bytes()
    check_tensors(path)
    for content in (b"", b"{}", whole[:7], whole[:40], whole[:-1], whole + b"0"):
        path.write_bytes(content)
        with pytest.raises(Damaged, match=r"a\.safetensors: damaged"):
            check_tensors(path)


def test_files_that_are_missing_or_cut_off_are_found(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("four")
    (tmp_path / "b").write_text("cut")
    assert missing_files(tmp_path, {"a": 4, "b": 4, "c": 0}) == ["b", "c"]


def test_a_file_written_after_its_record_is_noticed(tmp_path: Path) -> None:
    for number, name in enumerate(("before", "record.json", "after")):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, ns=(number, number))
    assert touched_files(tmp_path / "record.json", ["before", "after"]) == ["after"]
    first = digest_files(tmp_path, ["before", "after"])
    (tmp_path / "before").write_text("BEFORE")
    assert digest_files(tmp_path, ["after", "before"]) != first
