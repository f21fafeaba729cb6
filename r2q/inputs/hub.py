"""Models and data of the Hugging Face hub, as `fetch` pinned them: the one door from an id to files.

Without `inputs.lock.json` an id means what the hub, or its cache, has newest; of a model, when `prepare` looked. With
it, an id means one commit, and a data set is loaded from the files of that commit: `datasets` by itself, without a
network, takes whatever version it loaded last, whatever revision it is asked for. Nothing here imports torch.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from r2q.config import CALIBRATION_PRESETS, HUB_GGUF, HUB_TEXT, Config, ConfigError, Model, method_info
from r2q.failures import busy, causes
from r2q.files import HUB_FILE, Newest
from r2q.intact import missing_files
from r2q.kept import file_sha256
from r2q.records import Inputs, Pinned, read_json

LOCK = "inputs.lock.json"
AGAIN = "run `python -m r2q fetch` again"
ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
CHOICE = ("data_dir", "data_files")  # options of `load_dataset` that choose files
REPLACED = (*CHOICE, "revision", "token", "trust_remote_code")

Kind = Literal["model", "dataset"]


def lock_file(config: Config) -> Path:
    """Where `fetch` writes what it pinned for a run, and all others look."""
    return Path("results", config.run, LOCK)


@dataclass(frozen=True)
class HubInput:
    """Something of the hub that a config names."""

    key: str  # of the config
    kind: Kind
    id: str
    asked: str | None  # the revision in the config
    file: str | None = None  # a single one
    name: str | None = None  # a data set's configuration


def hub_inputs(config: Config) -> Iterator[HubInput]:
    """All of the hub that a config's jobs read: models, checkpoints, texts. What tasks read, they say when loaded."""
    for name, entry in config.models.items():
        if entry.kind == "hub":
            yield HubInput(f"models.{name}.path", "model", entry.path, entry.revision)
        elif entry.kind == "hub_gguf":
            repository, file = HUB_GGUF.fullmatch(entry.path).groups()  # type: ignore[union-attr]
            yield HubInput(f"models.{name}.path", "model", repository, entry.revision, file)
    for name, options in _checkpoints(config):
        yield HubInput(f"recipes.{name}.options.path", "model", options["path"], options.get("revision"))
    for key, path in config.texts_to_read().items():
        path = CALIBRATION_PRESETS.get(path, path) if key == "calibration.path" else path
        if HUB_FILE.fullmatch(path):
            repository, folder, file = path.split(":")
            yield HubInput(key, "dataset", repository, None, f"{folder}/{file}")
        elif HUB_TEXT.match(path):
            repository, configuration, _ = path.split(":")
            yield HubInput(key, "dataset", repository, None, name=configuration or None)


def _checkpoints(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """Recipes that take a checkpoint of the hub, with their options."""
    for name in config.used_recipes():
        recipe = config.recipes[name]
        if method_info(recipe.method).needs == "checkpoint" and Model(path=recipe.options["path"]).kind == "hub":
            yield name, recipe.options


def call(name: str | None, options: Mapping[str, Any]) -> str:
    """What chooses the files of a data set in a call of `load_dataset`, as one stable line."""
    chosen = {option: options[option] for option in CHOICE if options.get(option) is not None}
    return json.dumps({"name": name, **chosen}, sort_keys=True)


def snapshot(pinned: Pinned) -> Path:
    """The folder of a repository at its commit, in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=pinned.id, repo_type=pinned.kind)
    return Path(HF_HUB_CACHE, folder, "snapshots", pinned.commit)


def answer(error: Exception, id: str, asked: str | None) -> str | None:
    """One sentence for what the hub answered about a repository, and what to do about it; None for other errors."""
    from huggingface_hub import errors
    from huggingface_hub.constants import ENDPOINT

    login = "log in with `hf auth login`, or set HF_TOKEN"
    for cause in causes(error):
        if isinstance(cause, errors.GatedRepoError):
            return f"{id} is gated: accept its terms at {ENDPOINT}/{id}, then {login}"
        if isinstance(cause, errors.RepositoryNotFoundError):
            return f"the hub has no {id}, or it is private: {login}"
        if isinstance(cause, errors.RevisionNotFoundError):
            return f"{id} has no revision {asked or 'main'} on the hub, or no longer"
        if isinstance(cause, errors.HfHubHTTPError) and (status := cause.response.status_code) in (401, 403):
            return f"{id} may not be read (HTTP {status}): {login}"
    if busy(error) is not None:
        return f"{id} cannot be fetched: the hub is busy (HTTP {busy(error)}); try again later, what is there is kept"
    return None


class Hub(Newest):
    """Data sets as they are pinned in the file `lock`; the newest where nothing is."""

    def __init__(self, inputs: Inputs | None, lock: Path) -> None:
        self.inputs, self.lock = inputs, lock
        self.pinned = [] if inputs is None else inputs.pinned

    @classmethod
    def of(cls, config: Config) -> Self:
        """As `fetch` pinned it for this run; raises Damaged where the lock is cut off or edited."""
        lock = lock_file(config)
        return cls(read_json(lock, Inputs) if lock.is_file() else None, lock)

    def known(self, kind: Kind, id: str, asked: str | None) -> Pinned | None:
        """The pinned repository that the config means by id and revision."""
        return next((e for e in self.pinned if (e.kind, e.id) == (kind, id) and asked in (e.asked, e.commit)), None)

    def find(self, kind: Kind, id: str, asked: str | None) -> Pinned:
        """The same; raises ConfigError where it is not pinned."""
        entry = self.known(kind, id, asked)
        if entry is None:
            raise ConfigError(self.lacks(id, asked))
        return entry

    def lacks(self, what: str, asked: str | None = None) -> str:
        """The sentence for what is not pinned, at the revision that is asked for."""
        return f"{what}{'' if asked is None else f' at {asked}'} is not in {self.lock}; {AGAIN}"

    def file(self, repository: str, name: str) -> Path:
        """One file of a data set."""
        if self.inputs is None:
            return super().file(repository, name)
        entry = self.find("dataset", repository, None)
        if name not in entry.files:
            raise ConfigError(self.lacks(f"{name} of {repository}"))
        return snapshot(entry) / name

    def load(self, load: Callable[..., Any], path: Any, name: str | None = None, **options: Any) -> Any:
        """What `load`, which is `datasets.load_dataset`, gives of the pinned files.

        Raises:
            ConfigError: there is a lock, and it has not what is asked for.
        """
        if self.inputs is None or not is_id(path):
            return super().load(load, path, name, **options)
        entry, asked = self.find("dataset", path, options.get("revision")), call(name, options)
        if asked not in entry.loads:
            raise ConfigError(self.lacks(f"{path} with {asked}"))
        rest = {option: value for option, value in options.items() if option not in REPLACED}
        rows = load(str(snapshot(entry)), name, data_files=entry.loads[asked], **rest)
        if not entry.features.get(asked):
            return rows
        from datasets import Features

        return rows.cast(Features.from_dict(entry.features[asked]))  # `data_files` makes `datasets` pass over the card

    def check(self, without: Collection[str]) -> Iterator[str]:
        """Read every pinned file but those of the repositories `without`; a sentence for each that is another now."""
        for entry in self.pinned:
            if entry.id not in without:
                yield from _changed(entry, {name: file_sha256(snapshot(entry) / name) for name in entry.files})

    def changed(self, model: Model, files: Mapping[str, Any]) -> Iterator[str]:
        """A sentence for every file of a model that is not as it was fetched, by what `prepare` finds of its files."""
        if self.inputs is not None and model.kind == "hub":
            digests = {name: file["sha256"] for name, file in files.items()}
            yield from _changed(self.find("model", model.path, model.revision), digests)

    def missing(self) -> Iterator[str]:
        """A sentence for every repository of which a pinned file is not in the cache with its length."""
        for entry in self.pinned:
            lost = missing_files(snapshot(entry), {name: file.bytes for name, file in entry.files.items()})
            if lost:
                more = f" and {len(lost) - 1} more files" if len(lost) > 1 else ""
                yield f"{self.lock}: {entry.id}: {snapshot(entry) / lost[0]}{more} missing or cut off; {AGAIN}"


def _changed(entry: Pinned, digests: Mapping[str, str]) -> Iterator[str]:
    """A sentence for every pinned file of a repository whose sha256 is another now."""
    for name, digest in digests.items():
        if name in entry.files and digest != entry.files[name].sha256:
            was = entry.files[name].sha256
            yield f"{snapshot(entry) / name} has sha256 {digest}, not {was} as when it was fetched; {AGAIN}"


def is_id(path: Any) -> bool:
    """Whether a data set's path means one of the hub: no folder here, and none of `datasets`' own readers of files."""
    return isinstance(path, str) and ID.fullmatch(path) is not None and "/" in path and not Path(path).exists()


def pin(config: Config, hub: Hub) -> Config:
    """The config with the commits of its lock as revisions of models and checkpoints.

    Raises:
        ConfigError: the lock lacks something that the config names, a sentence for each.
    """
    if hub.inputs is None:
        return config
    problems = []
    for source in hub_inputs(config):
        entry = hub.known(source.kind, source.id, source.asked)
        lacks = entry is None or (source.file is not None and source.file not in entry.files)
        if lacks or (source.kind == "dataset" and source.file is None and call(source.name, {}) not in entry.loads):  # type: ignore[union-attr]
            what = ":".join(part for part in (source.id, source.file or source.name) if part)
            problems.append(f"{source.key}: {hub.lacks(what, source.asked)}")
    if problems:
        raise ConfigError("\n".join(problems))
    models = {}
    for name, model in config.models.items():
        models[name] = model
        if model.kind in ("hub", "hub_gguf"):
            commit = hub.find("model", model.path.split(":")[0], model.revision).commit
            models[name] = model.model_copy(update={"revision": commit})
    recipes = dict(config.recipes)
    for name, options in _checkpoints(config):
        commit = hub.find("model", options["path"], options.get("revision")).commit
        recipes[name] = recipes[name].model_copy(update={"options": options | {"revision": commit}})
    return config.model_copy(update={"models": models, "recipes": recipes})
