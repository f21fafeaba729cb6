"""Files written whole or not at all, locks that a kill releases, and hashes: of plain data, and of source."""

import ast
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any
from uuid import uuid4

LIBRARY = Path(__file__).resolve().parent  # the package r2q
# What holds workflow, config, profiles, baselines and mini: the repository, of which a wheel keeps these in r2q/_root.
ROOT = LIBRARY / "_root" if (LIBRARY / "_root").is_dir() else LIBRARY.parent
PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)  # wrong ones


def key(parts: Mapping[str, Any]) -> str:
    """Hash of everything that can move a result: 32 hex digits, the same for equal parts in any order of keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def seed_of(text: str) -> int:
    """63 bits for a random generator, the same for the same text: streams of their own, whatever else is drawn."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(file: Path) -> list[int]:
    """Size, inode, and times of modification and change: the last one moves even where the other is set back."""
    stat = file.stat()
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def source_hash(paths: Iterable[str | Path]) -> str:
    """sha256 over Python source: `paths` are files or folders; relative ones count from the repository's top.

    Names and contents enter, in sorted order, the same from a wheel as from the repository; raises FileNotFoundError
    where there is no source.
    """
    digest = hashlib.sha256()
    for name, file in sorted((_name(file), file) for file in source_files(paths)):
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def here_or_shipped(path: str | Path) -> Path:
    """A path as it is, or where the repository has it, if it is not here: `config/smoke.yaml`, `mini/models/...`."""
    shipped = ROOT / path
    there, here = (os.path.exists(place) for place in (shipped, path))  # noqa: PTH110 - False for a name too long
    return shipped if there and not here else Path(path)


def _name(file: Path) -> PurePosixPath:
    """Where a file stands in the repository; the last part of its path if it is no part of that."""
    for top, below in ((ROOT, ROOT), (LIBRARY, LIBRARY.parent)):
        if file.is_relative_to(top):
            return PurePosixPath(file.relative_to(below))
    return PurePosixPath(file.name)


def source_files(paths: Iterable[str | Path]) -> list[Path]:
    """All files below folders; single files, and over and over what they import.

    What they import counts where it stands beside them, below the top of their package, in the working folder or among
    this repository's packages, so that a method which builds on another changes with it. Of r2q only modules of the
    same package below it count: what a verb needs of the others is listed in `r2q.plan.sources`.
    """
    files: set[Path] = set()
    for path in paths:
        full = (LIBRARY.parent if Path(path).parts[:1] == (LIBRARY.name,) else ROOT) / path
        if full.is_file():
            _add_with_imports(full, files)
        elif modules := list(full.rglob("*.py")):
            files.update(modules)
        else:
            raise FileNotFoundError(f"no Python source at {full}")
    return sorted(files)


def _add_with_imports(file: Path, files: set[Path]) -> None:
    """Add a file and, over and over, what it imports."""
    if file not in files:
        files.add(file)
        for imported in _imports(file, file.read_bytes()):
            _add_with_imports(imported, files)


@cache  # parsing is slow, and a workflow asks for the same files again and again
def _imports(file: Path, source: bytes) -> list[Path]:
    """Files of the modules that a file imports, as far as they are ours or stand beside it."""
    top = file.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    package = file.parent.relative_to(top).parts
    names: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = (*start, *(node.module or "").split(".")) if node.module else start
            names += [module, *((*module, alias.name) for alias in node.names)]
    imported = []
    for name in dict.fromkeys(filter(None, names)):
        if name[0] == "r2q" and (name[:-1] != package or len(package) == 1):
            continue
        beside = [top] if name[:1] == package[:1] or not package else []  # else `top` may hold all installed packages
        places = [folder.joinpath(*name) for folder in dict.fromkeys((*beside, Path.cwd(), ROOT))]
        modules = [place.with_suffix(".py") for place in places]
        modules += [place / "__init__.py" for place in places if name[0] != "r2q"]
        imported += [path for path in modules if path.is_file()][:1]
    return imported


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a whole file or nothing: a reader, or a run after a kill -9 or a power cut, never meets half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # not mkstemp, whose files are private
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def apply_umask(path: Path) -> None:
    """Give a file that a library made private (safetensors does) the mode of any new file: the umask decides."""
    probe = path.with_name(f".{path.name}.mode")
    probe.touch()
    path.chmod(probe.stat().st_mode & 0o777)
    probe.unlink()


def write_json(path: str | Path, record: Any) -> None:
    """A record of `r2q.records`, or plain data, as readable JSON; raises ValueError for NaN: JSON has none."""
    data = asdict(record) if is_dataclass(record) and not isinstance(record, type) else record
    write_atomic(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


@contextmanager
def held(path: str | Path) -> Iterator[None]:
    """Be the only process that writes `path` (a file or folder) for as long as the block lasts, or the process lives.

    Raises:
        ValueError: another process does; names it and its machine. Or the file system has no locks.
    """
    path = Path(path)
    place = path.with_name(f".{path.name}.lock")
    place.parent.mkdir(parents=True, exist_ok=True)
    with lock(place) or nullcontext() as file:
        if file is None:
            raise ValueError(f"process {_owner(place)} is at work on {path}; wait for it, or stop it first")
        file.truncate(0)
        file.write(f"{os.getpid()} of {socket.gethostname()}")  # nodes of a cluster share the folder
        file.flush()
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def busy(folder: str | Path) -> dict[str, str]:
    """What other processes hold below a folder: path and process, with its machine; raises as `lock`."""
    at_work = {}
    for place in sorted(Path(folder).glob("**/.*.lock")):
        with suppress(FileNotFoundError), lock(place, "r+") or nullcontext() as file:  # it may end in between
            if file is None:
                at_work[str(place.with_name(place.name[1:-5]))] = _owner(place)
    return at_work


def lock(path: Path, mode: str = "a+") -> IO[str] | None:
    """The open and locked file; None where another process has it. The kernel lets go of it whatever happens.

    Raises:
        ValueError: the file system has no locks.
    """
    while True:
        file = path.open(mode)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            file.close()
            raise ValueError(
                f"{path}: its file system gives no locks ({error.strerror}); have it mounted with them (Lustre: "
                "`-o flock`), or work on another one"
            ) from None
        if os.fstat(file.fileno()).st_nlink:  # else its last owner has just deleted it
            return file
        file.close()


def _owner(place: Path) -> str:
    with suppress(OSError):
        return place.read_text() or "unknown"
    return "unknown"
