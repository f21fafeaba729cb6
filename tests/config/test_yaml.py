"""A file that is no config is refused in one sentence, whatever is in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from r2q.config import ConfigError, load, read_yaml
from r2q.config.strict_yaml import parse_yaml
from r2q.kept import ROOT

LAUGHS = "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfer\x00u\x00n\x00", "is not a text file in UTF-8"),
        ("run: a".encode("utf-16-le"), "is not a text file in UTF-8"),
        (bytes(range(256)), "is not a text file in UTF-8"),
        (b"\x7fELF\x02\x01\x01\x00", "is not a text file in UTF-8"),
        (b"", "must be a mapping of keys"),
        (b"- a\n", "must be a mapping of keys"),
        (b"run: [", "not valid YAML"),
        (b"run: a\x0eb\n", "not valid YAML"),
        (b"run: &a [*a]\n", "the value of an anchor contains itself, in line 1"),
        (b"run: &a {b: {c: *a}}\n", "the value of an anchor contains itself, in line 1"),
        (b"run: " + b"[" * 100 + b"]" * 100, "is nested deeper than 50 levels"),
        (b"run: " + b"[" * 5000 + b"]" * 5000, "is nested deeper than 50 levels"),
        (LAUGHS.encode(), "has more than 1000000 values, aliases resolved"),
        (b"recipes:\n  r: {method: rtn}\n  r: {method: r2q}\n", "r stands twice, the second time in line 3"),
        (b"? [a, b]\n: 1\n", "a key must be a word, in line 1"),
        (b"run: 2024-99-99\n", "holds a value that cannot be read"),
        (b"seeds: [" + b"9" * 5000 + b"]\n", "holds a value that cannot be read"),
        (b"run: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_configs(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path, tmp_path / ("x" * 300), "/dev/zero"):
        with pytest.raises(ConfigError, match=r"cannot be read|has more than 16 MiB"):
            load(path)


@pytest.mark.parametrize("text", ["1e-5", "2E+3", "-1.5e3", "1e309", "1.5", "8.0e-6", "12", "0o7", "1e", "e5", "1_0"])
def test_numbers_are_what_json_says_and_else_what_yaml_says(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        expected = yaml.safe_load(text)
    assert parse_yaml(text) == expected
    assert parse_yaml(f'"{text}"') == text


def test_a_mark_at_the_beginning_is_no_letter(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("run: a".encode("utf-8-sig"))
    assert read_yaml(tmp_path / "a.yaml") == {"run": "a"}


def test_the_own_entry_says_it_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    for file, status in (
        (tmp_path / "bad.yaml", 1),
        (tmp_path / "absent.yaml", 1),
        (ROOT / "config" / "smoke.yaml", 0),
    ):
        done = subprocess.run([sys.executable, "-m", "r2q.config", file], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == status
        assert len(done.stderr.splitlines()) == status
        assert done.stderr.startswith(f"error: {file}: ") == bool(status)


def test_the_check_of_configs_wants_one_and_looks_at_all(tmp_path: Path) -> None:
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for given, wanted in (([], "no config is given"), (files, "two.yaml: cannot be read")):
        asked = [sys.executable, "-m", "r2q.config", *map(str, given)]
        done = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1
        assert wanted in done.stderr
        assert len(done.stderr.splitlines()) == max(1, len(given))
