"""The environment: one hand-written list, a lock that covers it, conda's copy, and the choices of bootstrap.py."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import r2q
from r2q.kept import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK_TEXT = (ROOT / "requirements.lock").read_text()
LOCK = dict(re.findall(r"(?m)^([a-z0-9-]+)==([^ ;\\]+)", LOCK_TEXT))
WANTED = [Requirement(r) for r in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_version_is_the_same_everywhere() -> None:
    heading = re.search(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert heading is not None
    assert {PROJECT["version"], r2q.__version__, str(cited), heading[1]} == {PROJECT["version"]}


def test_what_builds_the_package_is_in_the_lock() -> None:
    """bootstrap.py installs it without build isolation."""
    (wanted,) = map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"])
    assert wanted.specifier.contains(LOCK[wanted.name])


def test_the_lock_has_every_dependency_in_range_and_no_torch() -> None:
    for wanted in WANTED:
        name = canonicalize_name(wanted.name)
        if name != "torch":
            assert wanted.specifier.contains(LOCK[name]), f"{wanted}, but the lock has {LOCK[name]}"
    assert not {"torch", "triton"} & LOCK.keys()
    assert not [name for name in LOCK if name.startswith("nvidia-")]
    # What torch itself needs is in the lock, so that nothing unpinned comes with it.
    needs = [Requirement(r).name for r in importlib.metadata.requires("torch") or [] if "extra ==" not in r]
    assert {
        canonicalize_name(name) for name in needs if not name.startswith(("nvidia", "triton", "cuda"))
    } <= LOCK.keys()


def test_every_locked_version_has_hashes_and_no_path_of_a_machine() -> None:
    blocks = re.split(r"(?m)^(?=[a-z0-9-]+==)", LOCK_TEXT)[1:]
    assert len(blocks) == len(re.findall(r"(?m)^[a-z0-9]", LOCK_TEXT)) > 100
    assert all("--hash=sha256:" in block for block in blocks)
    assert "file:" not in LOCK_TEXT
    assert "/" not in LOCK_TEXT


def test_conda_has_the_locked_versions(bootstrap: ModuleType) -> None:
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(part["pip"] for part in parts if isinstance(part, dict))
    pinned = dict(line.split("==") for line in pip if "==" in line)
    assert {canonicalize_name(r.name) for r in WANTED} == {canonicalize_name(name) for name in pinned}
    assert pinned.pop("torch") == bootstrap.TORCH
    assert {canonicalize_name(name): version for name, version in pinned.items()}.items() <= LOCK.items()
    python = next(part.split("=", 1)[1] for part in parts if isinstance(part, str) and part.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_bootstrap_and_pyproject_agree(bootstrap: ModuleType) -> None:
    torch = next(r for r in WANTED if r.name == "torch")
    assert torch.specifier.contains(bootstrap.TORCH)
    allowed = SpecifierSet(PROJECT["requires-python"])
    (low_major, low), (_, high) = bootstrap.OLDEST, bootstrap.NEWEST
    inside = [f"{low_major}.{minor}" for minor in range(low, high + 1)]
    assert all(allowed.contains(version) for version in inside)
    assert not allowed.contains(f"{low_major}.{low - 1}")
    assert not allowed.contains(f"{low_major}.{high + 1}")
    assert allowed.contains(Version(".".join(map(str, sys.version_info[:3]))))


def interpreter(folder: Path, name: str, answer: str) -> Path:
    """A program that answers like a Python of some version."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{answer}\n")
    file.chmod(0o755)
    return file


def test_a_python_that_fits_is_found(bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = interpreter(tmp_path, "python3", "echo 3.10")
    interpreter(tmp_path, "python3.12", "exit 1")  # has no venv
    interpreter(tmp_path, "python3.13", "echo 3.13")
    monkeypatch.setattr(bootstrap.sys, "executable", str(old))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(bootstrap, "NAMES", ("python3.12", "python3.13", "python3"))
    monkeypatch.delenv("R2Q_PYTHON", raising=False)
    assert bootstrap.find_python() == "python3.13"


@pytest.mark.parametrize("asked", [True, False])
def test_only_other_pythons_is_a_clear_error(
    bootstrap: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: bool,
) -> None:
    old = interpreter(tmp_path, "python3", "echo 3.10")
    monkeypatch.setattr(bootstrap.sys, "executable", str(old))
    monkeypatch.setattr(bootstrap, "NAMES", ("python3",))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("R2Q_PYTHON", raising=False)
    if asked:
        monkeypatch.setenv("R2Q_PYTHON", str(old))
    with pytest.raises(SystemExit) as stop:
        bootstrap.find_python()
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert "Python 3.11, 3.12 or 3.13" in message
    assert "(3.10)" in message


@pytest.mark.parametrize(
    ("variable", "gpu", "platform", "kind"),
    [
        (None, True, "linux", "cuda"),
        (None, False, "linux", "cpu"),
        (None, True, "darwin", "cpu"),
        ("cpu", True, "linux", "cpu"),
        ("cuda", False, "linux", "cuda"),
    ],
)
def test_torch_is_chosen_by_hardware(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, variable: str | None, gpu: bool, platform: str, kind: str
) -> None:
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if gpu else None)
    monkeypatch.setattr(bootstrap.sys, "platform", platform)
    if variable is None:
        monkeypatch.delenv("R2Q_TORCH", raising=False)
    else:
        monkeypatch.setenv("R2Q_TORCH", variable)
    assert bootstrap.wanted_torch() == kind


def test_an_unknown_kind_of_torch_is_refused(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2Q_TORCH", "rocm")
    with pytest.raises(SystemExit):
        bootstrap.wanted_torch()


CPU, PLAIN = "torch==2.13.0+cpu", "torch==2.13.0"
INDEX = "https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize(
    ("kind", "platform", "works", "answers", "installed"),
    [
        ("cpu", "linux", lambda a: CPU in a, False, [[CPU]]),  # pip is configured with a CPU wheel
        ("cpu", "linux", lambda a: INDEX in a, True, [[CPU], [PLAIN, "--index-url", INDEX]]),
        ("cpu", "linux", lambda a: a[-1] == PLAIN, False, [[CPU], [PLAIN]]),  # the index does not answer in time
        ("cpu", "linux", lambda a: a[-1] == PLAIN, True, [[CPU], [PLAIN, "--index-url", INDEX], [PLAIN]]),
        ("cpu", "darwin", lambda a: True, True, [[PLAIN]]),
        ("cuda", "linux", lambda a: True, True, [[PLAIN]]),
    ],
)
def test_where_torch_comes_from(
    bootstrap: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    platform: str,
    works: Callable[[list[str]], bool],
    answers: bool,
    installed: list[list[str]],
) -> None:
    tried: list[list[str]] = []

    def try_pip(*arguments: str, **_: Any) -> bool:
        tried.append([a for a in arguments if a != "-qq"])
        return works(tried[-1])

    monkeypatch.setattr(bootstrap, "try_pip", try_pip)
    monkeypatch.setattr(bootstrap, "reachable", lambda url: answers)
    monkeypatch.setattr(bootstrap, "torch_installed", lambda: None)
    monkeypatch.setattr(bootstrap.sys, "platform", platform)
    bootstrap.install_torch(kind)
    assert tried == installed
    monkeypatch.setattr(bootstrap, "torch_installed", lambda: ["2.13.0", kind])
    bootstrap.install_torch(kind)
    assert tried == installed  # nothing to do


def test_an_address_that_does_not_answer_costs_seconds(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def times_out(request: object, timeout: float) -> None:
        assert timeout == 5
        raise TimeoutError

    monkeypatch.setattr(bootstrap.urllib.request, "urlopen", times_out)
    assert not bootstrap.reachable(INDEX)


def test_make_lists_its_targets() -> None:
    done = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT)
    listed = re.findall(r"(?m)^  make (\w+)", done.stdout)
    assert {"run", "test", "check", "paper", "clean", "help"} <= set(listed), done.stderr
