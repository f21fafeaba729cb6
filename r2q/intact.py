"""Whether files are still what was written: their lengths, their hashes, the manifests beside them. No torch."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from r2q.failures import one_line
from r2q.kept import file_sha256, write_atomic

OTHERWISE = "results of another config, or other code, than today's: looked at again"


class Damaged(ValueError):
    """A file that is cut off, edited, or of another format; the message names it and what is wrong."""


def check_tensors(path: str | Path, asked: str = "") -> None:
    """Hold the length of a safetensors file against its header, and what it was asked, at no cost.

    Raises:
        Damaged: it is cut off, no such file, or says that it was asked otherwise.
    """
    start, places, metadata = tensor_places(path)
    size, whole = Path(path).stat().st_size, start + max((end for _, end in places.values()), default=0)
    if size != whole:
        raise Damaged(f"{path}: damaged: {size} bytes instead of {whole}")
    if asked and any(json.loads(facts).get("asked", asked) != asked for facts in metadata.values()):
        raise Damaged(OTHERWISE)


def tensor_places(path: str | Path) -> tuple[int, dict[str, tuple[int, int]], dict[str, str]]:
    """Where the tensors of a safetensors file begin, from there the first and the last byte of each, and its metadata.

    Raises:
        Damaged: the file has no such header.
    """
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, Path(path).stat().st_size)))
        metadata = header.pop("__metadata__", {})
        return 8 + length, {name: tuple(entry["data_offsets"]) for name, entry in header.items()}, metadata
    except (ValueError, TypeError, LookupError, AttributeError):
        raise Damaged(f"{path}: damaged: no safetensors file") from None


@contextmanager
def opened(path: str | Path, verb: str) -> Iterator[Any]:
    """A safetensors file that a verb of ours wrote, open to be read with torch; what is checked inside belongs to it.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is cut off, edited, or lacks something, or a ValueError is raised inside.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: `{verb}` makes it")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, LookupError, ValueError) as error:
        raise Damaged(f"{path}: damaged or truncated ({one_line(error)}); `{verb}` makes it again") from None


def digest_files(folder: Path, names: Iterable[str]) -> str:
    """One sha256 over names and contents of files below a folder."""
    return digest_sums({name: file_sha256(folder / name) for name in names})


def digest_sums(sums: Mapping[str, str]) -> str:
    """One sha256 over names of files and the sha256 of each."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def touched_files(record: Path, files: Iterable[str]) -> list[str]:
    """Those of a unit's files that were written after their record, and may be others by now."""
    written = record.stat().st_mtime_ns
    return [name for name in files if (record.parent / name).stat().st_mtime_ns > written]


def missing_files(folder: Path, files: dict[str, int]) -> list[str]:
    """Those of a unit's files that are not there with their length."""
    return [n for n, size in files.items() if not (folder / n).is_file() or (folder / n).stat().st_size != size]


def sign(manifest: str | Path, files: Iterable[str | Path]) -> None:
    """Write the sha256 of derived files into `manifest`, beside them, in the form of `sha256sum --check`."""
    write_atomic(manifest, "".join(f"{file_sha256(Path(file))}  {Path(file).name}\n" for file in files))


def changed_files(manifest: str | Path) -> list[str]:
    """The files that a manifest names and that are there, but not as they were written."""
    written = signed_files(manifest).items()
    return [str(file) for file, sha256 in written if file.is_file() and file_sha256(file) != sha256]


def signed_files(manifest: str | Path) -> dict[Path, str]:
    """The files that a manifest names, with their sha256; none where there is no manifest."""
    return {Path(manifest).with_name(name): sha256 for name, sha256 in _digests(Path(manifest)).items()}


def check_signature(file: str | Path) -> None:
    """Refuse a file that is not as the verb wrote it that signed it; a file that nobody signed is taken as it is.

    Raises:
        Damaged: edited or cut off since.
    """
    file = Path(file)
    for manifest in sorted(file.parent.glob("*.sha256")):
        written = _digests(manifest).get(file.name)
        if written is not None and written != file_sha256(file):
            raise Damaged(f"{file} is not what was written (see {manifest.name}): start its run again")


def _digests(manifest: Path) -> Mapping[str, str]:
    """sha256 by name, of the lines of a manifest that are whole."""
    if not manifest.is_file():
        return {}
    lines = [line.split("  ", 1) for line in manifest.read_text(errors="replace").splitlines()]
    return {line[1]: line[0] for line in lines if len(line) == 2}
