"""The evaluation of units: what they share (tasks, texts, encoded prompts), and the scores of each."""

import json
import logging
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers.utils import logging as transformers_logging

from r2q.config import Config, refuse, some
from r2q.evaluation.adapter import Scorer, encode
from r2q.evaluation.attempt import NO_NUMBER, reason, release
from r2q.evaluation.fidelity import check_reference
from r2q.evaluation.one_by_one import BOOTSTRAP, evaluate_tasks
from r2q.evaluation.per_item import task_items
from r2q.evaluation.scores import task_scores
from r2q.evaluation.sharing import plain
from r2q.evaluation.tasks import SEEDS, TaskSet, load_tasks
from r2q.evaluation.texts import measure
from r2q.failures import one_line, transient
from r2q.files import read_joined, sha256
from r2q.inputs.hub import Hub
from r2q.intact import digest_files, missing_files
from r2q.kept import key, write_atomic, write_json
from r2q.measure import Measured, versions
from r2q.models.checks import max_positions, read_tokenizer, small_files
from r2q.models.devices import device_name, pick_device
from r2q.models.load import load_packed
from r2q.models.load import quiet as quiet_loading
from r2q.models.packed import PackedWeight, make_dense, make_dense_checked
from r2q.models.save import folder_digest
from r2q.plan import Plan, Unit
from r2q.plan.sources import code
from r2q.records import FAILED, ITEMS, OK, RAW, SAMPLES, Evaluation, Report, TaskScore, read_if_whole, write_record
from r2q.tokens import Encoder, beyond_positions

LIBRARIES = ("torch", "transformers", "tokenizers", "lm_eval", "datasets", "numpy")


def asked_of(config: Config, model: str, report: Report) -> str:
    """What an evaluation of this unit is asked, as `Plan.asked` has it."""
    return Plan(config).asked("evaluate", Unit(model, report.recipe, report.seed))


def blank(config: Config, model: str, report: Report, **fields: Any) -> Evaluation:
    """An evaluation of a unit without results, but for `fields`."""
    empty: dict[str, Any] = {
        "key": "",
        "status": OK,
        "reason": "",
        "scores": [],
        "seconds": None,
        "task_seconds": {},
        "peak_mib": None,
        "device": None,
        "dtype": None,
        "batch_size": config.limits.batch_size,
        "add_bos": config.models[model].add_bos,
        "seeds": SEEDS,
        "versions": versions(*LIBRARIES),
        "hashes": {"weights": report.hashes.get("weights"), "tasks": None, "code": None},
        "truncated": {},
        "files": {},
        "asked": asked_of(config, model, report),
    }
    return Evaluation(**empty | fields)


class Session:
    """What the units of one model share: tasks, texts, encoded prompts. No GPU is touched before the first unit."""

    def __init__(self, config: Config, model: str, reference: str | Path | None = None) -> None:
        silence()
        self.config, self.model = config, model
        self.entry = config.models[model]
        self.teacher = check_reference(config, model, reference)
        self.tasks = load_tasks(config) if config.tasks else TaskSet({}, {})
        hub = Hub.of(config)
        self.texts = {name: read_joined(text, hub) for name, text in config.perplexity.items()}
        settings = {name: text.model_dump(mode="json", exclude={"path"}) for name, text in config.perplexity.items()}
        read = [] if self.teacher is None else [self.teacher.tokens.numpy().tobytes()]
        self.tasks_hash = sha256(self.tasks.hash, json.dumps(settings, sort_keys=True), *self.texts.values(), *read)
        self.code = code("evaluate")
        self.versions = versions(*LIBRARIES)
        self._encoders: dict[str, Any] = {}
        self._checked_packed = False  # whether packed layers of one unit were seen to compute what their weights do
        self._ids: dict[str, dict[str, list[int]]] = {}

    @cached_property
    def device(self) -> Any:
        return pick_device(self.config.device)

    def encode(self, folder: Path) -> None:
        """Encode all prompts and texts with the tokenizer of a unit, for all units that have the same."""
        digest, encoder = self._encoder(folder)
        encode(encoder, [request for task in self.tasks.dictionary["tasks"].values() for request in task.instances])
        self._texts_as_ids(digest, encoder)

    def unit(self, folder: Path, report: Report) -> str:
        """Evaluate one unit, or leave its result as it is; returns what to tell the user."""
        silence()
        torch.set_num_threads(self.config.limits.threads)
        written = report.hashes["weights"]
        if written is None or folder_digest(folder) != written:
            raise ValueError(
                f"{folder}: config, weights or tokenizer are not those of report.json; run `quantize` again"
            )
        identity = self._identity(folder, written)
        unit_key = key(identity)
        known = read_if_whole(folder / "evaluation.json", Evaluation)
        if known is not None and known.key == unit_key and not known.retry and _whole(folder, known):
            asked = self.config.limits.samples and known.status == OK
            if not asked or SAMPLES in known.files:
                if known.asked != (now := asked_of(self.config, self.model, report)):
                    write_record(folder / "evaluation.json", replace(known, asked=now))
                return f"kept, {_summary(known)}"
        found, raw, items, lines = self._run(folder)
        write_json(folder / RAW, raw)
        write_atomic(folder / ITEMS, json.dumps(items, separators=(",", ":")) + "\n")
        if lines is not None:
            write_atomic(folder / SAMPLES, lines)
        else:
            (folder / SAMPLES).unlink(missing_ok=True)
        files = {name: (folder / name).stat().st_size for name in (RAW, ITEMS, SAMPLES) if (folder / name).is_file()}
        found |= {"key": unit_key, "device": identity["device"], "versions": self.versions, "files": files}
        found["limits"] = {"threads": self.config.limits.threads} if self.device.type == "cpu" else {}
        found["hashes"] = {"weights": written, "tasks": self.tasks_hash, "code": self.code}
        found["hashes"]["files"] = digest_files(folder, files)
        record = blank(self.config, self.model, report, **found)
        write_record(folder / "evaluation.json", record)
        return _summary(record)

    def _identity(self, folder: Path, weights: str) -> dict[str, Any]:
        """Everything that can move a number of a unit."""
        return {
            "weights": weights,
            "files": _folder_hash(folder),
            "tasks": self.tasks_hash,
            "reference": None if self.teacher is None else self.teacher.digest,
            "shown": {name: task.metric for name, task in self.config.tasks.items()},
            "dtype": self.entry.dtype,
            "add_bos": self.entry.add_bos,
            "batch_size": self.config.limits.batch_size,
            "device": device_name(self.device),
            "seeds": SEEDS,
            "bootstrap": BOOTSTRAP,
            "code": self.code,
            "versions": self.versions,
        }

    def _run(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], str | None]:
        """(fields of the evaluation, raw results, items, samples as text)."""
        found: dict[str, Any] = {"scores": [], "task_seconds": {}}
        raw: dict[str, Any] = {}
        items: dict[str, Any] = {}
        lines = None
        with Measured() as cost:
            try:
                raw, items, lines = self._scores(folder, found)
            except NO_NUMBER as error:
                found |= {"status": FAILED, "reason": one_line(error), "retry": transient(error), "scores": []}
            finally:
                release()
        return found | cost.spent, raw, items, lines

    def _scores(self, folder: Path, found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str | None]:
        """Load the unit, fill `found`; returns raw results, items and samples. Raises where nothing has a value."""
        model = load_packed(folder, self.entry.dtype, self.device)
        if any(isinstance(module, PackedWeight) for module in model.modules()):
            (make_dense if self._checked_packed else make_dense_checked)(model)
            self._checked_packed = True
        encoder_key, encoder = self._encoder(folder)
        found |= {"dtype": str(model.dtype).removeprefix("torch."), "add_bos": encoder.adds_bos}
        positions = max_positions(model.config)
        for name, text in self.config.perplexity.items():
            refuse("evaluate", beyond_positions(f"perplexity.{name}.window", text.window, positions, self.model))
        raw: dict[str, Any] = {}
        items: dict[str, Any] = {}
        lost: list[Exception] = []
        lines = None
        if self.config.tasks:
            scorer = Scorer(model, encoder, self.config.limits.batch_size)
            raw, failed, seconds = evaluate_tasks(scorer, self.tasks, self.config.limits.samples)
            lost += failed.values()
            items |= task_items(raw, self.tasks)
            samples = raw.pop("samples", None)
            lines = None if samples is None else _lines(samples)
            reasons = {name: reason(error) for name, error in failed.items()}
            found["scores"] += [TaskScore(**row) for row in task_scores(raw, self.tasks, self.config, reasons)]
            found["task_seconds"] |= seconds
            found["truncated"] = {task: count for task, count in scorer.truncated.items() if count}
        ids = self._texts_as_ids(encoder_key, encoder)
        for name, part in measure(model, self.config, ids, self.teacher).items():
            found["scores"] += [TaskScore(**row) for row in part.rows]
            found["task_seconds"][name] = part.seconds
            items |= {name: part.items} if part.items else {}
            lost += [] if part.error is None else [part.error]
        if all(score.value is None for score in found["scores"]) and any(isinstance(e, NO_NUMBER) for e in lost):
            raise next(error for error in lost if isinstance(error, NO_NUMBER))
        found["retry"] = any(map(transient, lost))
        del model
        torch.manual_seed(SEEDS["torch"])
        return plain(raw), items, lines

    def _texts_as_ids(self, digest: str, encoder: Any) -> dict[str, list[int]]:
        """Tokens of every text of `perplexity`."""
        if digest not in self._ids:
            self._ids[digest] = {name: encoder.encode(text) for name, text in self.texts.items()}
        return self._ids[digest]

    def _encoder(self, folder: Path) -> tuple[str, Any]:
        """The encoder of a unit's tokenizer, shared by all units whose tokenizer files are the same."""
        digest = _folder_hash(folder, without=("config.json", "generation_config.json"))
        if digest not in self._encoders:
            self._encoders[digest] = Encoder(read_tokenizer(folder), self.entry.add_bos)
        return digest, self._encoders[digest]


def _whole(folder: Path, known: Evaluation) -> bool:
    """Whether the raw results are still there as they were."""
    there = not missing_files(folder, known.files)
    return there and digest_files(folder, known.files) == known.hashes.get("files")


def _lines(samples: dict[str, list[dict[str, Any]]]) -> str:
    """samples.jsonl: one line per task, filter and document."""
    rows = ({"task": task, **plain(sample)} for task, found in samples.items() for sample in found)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _folder_hash(folder: Path, without: tuple[str, ...] = ()) -> str:
    """Hash of the small files that a model and its tokenizer are read from."""
    files = [file for file in small_files(folder) if file.name not in without]
    return sha256(*(part for file in files for part in (file.name, file.read_bytes())))


def silence() -> None:
    """lm-eval, datasets and transformers report every step; a verb prints one line per unit."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval's bootstrap would start a process per core
    quiet_loading()
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _summary(record: Evaluation) -> str:
    if record.status != OK:
        return f"FAILED: {record.reason}"
    shown = [score for score in record.scores if score.in_table]
    values = [f"{s.task} {s.value:.4g}" if s.value is not None else f"{s.task} not finite" for s in shown]
    return f"{record.seconds:.1f} s, {some(values, 8)}"
