"""Keys, hashes of source, atomic writes, locks."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from r2q import kept
from r2q.kept import busy, held, key, source_hash, write_atomic, write_json

HOST = socket.gethostname()


def test_a_key_moves_with_every_part_but_not_with_their_order() -> None:
    parts = {"recipe": {"bits": 2, "name": "rtn"}, "weights": "a1"}
    assert key(parts) == key({"weights": "a1", "recipe": {"name": "rtn", "bits": 2}})
    others = [{**parts, "weights": "a2"}, {**parts, "recipe": {"bits": 3, "name": "rtn"}}, {**parts, "more": None}, {}]
    assert len({key(parts), *map(key, others)}) == 5
    with pytest.raises(ValueError, match="Out of range float"):
        key({"nan": float("nan")})


def test_what_cannot_be_json_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "out.json", {"mse": float("inf")})
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, time
from r2q.kept import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_writer_and_a_kill_lets_go_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "unit"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, cwd=kept.ROOT)
    assert other.stdout is not None
    other.stdout.readline()
    assert busy(tmp_path) == {str(folder): f"{other.pid} of {HOST}"}
    with (
        pytest.raises(ValueError, match=f"process {other.pid} of {HOST} is at work on {folder}; wait for it"),
        held(folder),
    ):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    assert busy(tmp_path) == {}
    with held(folder):
        assert busy(tmp_path) == {str(folder): f"{os.getpid()} of {HOST}"}
    assert list((tmp_path / "a").iterdir()) == []  # the lock is gone, too


def test_a_writer_that_fails_leaves_no_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path / "bench.csv"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    said = rf"{tmp_path}/\.run\.lock: its file system gives no locks \(Function not implemented\); have it mounted"
    with pytest.raises(ValueError, match=said), held(tmp_path / "run"):
        pass


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": True})

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(file, "new")
    assert json.loads(file.read_text()) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]  # no temporary file is left either


def test_source_hash_moves_with_content_and_names_only(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "sub").mkdir(parents=True)
    (package / "a.py").write_text("A = 1\n")
    (package / "sub" / "b.py").write_text("B = 1\n")
    first = source_hash([package])
    os.utime(package / "a.py", (0, 0))
    (package / "notes.txt").write_text("not source")
    assert source_hash([package]) == first == source_hash([package, package / "a.py"])
    (package / "sub" / "b.py").write_text("B = 2\n")
    second = source_hash([package])
    (package / "sub" / "b.py").rename(package / "sub" / "c.py")
    assert len({first, second, source_hash([package])}) == 3
    with pytest.raises(FileNotFoundError, match=r"no Python source at .*absent"):
        source_hash([package / "absent"])


@pytest.mark.parametrize(
    "line",
    [
        "from pack.base import X",
        "from pack import base",
        "import pack.base",
        "from .base import X",
        "from . import base",
    ],
)
def test_a_file_brings_what_it_imports_from_its_own_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "method.py").write_text(f"import json\n{line}\n")
    (tmp_path / "pack" / "base.py").write_text("from pack.deep import Y\nX = 1\n")
    (tmp_path / "pack" / "deep.py").write_text("Y = 1\n")
    (tmp_path / "pack" / "other.py").write_text("Z = 1\n")
    first = source_hash(["pack/method.py"])
    (tmp_path / "pack" / "other.py").write_text("Z = 2\n")
    assert source_hash(["pack/method.py"]) == first
    (tmp_path / "pack" / "deep.py").write_text("Y = 2\n")
    assert source_hash(["pack/method.py"]) != first


@pytest.mark.parametrize(
    ("method", "file"),
    [("random_codes", "rtn.py"), ("gptq", "options/gptq.py"), ("e2e_scales", "options/e2e_scales.py")],
)
def test_a_method_changes_with_what_it_is_made_of(method: str, file: str) -> None:
    behind = kept.source_files([f"baselines/{method}.py"])
    assert kept.ROOT / "baselines" / file in behind
    assert kept.ROOT / "r2q/quantization/residual.py" not in behind


def test_a_method_of_ones_own_changes_with_its_helpers_and_the_method_it_builds_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    for name in ("mine/__init__.py", "mine/deep/__init__.py", "mine/tools.py", "mine/deep/base.py", "beside.py"):
        (tmp_path / name).write_text("X = 1\n")
    lines = ["from baselines.rtn import RTN", "from ..tools import X", "from . import base", "import beside, torch"]
    (tmp_path / "mine" / "deep" / "method.py").write_text("\n".join([*lines, "import r2q.kept", ""]))
    behind = kept.source_files([tmp_path / "mine" / "deep" / "method.py"])
    own = {file.relative_to(tmp_path).as_posix() for file in behind if file.is_relative_to(tmp_path)}
    others = {file.relative_to(kept.ROOT).as_posix() for file in behind if not file.is_relative_to(tmp_path)}
    assert own == {"mine/deep/method.py", "mine/deep/base.py", "mine/deep/__init__.py", "mine/tools.py", "beside.py"}
    assert {"baselines/rtn.py", "baselines/options/rtn.py"} <= others
    assert not [file for file in others if file.startswith("r2q/")]


def test_packages_installed_beside_a_method_are_no_part_of_it(tmp_path: Path) -> None:
    for name in ("mine", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "mine" / "method.py").write_text("import torch\nimport mine\n")
    behind = kept.source_files([tmp_path / "mine" / "method.py"])
    assert behind == [tmp_path / "mine" / "__init__.py", tmp_path / "mine" / "method.py"]
