"""One thread for torch: tiny tensors gain nothing from more, and busy machines lose much."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

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
