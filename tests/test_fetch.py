"""A run's inputs fetched from a hub on localhost, pinned, and read without a network to the same numbers."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from r2q.config import ConfigError, parse
from r2q.evaluation.before import check
from r2q.files import NEWEST
from r2q.inputs.hub import Hub, lock_file, pin, snapshot
from r2q.kept import ROOT
from r2q.plan import Plan
from r2q.plan.checks import problems
from r2q.prepare import prepare
from r2q.records import Inputs, read_json
from tests.fake_hub import FakeHub, fake_hub
from tests.workflow import MOVES

ROWS = [{"goal": f"to get to {i} go on from {i - 1}", "sol1": "do", "sol2": "do not", "label": i % 2} for i in range(8)]
CARD = """---
configs:
- config_name: other
  data_files: [{split: test, path: other/test.jsonl}]
- config_name: main
  data_files: [{split: train, path: main/train.jsonl}, {split: validation, path: main/validation.jsonl}]
---
A data set of which the configuration that the task names is not the first one.
"""
TASK = {
    "task": "tinyqa",
    "dataset_path": "tiny/questions",
    "dataset_name": "main",
    "validation_split": "validation",
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{goal}}\nA:",
    "doc_to_choice": "{{[sol1, sol2]}}",
    "doc_to_target": "label",
}
CONFIG: dict[str, Any] = {
    "run": "pinned",
    "models": {"m": {"path": "tiny/llama"}},
    "recipes": {"rtn-g64": {"method": "rtn", "granularity": "g64"}},
    "tasks": {"tinyqa": {}},
    "task_include": ["tasks"],
    "perplexity": {"book": {"path": "tiny/questions:other:test", "field": "goal", "window": 16}},
    "limits": {"batch_size": 4},
}
MODEL_ONLY = {"tasks": {}, "perplexity": {"book": {"path": "book.txt"}}}
MODEL = ROOT / "mini/models/mini-llama"


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def data(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    files = {"main/train.jsonl": rows[:2], "main/validation.jsonl": rows, "other/test.jsonl": rows}
    return {"README.md": CARD.encode(), **{name: jsonl(part) for name, part in files.items()}}


class Place:
    """A working folder with a config, a cache of its own, and the address of a hub."""

    def __init__(self, folder: Path, hub: FakeHub, config: dict[str, Any] = CONFIG) -> None:
        self.folder, self.hub = folder, hub
        (folder / "tasks").mkdir(parents=True)
        (folder / "tasks/tinyqa.yaml").write_text(yaml.safe_dump(TASK))
        self.write(config)

    def write(self, config: dict[str, Any]) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        """Exit status and output of `python -m ...`."""
        cleared = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        here = {"HF_ENDPOINT": self.hub.address, "HF_HOME": str(self.folder / "hf"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=cleared | here | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout

    def fetch(self) -> tuple[int, list[str]]:
        """Exit status, and what is said of problems."""
        status, text = self.run("r2q", "fetch", "config.yaml")
        return status, [line.removeprefix("error: config.yaml: ") for line in text.splitlines() if "error: " in line]

    def lock(self) -> dict[str, str]:
        """Commits by id."""
        inputs = read_json(self.folder / "results/pinned/inputs.lock.json", Inputs)
        return {entry.id: entry.commit for entry in inputs.pinned}

    def scores(self, run: str) -> list[dict[str, str]]:
        """All numbers of a run, without names and times."""
        with (self.folder / f"results/{run}/scores.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if k not in ("run", "provenance", *MOVES)} for row in rows]

    def rows(self, name: str, revision: str) -> list[dict[str, Any]]:
        """Rows as `datasets` loads them from the hub."""
        load = f"datasets.load_dataset('tiny/questions', '{name}', split='validation', revision='{revision}')"
        status, text = self.run("timeit", "-n1", "-r1", f"import datasets, json; print(json.dumps(list({load})))")
        assert status == 0, text
        return json.loads(next(line for line in text.splitlines() if line.startswith("[")))

    def workflow(self, target: str) -> None:
        arguments = ["--snakefile", f"{ROOT}/Snakefile", "--configfile", "config.yaml", "--cores", "1", target]
        status, text = self.run("snakemake", *arguments, "--workflow-profile", "none")
        assert status == 0, text


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub() as server:
        server.push("model", "tiny/llama", MODEL)
        server.push("dataset", "tiny/questions", data(ROWS))
        yield server


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Place]:
    """A place that needs a model alone, and a hub of its own."""
    with fake_hub() as hub:
        yield Place(tmp_path / "place", hub, CONFIG | MODEL_ONLY)


@pytest.fixture(scope="module")
def fetched(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place where `fetch` went through; then the hub got newer commits."""
    place = Place(tmp_path_factory.mktemp("fetched"), hub)
    assert place.fetch() == (0, [])
    hub.push("model", "tiny/llama", ROOT / "mini/models/mini-opt")
    hub.push("dataset", "tiny/questions", data(ROWS[:5]))
    return place


def test_the_hub_its_cache_and_local_files_give_the_same_numbers(hub: FakeHub, fetched: Place) -> None:
    first = [hub.repositories[name].commits[0].sha for name in ("models/tiny/llama", "datasets/tiny/questions")]
    assert fetched.lock() == dict(zip(["tiny/llama", "tiny/questions"], first, strict=True))
    by_hub = fetched.rows("main", first[1]), fetched.rows("main", "main")  # the cache has loaded newer rows since
    assert by_hub == (ROWS, ROWS[:5])
    asked = len(hub.asked)
    fetched.workflow("results/pinned/scores.csv")
    assert len(hub.asked) == asked  # nobody looks at the hub, which has newer commits
    pinned = fetched.scores("pinned")
    assert {row["n"] for row in pinned if row["task"] == "tinyqa"} == {"8"}
    resolved = yaml.safe_load((fetched.folder / "results/pinned/config.yaml").read_text())
    assert resolved["models"]["m"]["revision"] == first[0]

    (fetched.folder / "data/tinyqa").mkdir(parents=True)
    (fetched.folder / "data/tinyqa/validation.jsonl").write_bytes(jsonl(ROWS))
    (fetched.folder / "book.jsonl").write_bytes(jsonl(ROWS))
    book = CONFIG["perplexity"]["book"] | {"path": "book.jsonl"}
    local = {"run": "local", "models": {"m": {"path": str(MODEL)}}, "perplexity": {"book": book}, "task_data": "data"}
    fetched.write(CONFIG | local)
    fetched.workflow("results/local/scores.csv")
    fetched.write(CONFIG)
    assert len(hub.asked) == asked
    assert fetched.scores("local") == pinned


def test_a_lock_keeps_its_commits_also_elsewhere(hub: FakeHub, fetched: Place, tmp_path: Path) -> None:
    lock = fetched.folder / "results/pinned/inputs.lock.json"
    before, asked = lock.stat().st_mtime_ns, len(hub.asked)
    assert fetched.fetch() == (0, [])
    assert lock.stat().st_mtime_ns == before
    assert len(hub.asked) == asked  # all is there, and known: the same command holds it against the lock
    elsewhere = Place(tmp_path / "elsewhere", hub)
    (elsewhere.folder / "results/pinned").mkdir(parents=True)
    shutil.copy(lock, elsewhere.folder / "results/pinned")
    assert elsewhere.fetch() == (0, [])
    assert elsewhere.lock() == fetched.lock()
    (elsewhere.folder / "results/pinned/inputs.lock.json").unlink()
    assert elsewhere.fetch() == (0, [])
    assert not set(elsewhere.lock().values()) & set(fetched.lock().values())


def test_a_commit_that_is_pinned_and_gone_is_named_with_the_way_out(alone: Place) -> None:
    first = alone.hub.push("model", "tiny/llama", MODEL)
    (alone.folder / "book.txt").write_text("a book")
    assert alone.fetch() == (0, [])
    files = json.loads((alone.folder / "results/pinned/inputs.lock.json").read_text())["pinned"][0]["files"]
    assert list(files) == sorted(files)  # the same lock each time
    second = alone.hub.push("model", "tiny/llama", MODEL.with_name("mini-opt"))
    del alone.hub.repositories["models/tiny/llama"].commits[0]
    assert alone.fetch() == (0, [])  # all of it is in the cache
    shutil.rmtree(alone.folder / "hf")
    lock = Path("results/pinned/inputs.lock.json")
    way = f"{first} (pinned: delete {lock} for a newer one)"
    assert alone.fetch() == (2, [f"models.m.path: tiny/llama has no revision {way} on the hub, or no longer"])
    (alone.folder / lock).unlink()
    assert alone.fetch() == (0, [])
    assert alone.lock() == {"tiny/llama": second}


def test_every_problem_of_the_hub_is_one_sentence(hub: FakeHub, tmp_path: Path) -> None:
    hub.push("model", "tiny/gated", MODEL, gated=True)
    bare = hub.push("model", "tiny/bare", {"config.json": b"{}", "pytorch_model.bin": b"\0"})
    weights = hub.push("model", "tiny/weights", {"model.safetensors": (MODEL / "model.safetensors").read_bytes()})
    hub.push("model", "tiny/forbidden", MODEL)  # a token that may not read it
    hub.push("dataset", "tiny/script", {"script.py": b"import datasets"})
    hub.failing["tiny/forbidden/resolve"] = (403, 99)
    models = {
        "gated": {"path": "tiny/gated"},
        "forbidden": {"path": "tiny/forbidden"},
        "absent": {"path": "tiny/absent"},
        "bare": {"path": "tiny/bare"},
        "weights": {"path": "tiny/weights"},
        "gone": {"path": "tiny/llama", "revision": "0" * 40},
    }
    paths = {"no": "tiny/nothing::test", "file": "tiny/questions:main:nothing.json", "script": "tiny/script::test"}
    texts = {name: {"path": path} for name, path in paths.items()}
    place = Place(tmp_path / "place", hub, CONFIG | {"models": models, "perplexity": texts, "tasks": {}})
    status, said = place.fetch()
    newest = hub.repositories["datasets/tiny/questions"].commits[-1].sha
    other = "model.safetensors (other weight formats are not read)"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    assert status == 2
    of_models = [
        f"models.gated.path: tiny/gated is gated: accept its terms at {hub.address}/tiny/gated, then {login}",
        f"models.forbidden.path: tiny/forbidden may not be read (HTTP 403): {login}",
        f"models.absent.path: the hub has no tiny/absent, or it is private: {login}",
        f"models.gone.path: tiny/llama has no revision {'0' * 40} on the hub, or no longer",
    ]
    assert said == [
        *of_models[:3],
        f"models.bare.path: tiny/bare at {bare[:12]} has no file {other}",
        f"models.weights.path: tiny/weights at {weights[:12]} has no file config.json",
        of_models[3],
        f"perplexity.no.path: the hub has no tiny/nothing, or it is private: {login}",
        f"perplexity.file.path: tiny/questions at {newest[:12]} has no file main/nothing.json",
        "perplexity.script.path: tiny/script cannot be fetched: Dataset scripts are no longer supported, but found "
        "script.py",
    ]
    assert not (place.folder / "results/pinned/inputs.lock.json").exists()
    place.write(CONFIG | {"models": models} | MODEL_ONLY)  # without `fetch`
    (place.folder / "book.txt").write_text("a book")
    status, text = place.run("r2q", "prepare", "--config", "config.yaml", "--out", "prepared.json")
    assert status == 2
    assert [line for line in of_models if f"error: config.yaml: {line}" in text.splitlines()] == of_models


@pytest.mark.parametrize("asked", ["api/models/tiny/llama", "paths-info", "api/datasets/tiny/questions/revision"])
def test_a_busy_hub_is_asked_again(asked: str, alone: Place) -> None:
    alone.hub.push("model", "tiny/llama", MODEL)
    alone.hub.push("dataset", "tiny/questions", data(ROWS))
    alone.write(CONFIG | {"tasks": {}})
    alone.hub.failing[asked] = (503, 1)
    assert alone.fetch() == (0, [])
    assert alone.hub.failing[asked] == (503, 0)
    assert alone.lock().keys() == {"tiny/llama", "tiny/questions"}


def test_a_hub_that_stays_busy_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    from r2q.inputs.fetch import fetch

    waited: list[float] = []

    def busy(*_: Any, **__: Any) -> None:
        error = HfHubHTTPError.__new__(HfHubHTTPError)
        error.response = SimpleNamespace(status_code=502)  # type: ignore[assignment]
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", busy)
    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG | MODEL_ONLY))
    with pytest.raises(ConfigError) as error:
        fetch("config.yaml")
    said = "tiny/llama cannot be fetched: the hub is busy (HTTP 502); try again later, what is there is kept"
    assert str(error.value) == f"config.yaml: models.m.path: {said}"
    assert waited == [1, 2, 4, 8, 8]


def test_data_sets_are_asked_for_again_without_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[int | str] = [503, 429, "rows"]
    waited: list[float] = []

    def load(*_: Any, **__: Any) -> str:
        answer = answers.pop(0)
        if isinstance(answer, int):
            error = OSError("busy")
            error.response = SimpleNamespace(status_code=answer)  # type: ignore[attr-defined]
            raise ConnectionError("no data") from error
        return answer

    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    assert NEWEST.load(load, "tiny/questions") == "rows"
    assert waited == [1, 2]


def test_a_model_that_lacks_a_part_of_its_weights_is_refused(alone: Place) -> None:
    parts = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    index = {"weight_map": {f"layer.{number}": part for number, part in enumerate(parts)}}
    small = {file.name: file.read_bytes() for file in MODEL.glob("*.json")}
    small["model.safetensors.index.json"] = json.dumps(index).encode()
    commit = alone.hub.push("model", "tiny/llama", small | {parts[1]: b"weights"})
    said = f"models.m.path: tiny/llama at {commit[:12]} has no file {parts[0]}, {parts[2]}"
    assert alone.fetch() == (2, [said])
    assert parts[1] not in alone.hub.sent
    alone.hub.push("model", "tiny/llama", small | dict.fromkeys(parts, b"weights"))
    (alone.folder / "results/pinned/.inputs.lock.json.unfinished").unlink()
    assert alone.fetch() == (0, [])


def test_a_run_without_a_lock_stays_with_the_commit_that_prepare_found(alone: Place) -> None:
    alone.hub.push("model", "tiny/llama", MODEL)
    (alone.folder / "book.txt").write_text("a book")
    alone.hub.failing["revision"] = (429, 1)
    status, said = alone.run("r2q", "prepare", "--config", "config.yaml", "--out", "prepared.json")
    assert status == 0, said
    assert "the hub is busy (HTTP 429): asked again" in said
    alone.hub.push("model", "tiny/llama", ROOT / "mini/models/mini-opt")
    how = ["--config", "config.yaml", "--prepared", "prepared.json", "--model", "m", "--recipe", "rtn-g64"]
    status, said = alone.run("r2q", "quantize", *how, "--seed", "0", "--out", "unit")
    assert status == 0, said
    assert json.loads((alone.folder / "unit/config.json").read_text())["model_type"] == "llama"


TYPED = """---
dataset_info:
  features:
  - {name: text, dtype: string}
  - {name: label, dtype: {class_label: {names: {"0": wrong, "1": right}}}}
  splits: [{name: test, num_bytes: 1, num_examples: 2}]
---
"""
BOTH = """
import datasets, json, yaml
from r2q.config import parse
from r2q.inputs.hub import Hub
pinned = Hub.of(parse(yaml.safe_load(open("config.yaml")), "config.yaml")).load
for load in (datasets.load_dataset, lambda path: pinned(datasets.load_dataset, path)):
    rows = load("tiny/typed")["test"]
    print("rows", json.dumps([list(rows), str(rows.features)]))
"""


def test_columns_have_the_types_that_the_card_of_a_data_set_states(alone: Place) -> None:
    typed = {"README.md": TYPED.encode(), "test.csv": b"text,label\n11,1\n12,0\n"}
    alone.hub.push("dataset", "tiny/typed", typed)
    text = {"book": {"path": "tiny/typed::test"}}
    alone.write(CONFIG | {"models": {"m": {"path": "m"}}, "tasks": {}, "perplexity": text})
    assert alone.fetch() == (0, [])
    (alone.folder / "both.py").write_text(BOTH)
    status, said = alone.run("both")
    assert status == 0, said
    newest, pinned = (json.loads(line[5:]) for line in said.splitlines() if line.startswith("rows "))
    assert pinned == newest
    assert pinned[0] == [{"text": "11", "label": 1}, {"text": "12", "label": 0}]
    assert "ClassLabel(names=['wrong', 'right'])" in pinned[1]


def test_an_interrupted_fetch_goes_on_with_the_same_commits(alone: Place) -> None:
    first = alone.hub.push("model", "tiny/llama", MODEL)
    alone.hub.broken.add("model.safetensors")
    status, said = alone.fetch()
    assert (status, len(said)) == (2, 1)
    assert said[0].startswith("tiny/llama cannot be fetched: ")
    alone.hub.broken.clear()
    alone.hub.sent.clear()
    alone.hub.push("model", "tiny/llama", ROOT / "mini/models/mini-opt")
    assert alone.fetch() == (0, [])
    assert alone.lock() == {"tiny/llama": first}
    assert alone.hub.sent == ["model.safetensors"]


def test_names_of_commits_mirrors_renamed_repositories_and_another_host_for_large_files(alone: Place) -> None:
    """What the real hub does and these names mean, all at once; then the cache, in another place, is enough."""
    hub = alone.hub
    hub.prefix, hub.elsewhere, hub.renamed = "/mirror/hf", True, {"old/llama": "tiny/llama"}
    first, second = (hub.push("model", "tiny/llama", MODEL.with_name(name)) for name in ("mini-llama", "mini-opt"))
    hub.repositories["models/tiny/llama"].refs = dict.fromkeys(("v1.0", "refs/pr/1"), first)
    names = {"tag": "v1.0", "request": "refs/pr/1", "short": first[:7], "newest": None}
    models = {name: {"path": "tiny/llama", "revision": revision} for name, revision in names.items()}
    alone.write(CONFIG | MODEL_ONLY | {"models": models | {"old": {"path": "old/llama"}}})
    (alone.folder / "book.txt").write_text("a book")
    assert alone.fetch() == (0, [])
    asked = len(hub.asked)
    (alone.folder / "hf").rename(alone.folder / "moved")
    moved = {"HF_HOME": str(alone.folder / "moved"), "HF_HUB_OFFLINE": "1"}
    code = (
        "from r2q.inputs.hub import Hub, pin; from r2q.config import load; "
        "from r2q.models.source import model_folder; c = load('config.yaml'); "
        "print({n: model_folder(m).name for n, m in pin(c, Hub.of(c)).models.items()})"
    )
    status, text = alone.run("timeit", "-n1", "-r1", code, **moved)
    assert status == 0, text
    assert str(dict.fromkeys(("tag", "request", "short"), first) | dict.fromkeys(("newest", "old"), second)) in text
    assert len(hub.asked) == asked


def test_too_little_room_and_another_content_are_refused(alone: Place) -> None:
    alone.hub.push("model", "tiny/llama", MODEL)
    alone.hub.claimed["model.safetensors"] = 10**18
    status, said = alone.fetch()
    assert (status, "model.safetensors" in alone.hub.sent) == (2, False)
    assert said[0].startswith("1000000000.0")
    assert "GB are to be downloaded to" in said[0]
    alone.hub.claimed.clear()
    shutil.rmtree(alone.folder / "hf")
    alone.hub.damaged.add("model.safetensors")
    status, said = alone.fetch()
    assert status == 2
    assert said[0].startswith("tiny/llama: model.safetensors has another content (sha256 ")
    alone.hub.damaged.clear()
    assert alone.fetch() == (0, [])


def test_what_the_lock_lacks_or_the_cache_lost_stops_the_run(fetched: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fetched.folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(fetched.folder / "hf/hub"))
    added = {"models": CONFIG["models"] | {"n": {"path": "tiny/other"}, "v": {"path": "tiny/llama", "revision": "v2"}}}
    config = parse(CONFIG | added, "c.yaml")
    with pytest.raises(ConfigError) as error:
        pin(config, Hub.of(config))
    end = f"is not in {lock_file(config)}; run `python -m r2q fetch` again"
    assert str(error.value).splitlines() == [
        f"models.n.path: tiny/other {end}",
        f"models.v.path: tiny/llama at v2 {end}",
    ]
    config = pin(parse(CONFIG, "c.yaml"), Hub.of(config))
    hub = Hub.of(config)
    assert [*hub.missing(), *hub.check(without=())] == []
    Path("pinned.yaml").write_text(yaml.safe_dump(config.resolved()))
    with pytest.raises(ConfigError, match=r"tiny/questions with .*nothing.* is not in .*inputs.lock.json; run"):
        hub.load(lambda *_, **__: None, "tiny/questions", "nothing")
    rows = snapshot(hub.find("dataset", "tiny/questions", None)) / "main/validation.jsonl"
    weights = snapshot(hub.find("model", "tiny/llama", None)) / "model.safetensors"
    for file in (rows, weights):
        whole = file.read_bytes()
        file.unlink()
        assert [*hub.missing()] == [
            f"{lock_file(config)}: {hub_id(file)}: {file} missing or cut off; run `python -m r2q fetch` again"
        ]
        assert problems(Plan(config), []) == []  # of a finished run, tables are made without
        record = Path("results", config.run, "m/rtn-g64/seed0/evaluation.json")
        record.rename("away.json")
        assert problems(Plan(config), []) == [*hub.missing()]
        Path("away.json").rename(record)
        fewer = pin(parse(CONFIG | {"tasks": {"tinyqa": {"items": 4}}}, "c.yaml"), Hub.of(config))
        assert problems(Plan(fewer), []) == [*hub.missing()]  # asks otherwise than the record that is there
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of the same length
        assert [*hub.missing()] == []
    with pytest.raises(ConfigError, match=r"models.m.path: .*model.safetensors has sha256 .*, not .* as when it was"):
        prepare("pinned.yaml", "prepared.json")
    with pytest.raises(ConfigError, match=r"main/validation.jsonl has sha256 .*, not .* as when it was fetched"):
        check("pinned.yaml", "m", "checked.json")


def hub_id(file: Path) -> str:
    """`owner/name` of a file in the hub's cache."""
    return "/".join(file.parts[file.parts.index("hub") + 1].split("--")[1:])
