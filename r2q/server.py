"""Start-up paid once: a process that has imported torch, transformers and lm-eval, and forks itself for every verb.

Importing them takes 5 s, much of what a job on a small model takes, and what draws figures two more. The workflow
opens a socket and starts `python -m r2q.server`; a verb that finds it in R2Q_SERVER hands its command line over,
with folder, environment, stdout and stderr, and gets an exit status back. Without a server, as on the nodes of a
cluster, the verb does the same work itself. Before a fork only libraries are imported and the tasks and prompts of a
model are made, once for all its units; no GPU is touched: a child is like any process.

The server ends with whoever started it, a child with the verb that asked for it, also after a kill -9.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from r2q.cli import main
from r2q.client import ADDRESS, NO, Request

ENVIRONMENT = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TOKENIZERS_PARALLELISM": "false"}  # no GPU, no threads to lose
IMPORTED = (
    "lm_eval.evaluator", "datasets", "transformers.models.llama.modeling_llama",
    "r2q.quantize", "r2q.evaluation.session", "r2q.training.teacher_data", "r2q.training.frame",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "r2q.report.page", "r2q.report.claims",
)  # fmt: skip


def start() -> None:
    """Start a server for the child processes of this one; it imports nothing before the first of them asks.

    Libraries are imported with one thread, so that none is lost in a fork; a verb sets the number that it was given.
    """
    long = len(os.fsencode(tempfile.gettempdir())) > 80  # the whole path of a socket may have 103 bytes
    path = Path(tempfile.mkdtemp(prefix="r2q-", dir="/tmp" if long else None), "socket")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(128)
        subprocess.Popen(
            [sys.executable, "-m", "r2q.server", str(path), str(listener.fileno())],
            stdin=subprocess.PIPE,  # closed when this process ends, however it ends
            pass_fds=[listener.fileno()],
            env=os.environ | dict.fromkeys(names, "1") | ENVIRONMENT,
        )
    os.environ[ADDRESS] = str(path)


def serve(path: str, listener: socket.socket) -> None:
    """Fork a child for every connection, until standard input is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the verbs; this process ends with its parent
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children: the verbs do
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        _warm()
        connection, _ = listener.accept()
        with connection:
            try:
                request, streams = _receive(connection)
            except (ValueError, OSError):  # who asked was killed
                continue
            cuda = sys.modules["torch"].cuda
            if request.folder == str(Path.cwd()) and not cuda.is_initialized():
                _share(*request.arguments)
            if cuda.is_initialized():  # by something that was imported, such as torchao: no child could use a GPU
                connection.sendall(NO)
            elif os.fork() == 0:
                listener.close()
                _child(connection, request, streams)
            for stream in streams:
                os.close(stream)
    Path(path).unlink(missing_ok=True)
    Path(path).parent.rmdir()


@cache
def _warm() -> None:
    """Have what every verb would import and build; nobody's garbage collection looks through it again."""
    for module in IMPORTED:
        import_module(module)
    import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("")  # 1,000 expressions compiled
    gc.collect()
    gc.freeze()


def _share(verb: str = "", *rest: str) -> None:
    """Have what all units of a model are evaluated with; what fails here fails in the verb, which says why."""
    if verb == "evaluate":
        from r2q.evaluation.evaluate import share

        given = dict(zip(rest[::2], rest[1::2], strict=False))
        with suppress(Exception):
            share(given["--config"], given["--model"], given["--out"], given.get("--reference"))
            gc.freeze()


def _receive(connection: socket.socket) -> tuple[Request, list[int]]:
    """What is asked for, and where stdout and stderr go; raises ValueError where the message is not whole."""
    size, streams, *_ = socket.recv_fds(connection, 8, 2)
    parts, left = [], int.from_bytes(size, "big")
    while left and (part := connection.recv(left)):
        parts.append(part)
        left -= len(part)
    return Request(*json.loads(b"".join(parts))), streams


def _child(connection: socket.socket, request: Request, streams: list[int]) -> None:
    """Run one verb, and end."""
    for place, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream, place)
        os.close(stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.argv = ["r2q", *request.arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.Thread(target=lambda: connection.recv(1) or os._exit(1), daemon=True).start()  # the verb was killed
    status = 1
    try:
        status = main(request.arguments)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(str(status).encode())
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
