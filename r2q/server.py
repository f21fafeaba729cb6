"""Start-up paid once: a process that has imported torch, transformers and lm-eval, and forks itself for every verb.

Importing them takes 5 s, much of what a job on a small model takes, and what draws figures two more. The workflow
opens a socket and starts `python -m r2q.server`; a verb that finds it in R2Q_SERVER hands its command line over,
with folder, environment, stdout and stderr, and gets an exit status back. Without a server, as on the nodes of a
cluster, the verb does the same work itself. Nothing is computed before a fork, and no GPU is touched: a child is like
any process.

The server ends with whoever started it, a child with the verb that asked for it, also after a kill -9.
"""

from __future__ import annotations

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
from functools import cache
from importlib import import_module
from pathlib import Path

from r2q.cli import ADDRESS, NO, main

IMPORTED = (
    "lm_eval.evaluator", "datasets", "transformers.models.llama.modeling_llama",
    "r2q.quantize", "r2q.evaluation.evaluate", "r2q.evaluation.adapter", "r2q.training.teacher_data",
    "r2q.training.frame",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "r2q.report.page", "r2q.report.claims",
)  # fmt: skip


def start() -> None:
    """Start a server for the child processes of this one; it imports nothing before the first of them asks.

    Libraries are imported with one thread, so that none is lost in a fork; a verb sets the number that it was given.
    """
    path = Path(tempfile.mkdtemp(prefix="r2q-"), "socket")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(128)
        subprocess.Popen(
            [sys.executable, "-m", "r2q.server", str(path), str(listener.fileno())],
            stdin=subprocess.PIPE,  # closed when this process ends, however it ends
            pass_fds=[listener.fileno()],
            env=os.environ | dict.fromkeys(names, "1") | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
        )
    os.environ[ADDRESS] = str(path)


def serve(path: str, listener: socket.socket) -> None:
    """Fork a child for every connection, until standard input is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the verbs; this process ends with its parent
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children: the verbs do
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        _warm()
        connection, _ = listener.accept()
        if sys.modules["torch"].cuda.is_initialized():  # by something that was imported: no child could use a GPU
            connection.sendall(NO)
        elif os.fork() == 0:
            listener.close()
            _child(connection)
        connection.close()
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


def _child(connection: socket.socket) -> None:
    """Run one verb with what came over the connection, and end."""
    size, streams, *_ = socket.recv_fds(connection, 8, 2)
    parts, left = [], int.from_bytes(size, "big")
    while left and (part := connection.recv(left)):
        parts.append(part)
        left -= len(part)
    arguments, folder, environment = json.loads(b"".join(parts))
    for place, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream, place)
        os.close(stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["r2q", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.Thread(target=lambda: connection.recv(1) or os._exit(1), daemon=True).start()  # the verb was killed
    status = 1
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(str(status).encode())
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
