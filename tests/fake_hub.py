"""A Hugging Face hub on localhost: the few endpoints that huggingface_hub and datasets ask, and what went over them.

Repositories are folders of a test; a commit is a hash of their content, kept for as long as the hub lives.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".gguf")  # kept by git-lfs, whose hash is a sha256


@dataclass
class Commit:
    files: dict[str, bytes]

    @property
    def sha(self) -> str:
        parts = "".join(f"{name} {hashlib.sha1(data).hexdigest()}\n" for name, data in sorted(self.files.items()))
        return hashlib.sha1(parts.encode()).hexdigest()


@dataclass
class Repository:
    """Commits, of which the last one is `main`; those that other names stand for; whether a token is needed."""

    commits: list[Commit] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def find(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        asked = self.refs.get(revision, revision)
        short = len(asked) >= 7
        return next((commit for commit in self.commits if short and commit.sha.startswith(asked)), None)


class FakeHub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: by `models/owner/name` or `datasets/owner/name`.
        asked: addresses in repositories that were asked for; sent: files whose content was sent.
        broken: files of which the connection breaks off half way; damaged: those with another content than is said;
            claimed: sizes that others are said to have.
        renamed: new names of repositories, to which old ones are sent on, as the real hub does.
        elsewhere: whether large files are sent by another host.
        prefix: of every path, as a mirror has it.
        failing: how many more requests of an address that has a word in it get which status in place of an answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.sent: list[str] = []
        self.broken: set[str] = set()
        self.damaged: set[str] = set()
        self.claimed: dict[str, int] = {}
        self.renamed: dict[str, str] = {}
        self.elsewhere = False
        self.prefix = ""
        self.failing: dict[str, tuple[int, int]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.prefix}"

    def push(self, kind: str, name: str, files: Path | dict[str, bytes], gated: bool = False) -> str:
        """Add a commit; returns its hash."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        repository = self.repositories.setdefault(f"{kind}s/{name}", Repository())
        repository.gated = gated
        repository.commits.append(Commit(files))
        return repository.commits[-1].sha


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that runs for as long as the block lasts."""
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self._fails() or self._sent_on():
            return
        path = urlsplit(self.path).path.removeprefix(self.server.prefix).strip("/")
        if match := re.fullmatch(r"api/((?:models|datasets)/[^/]+/[^/]+)/(revision|tree)/([^/]+)(?:/(.*))?", path):
            name, what, revision, folder = match.groups()
            revision, folder = unquote(revision), unquote(folder or "")
            commit = self._commit(name, revision)
            if commit is not None:
                self._json(_info(name, commit) if what == "revision" else self._tree(commit, folder or ""))
        elif match := re.fullmatch(r"api/((?:models|datasets)/[^/]+/[^/]+)", path):
            if (commit := self._commit(match[1], "main")) is not None:
                self._json(_info(match[1], commit))
        elif match := re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(f"{match[1] or 'models/'}{match[2]}", unquote(match[3]), unquote(match[4]))
        elif match := re.fullmatch(r"elsewhere/(\w+)/(.+)", path):
            sent = (commit.files for repository in self.server.repositories.values() for commit in repository.commits)
            files = (data for files in sent for data in files.values())
            self._send(match[2], next(data for data in files if hashlib.sha256(data).hexdigest() == match[1]), {})
        else:
            self._refuse(404, "EntryNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._fails() or self._sent_on():
            return
        path = urlsplit(self.path).path.removeprefix(self.server.prefix)
        match = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)/paths-info/([^/]+)", path)
        commit = None if match is None else self._commit(match[1], unquote(match[2]))
        if match is None:
            self._refuse(404, "EntryNotFound")
        elif commit is not None:
            form = self.headers["Content-Type"].startswith("application/x-www-form-urlencoded")
            paths = parse_qs(body.decode())["paths"] if form else json.loads(body)["paths"]
            found = [self._entry(path, commit.files[path]) for path in paths if path in commit.files]
            folders = {path for path in paths if any(name.startswith(f"{path}/") for name in commit.files)}
            self._json(found + [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders])

    def _fails(self) -> bool:
        for word, (status, left) in self.server.failing.items():
            if word in self.path and left:
                self.server.failing[word] = status, left - 1
                self._refuse(status, "")
                return True
        return False

    def _sent_on(self) -> bool:
        """Whether the address is that of a repository's old name."""
        for old, new in self.server.renamed.items():
            if re.search(f"/{old}(/|$)", self.path):
                self._refuse(307, "", {"Location": self.path.replace(old, new)})
                return True
        return False

    def _commit(self, name: str, revision: str) -> Commit | None:
        self.server.asked.append(self.path)
        repository = self.server.repositories.get(name)
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif (commit := repository.find(revision)) is None:
            self._refuse(404, "RevisionNotFound")
        else:
            return commit
        return None

    def _tree(self, commit: Commit, folder: str) -> list[dict[str, Any]]:
        inside = {n: d for n, d in commit.files.items() if not folder or n.startswith(f"{folder}/")}
        if parse_qs(urlsplit(self.path).query).get("recursive") in (["true"], ["True"]):
            return [self._entry(name, data) for name, data in inside.items()]
        start = len(folder) + 1 if folder else 0
        direct = {name: data for name, data in inside.items() if "/" not in name[start:]}
        folders = {name[: name.index("/", start)] for name in inside if "/" in name[start:]}
        listed = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        return listed + [self._entry(name, data) for name, data in direct.items()]

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        size = self.server.claimed.get(path, len(data))
        found: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": _git_sha1(data)}
        if path.endswith(LARGE):
            found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 134}
        return found

    def _resolve(self, name: str, revision: str, file: str) -> None:
        commit = self._commit(name, revision)
        if commit is None:
            return
        if self.server.repositories[name].gated and self.headers.get("Authorization") is None:
            self._refuse(401, "GatedRepo")
        elif file not in commit.files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit.sha})
        else:
            data = commit.files[file]
            linked = self._entry(file, data).get("lfs", {}).get("oid")
            headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{linked or _git_sha1(data)}"'}
            if linked and self.server.elsewhere:
                size = str(self.server.claimed.get(file, len(data)))
                place = f"{self.server.address.replace('127.0.0.1', 'localhost')}/elsewhere/{linked}/{file}"
                headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": size, "Location": place}
                self._refuse(302, "", headers)
            else:
                self._send(file, data, headers)

    def _send(self, file: str, data: bytes, headers: dict[str, str]) -> None:
        """A file's content, or what the test has made of it."""
        if file in self.server.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(self.server.claimed.get(file, len(data)))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.server.sent.append(file)
            if file in self.server.broken:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                self.wfile.write(data)

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()


def _info(name: str, commit: Commit) -> dict[str, Any]:
    siblings = [{"rfilename": file} for file in commit.files]
    return {"id": name.partition("/")[2], "sha": commit.sha, "siblings": siblings, "private": False, "tags": []}


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
