"""One thread for torch: tiny tensors gain nothing from more, and busy machines lose much."""

import gc
import hashlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workflow import Copy


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy of the repository in which the smoke run went through once. Whoever changes it puts it back."""
    copy = Copy(tmp_path_factory.mktemp("finished"))
    done = copy.run()
    assert done.returncode == 0, done.stdout
    copy.output = done.stdout
    return copy


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes a module of somebody's own of its text; returns its name."""

    def write(text: str) -> str:
        name = f"own_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return write


@pytest.fixture(autouse=True, scope="module")
def _libraries_are_no_garbage() -> None:
    """What is imported stays: else every look for garbage, also those that the code asks for, goes over all of it."""
    gc.collect()
    gc.freeze()


WORKFLOW = ("test_dag", "test_smoke")  # share one finished run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first."""
    items.sort(key=lambda item: item.path.stem not in WORKFLOW)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Several processes (make test) get whole files, and the files that share a run go to the same one."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.split("::")[0])
            return "workflow" if file.stem in WORKFLOW else str(file)

    return Together(config, log)
