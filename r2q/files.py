"""Reading text and rows from local files, plain or compressed, never through a cache.

`datasets` keys its cache by path and modification time: a file that was made again with another content and an old time
gives the old rows. Files are small here, so they are read each time, and hashed by content.
"""

import gzip
import hashlib
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r2q.failures import one_line, patient

COMPRESSION = ("", ".xz", ".gz")
HUB_FILE = re.compile(r"[\w.-]+/[\w.-]+:[\w.-]+:[\w.-]+\.json(\.gz)?")


def unpacked(path: str | Path) -> bytes:
    """Content of a file, decompressed when its name ends in .xz or .gz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the compressed file is damaged.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        if path.suffix == ".xz":
            return lzma.decompress(content)
        if path.suffix == ".gz":
            return gzip.decompress(content)
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: damaged compressed file ({error})") from None
    return content


def _text(path: str | Path) -> str:
    try:
        return unpacked(path).decode("utf-8-sig")  # a byte order mark, as editors of Windows write it, is no text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None


def lines_of(text: str) -> list[str]:
    """Lines as editors count them: `str.splitlines` also cuts at form feeds, U+0085 and U+2028, which texts hold."""
    return re.split("\r\n?|\n", text)


def sha256(*parts: bytes | str) -> str:
    """Hash of the parts, each with its length, so that no two different lists agree."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def find_compressed(stem: Path) -> Path | None:
    """`stem` itself, or with .xz or .gz behind it; None when none of the three is a file."""
    for ending in COMPRESSION:
        path = stem.with_name(stem.name + ending)
        if path.is_file():
            return path
    return None


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a .json or .jsonl file (also .xz, .gz): one object per line, or one list of objects.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names file and line of the first thing that is not a JSON object.
    """
    text = _text(path)
    if text.lstrip().startswith("["):
        rows = list(enumerate(_json(text, str(path)), 1))
    else:
        lines = enumerate(text.split("\n"), 1)
        rows = [(number, _json(line, f"{path}, row {number}")) for number, line in lines if line.strip()]
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: {type(row).__name__} instead of an object")
        _check_text(row, path, number)
    if not rows:
        raise ValueError(f"{path}: no rows")
    return [row for _, row in rows]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        raise ValueError(f"{where}: not JSON lines ({error})") from None


def _check_text(value: Any, source: str | Path, number: int) -> None:
    """Refuse half of a surrogate pair, which JSON can hold and no tokenizer can read."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{source}, row {number}: holds the lone surrogate {half}, which is not text") from None


class Newest:
    """Data sets of the hub: the newest that it has, or its cache. `r2q.inputs.hub` has pinned ones."""

    def file(self, repository: str, name: str) -> Path:
        """One file of a data set."""
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repository, name, repo_type="dataset"))

    def load(self, load: Callable[..., Any], path: Any, name: str | None = None, **options: Any) -> Any:
        """What `load`, which is `datasets.load_dataset`, gives."""
        return patient(load)(path, name, **options)


NEWEST = Newest()


def read_documents(path: str | Path, field: str = "text", hub: Newest = NEWEST) -> list[str]:
    """Documents of a text source.

    A .txt file is one document. A .jsonl or .parquet file has one per row, in the column `field`. A hub data set
    `owner/name:config:split` has one per row, too (config may be empty); so has one file of it,
    `owner/name:folder:file.json.gz`. Both come from `hub`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, or lacks the column; the message names it.
    """
    text = str(path)
    if HUB_FILE.fullmatch(text):  # a data set that is too large to be fetched as a whole, such as C4
        repository, folder, file = text.split(":")
        return read_documents(hub.file(repository, f"{folder}/{file}"), field)
    name = text.removesuffix(".xz").removesuffix(".gz")
    if name.endswith(".txt"):
        return [_text(path)]
    if name.endswith((".jsonl", ".json")):
        rows = read_rows(path)
        return _column(text, field, sorted({key for row in rows for key in row}), [row.get(field) for row in rows])
    if name.endswith(".parquet"):
        import pyarrow as pa
        from pyarrow import parquet

        content = io.BytesIO(unpacked(path))
        try:
            table = parquet.read_table(content)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: damaged parquet file ({one_line(error)})") from None
        columns = table.column_names
        values = (
            [_parquet_value(value, path, n) for n, value in enumerate(table.column(field), 1)]
            if field in columns
            else []
        )
        return _column(text, field, columns, values)
    if text.count(":") == 2:
        import datasets

        repository, config, split = text.split(":")
        rows = hub.load(datasets.load_dataset, repository, config or None, split=split)
        return _column(text, field, rows.column_names, list(rows[field]) if field in rows.column_names else [])
    raise ValueError(f"{path}: neither a .txt, .jsonl or .parquet file (also .xz, .gz) nor owner/name:config:split")


def read_joined(text: Any, hub: Newest) -> str:
    """The documents of a text of the config (`r2q.config.texts.JoinedText`), joined; raises as `read_documents`."""
    return text.separator.join(read_documents(text.path, text.field, hub))


def _parquet_value(value: Any, path: str | Path, number: int) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:  # a parquet file holds bytes, half of a surrogate pair among them
        raise ValueError(f"{path}, row {number}: not UTF-8 text ({error})") from None


def _column(source: str, field: str, columns: list[str], values: list[Any]) -> list[str]:
    if field not in columns:
        raise ValueError(f"{source} has no column {field}; it has {', '.join(columns)}")
    if not values:
        raise ValueError(f"{source}: no rows")
    for number, value in enumerate(values, 1):
        if not isinstance(value, str):
            raise ValueError(f"{source}, row {number}: column {field} holds {type(value).__name__} instead of text")
        _check_text(value, source, number)
    return values
