"""The process that forks itself for verbs, from the side of the verb."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from r2q import client

TRIES = 20


@pytest.mark.parametrize("answer", [client.NO, b""], ids=["no", "gone"])
def test_a_server_that_cannot_help_leaves_the_work_to_the_verb(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers and closes without reading: what the verb still sends breaks its pipe, at once or later."""
    path = tmp_path / "socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(TRIES)

    def refuse() -> None:
        for _ in range(TRIES):
            connection, _ = listener.accept()
            connection.sendall(answer)
            connection.close()

    thread = threading.Thread(target=refuse, daemon=True)
    thread.start()
    monkeypatch.setenv(client.ADDRESS, str(path))
    monkeypatch.setenv("R2Q_PADDING", "x" * 100_000)  # more than a socket takes at once
    assert [client.ask(["quantize"]) for _ in range(TRIES)] == [None] * TRIES
    thread.join()
    listener.close()


def test_without_a_server_there_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(client.ADDRESS, raising=False)
    assert client.ask(["quantize"]) is None
    monkeypatch.setenv(client.ADDRESS, str(tmp_path / "nothing"))
    assert client.ask(["quantize"]) is None


def test_a_long_path_of_temporary_files_has_a_server_too(tmp_path: Path) -> None:
    long = tmp_path / ("a" * 100)
    long.mkdir()
    code = "import os, socket; from r2q import server; server.start()"
    code += "; socket.socket(socket.AF_UNIX).connect(os.environ[server.ADDRESS])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(long)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stream", [1, 2])
def test_a_closed_stream_is_not_handed_over(stream: int, tmp_path: Path) -> None:
    """The server's socket would get its number: words of the verb went into the answer."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        code = "import os; from r2q import client; os._exit(client.ask(['schema']) is not None)"
        command = ["sh", "-c", f'exec "$0" -c "$1" {stream}>&-', sys.executable, code]
        done = subprocess.run(command, env=os.environ | {client.ADDRESS: str(path)}, timeout=60)
        listener.settimeout(0)
        assert done.returncode == 0
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("served", [True, False])
def test_a_working_folder_that_is_gone_is_told(served: bool, tmp_path: Path) -> None:
    path, gone = tmp_path / "socket", tmp_path / "gone"
    gone.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        if served:
            listener.bind(str(path))
            listener.listen(1)
        command = ["sh", "-c", 'rmdir "$1"; exec "$0" -m r2q schema', sys.executable, str(gone)]
        variables = os.environ | {client.ADDRESS: str(path), "PYTHONPATH": str(Path.cwd())}
        done = subprocess.run(command, cwd=gone, env=variables, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "error: the working folder: No such file or directory\n")
