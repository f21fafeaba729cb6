"""What every job of a workflow starts: it hands a verb over to the server, if there is one, and imports little."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import NamedTuple

ADDRESS = "R2Q_SERVER"  # a variable of the environment: the socket of `r2q.server`
NO = b"no"  # the answer of a server that cannot help


def main() -> int:
    """Run one verb, in the server or here; returns the exit status."""
    try:
        os.getcwd()  # noqa: PTH109 (pathlib takes 5 ms to import)
    except OSError as error:
        print(f"error: the working folder: {error.strerror}", file=sys.stderr)
        return 2
    try:
        status = ask(sys.argv[1:])
    except KeyboardInterrupt:  # the server's process says so
        return 130
    if status is None:
        from r2q import cli

        return cli.main()
    return status


class Request(NamedTuple):
    """A verb with its arguments, and with what it runs, as it is handed to the server."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]


def ask(arguments: Sequence[str]) -> int | None:
    """The exit status of a verb that the server ran; None where there is no server, or a stream that it would need."""
    if sys.stdout is None or sys.stderr is None:  # closed: the socket would stand in its place
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ[ADDRESS])
        except (KeyError, OSError):
            return None
        environment = {name: value for name, value in os.environ.items() if name != ADDRESS}
        folder = os.getcwd()  # noqa: PTH109
        message = json.dumps(Request(list(arguments), folder, environment)).encode()
        try:
            socket.send_fds(connection, [len(message).to_bytes(8, "big")], [1, 2])
            connection.sendall(message)
            answer = connection.recv(8)
        except (BrokenPipeError, ConnectionResetError):  # it said no, or ended, before it had read all of it
            return None
    if answer == NO:
        return None
    if not answer:
        print("error: the process at work has ended without a word: killed, or out of memory", file=sys.stderr)
        return 1
    return int(answer)
