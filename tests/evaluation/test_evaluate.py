"""The verb end to end on tiny models: records, kept results, failures, and lm-eval's own command line."""

import functools
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file

from r2q import cli
from r2q import config as configuration
from r2q.config import ConfigError
from r2q.evaluation.adapter import NotFinite, Scorer
from r2q.evaluation.evaluate import evaluate as evaluate_unit
from r2q.evaluation.evaluate import share
from r2q.evaluation.session import Session
from r2q.evaluation.tasks import SEEDS
from r2q.models.checks import read_tokenizer
from r2q.models.load import load_packed
from r2q.models.save import folder_digest
from r2q.records import Report, Status, digest, read_json, write_record
from r2q.report.collect import collect
from r2q.report.compare.numbers import Difference, differences, of_recipe, side_of
from tests.evaluation import tiny
from tests.units import evaluate, quantize

TEXTS = ["A page of words. It has two sentences.", "Another page, which is longer than the first one is.", "Three."]
TASKS: dict[str, Any] = {"choose": {}, "pages": {}, "sums": {"items": 3}}


class Run:
    """A run with one model, two recipes, three tasks and a text, in a folder of its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.out = folder, folder / "results" / "trial" / "m"
        tiny.model_folder(folder / "model")
        tiny.write_task(folder / "tasks", "choose", tiny.choice_rows())
        tiny.write_text_task(folder / "tasks", "pages", TEXTS)
        tiny.write_sum_task(folder / "tasks", "sums")
        (folder / "text.txt").write_text(" ".join(TEXTS))
        self.data = tiny.config_data(
            {"m": {"path": str(folder / "model"), "add_bos": True}},
            TASKS,
            task_include=[str(folder / "tasks")],
            perplexity={"book": {"path": str(folder / "text.txt"), "window": 16}},
        ) | settings  # fmt: skip
        self.prepared = folder / "prepared.json"
        self.prepared.write_text(json.dumps({"models": {"m": {"fingerprint": "f", "family": "llama"}}}))
        self.write()
        quantize(self.config, self.prepared, "m", list(self.data["recipes"]), self.out)

    def write(self, **settings: Any) -> None:
        self.config = self.folder / "config.yaml"
        self.data |= settings
        self.config.write_text(yaml.safe_dump(self.data))

    def evaluate(self, *recipes: str) -> dict[str, dict[str, Any]]:
        names = recipes or tuple(self.data["recipes"])
        evaluate(self.config, "m", list(names), self.out)
        return {name: self.record(name) for name in names}

    def record(self, recipe: str = "rtn-g64") -> dict[str, Any]:
        return json.loads((self.unit(recipe) / "evaluation.json").read_text())

    def forget(self, *recipes: str) -> None:
        """Take records away, so that these units are evaluated once more."""
        for name in recipes or self.data["recipes"]:
            (self.unit(name) / "evaluation.json").unlink()

    def unit(self, recipe: str) -> Path:
        return self.out / recipe / "seed0"

    def files(self) -> dict[str, bytes]:
        """The results without what a clock or a memory gauge says, and the digest, which covers that too."""
        found = {}
        for name in self.data["recipes"]:
            record = self.record(name)
            assert record["digest"] == digest(record)
            timed = {"seconds", "cpu_seconds", "task_seconds", "peak_mib", "digest"}
            found[name] = json.dumps({k: v for k, v in record.items() if k not in timed}).encode()
            found[f"{name}/raw"] = (self.unit(name) / "lm_eval.json").read_bytes()
        return found


def compared(results: Path, *recipes: str) -> list[Difference]:
    return differences(*(of_recipe(side_of(results), recipe) for recipe in recipes), over_seeds=True)


@pytest.fixture(scope="module")
def _done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("run"))
    run.evaluate()
    return run


@pytest.fixture
def run(_done: Run, tmp_path: Path) -> Run:
    """A copy of an evaluated run."""
    copy = object.__new__(Run)
    copy.__dict__ |= _done.__dict__
    copy.data = json.loads(json.dumps(_done.data))
    shutil.copytree(_done.out.parent, tmp_path / "trial")
    copy.folder, copy.out = tmp_path, tmp_path / "trial" / "m"
    copy.write()
    return copy


def scores(record: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {(row["task"], row["metric"]): row for row in record["scores"]}


def no_loading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which units are loaded."""
    loaded: list[str] = []

    def noted(folder: Path, *args: Any, **options: Any) -> Any:
        loaded.append(Path(folder).parent.name)
        return load_packed(folder, *args, **options)

    monkeypatch.setattr("r2q.evaluation.session.load_packed", noted)
    return loaded


def test_a_record_has_every_score_with_its_error_and_level(run: Run) -> None:
    record = run.record()
    report = json.loads((run.unit("rtn-g64") / "report.json").read_text())
    rows = scores(record)
    assert list(rows) == [
        ("choose", "acc"), ("choose", "acc_norm"), ("pages", "word_perplexity"), ("pages", "bits_per_byte"),
        ("sums", "exact_match"), ("book", "token_ppl_16"),
    ]  # fmt: skip
    assert [key for key, row in rows.items() if row["in_table"]] == [
        ("choose", "acc"), ("pages", "word_perplexity"), ("sums", "exact_match"), ("book", "token_ppl_16"),
    ]  # fmt: skip
    assert [row["n"] for row in rows.values()] == [8, 8, 3, 3, 3, sum(map(len, TEXTS)) // 16]
    acc = rows["choose", "acc"]
    assert acc["chance"] == pytest.approx(1 / 3)
    assert acc["majority"] == pytest.approx(3 / 8)
    assert acc["stderr"] == pytest.approx((acc["value"] * (1 - acc["value"]) / 7) ** 0.5)
    assert rows["sums", "exact_match"]["chance"] == 0.0
    assert all(row["stderr"] is not None for row in rows.values())
    assert rows["pages", "word_perplexity"]["stderr"] > 0
    assert (record["status"], record["add_bos"], record["dtype"], record["device"]) == ("ok", True, "float32", "cpu")
    assert (record["batch_size"], record["seeds"]) == (4, SEEDS)
    assert record["hashes"]["weights"] == report["hashes"]["weights"] == folder_digest(run.unit("rtn-g64"))
    assert set(record["task_seconds"]) == {"choose", "pages", "sums", "book"}
    raw = (run.unit("rtn-g64") / "lm_eval.json").read_text()
    assert "date" not in json.loads(raw)
    assert str(run.config.parent) not in raw
    assert json.loads(raw)["results"]["choose"]["acc,none"] == acc["value"]


@pytest.mark.parametrize("recipe", ["full_precision", "rtn-g64"])
def test_scores_are_those_of_lm_eval_on_its_own(run: Run, recipe: str) -> None:
    """lm-eval's model class, task manager and prompt building, one unit, nothing shared, nothing cached."""
    record = run.record(recipe)
    model, tokenizer = load_packed(run.unit(recipe)), read_tokenizer(run.unit(recipe))
    theirs = HFLM(model, tokenizer=tokenizer, batch_size=4, max_length=tiny.POSITIONS)
    theirs.tok_encode = lambda text, add_special_tokens=None, **_: (  # its switch adds nothing with this tokenizer
        [tokenizer.bos_token_id] * (add_special_tokens is None) + tokenizer.encode(text, add_special_tokens=False)
    )
    source = Path(run.data["task_include"][0])
    configs = []
    for name in ("choose", "pages"):
        config = yaml.safe_load((source / f"{name}.yaml").read_text())
        files = {"test": str(source / f"{name}.jsonl")}
        config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(run.folder / "cache")}
        configs.append(config)
    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    result = lm_eval.evaluate(lm=theirs, task_dict=manager.load(configs), bootstrap_iters=100)
    rows = scores(record)
    for task, metric in (("choose", "acc"), ("choose", "acc_norm"), ("pages", "word_perplexity")):
        assert rows[task, metric]["value"] == pytest.approx(result["results"][task][f"{metric},none"], rel=1e-5)
    assert rows["choose", "acc"]["stderr"] == result["results"]["choose"]["acc_stderr,none"]


def test_nothing_is_done_twice(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.out.rglob("*.json")}
    loaded = no_loading(monkeypatch)
    run.evaluate()
    assert loaded == []
    assert {path: path.read_bytes() for path in run.out.rglob("*.json")} == before
    assert capsys.readouterr().out.count(": kept, ") == 2


def test_what_can_move_a_number_is_evaluated_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = no_loading(monkeypatch)
    first = run.evaluate()
    run.write(models={"m": run.data["models"]["m"] | {"add_bos": False}})
    second = run.evaluate("rtn-g64")["rtn-g64"]
    assert loaded == ["rtn-g64"]
    assert second["add_bos"] is False
    assert scores(second)["book", "token_ppl_16"]["value"] != scores(first["rtn-g64"])["book", "token_ppl_16"]["value"]
    run.write(limits={"batch_size": 4, "items": 2})
    assert scores(run.evaluate("rtn-g64")["rtn-g64"])["choose", "acc"]["n"] == 2
    text = run.folder / "other.txt"
    text.write_text("A text that is longer than one window, and another one")
    run.write(perplexity={"book": {"path": str(text), "window": 16}})
    run.evaluate("rtn-g64")
    run.write(tasks=TASKS | {"choose": {"metric": "acc_norm"}})
    third = run.evaluate("rtn-g64")["rtn-g64"]
    assert scores(third)["choose", "acc_norm"]["in_table"]
    assert loaded == ["rtn-g64"] * 4
    run.write(limits={"batch_size": 4, "items": 2, "threads": 2})
    kept = run.evaluate("rtn-g64")["rtn-g64"]
    assert loaded == ["rtn-g64"] * 4
    assert kept["limits"] == {"threads": 1}  # those that it was made with


def test_weights_that_are_not_the_reported_ones_are_refused(run: Run) -> None:
    file = run.unit("full_precision") / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    said = r"full_precision/seed0: config, weights or tokenizer are not those of report\.json"
    with pytest.raises(ValueError, match=said):
        run.evaluate()


def test_a_killed_run_loses_only_the_unit_in_flight(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run.files()
    run.forget()
    original = Session._scores

    def stop(self: Session, folder: Path, record: dict[str, Any]) -> Any:
        if folder.parent.name == "rtn-g64":
            raise KeyboardInterrupt
        return original(self, folder, record)

    monkeypatch.setattr(Session, "_scores", stop)
    with pytest.raises(KeyboardInterrupt):
        run.evaluate()
    assert (run.unit("full_precision") / "evaluation.json").is_file()
    assert not (run.unit("rtn-g64") / "evaluation.json").exists()
    monkeypatch.setattr(Session, "_scores", original)
    loaded = no_loading(monkeypatch)
    run.evaluate()
    assert loaded == ["rtn-g64"]
    assert run.files() == expected  # byte for byte what a run in one go wrote


def test_sharing_a_session_moves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of one session, whose tasks and prompts were made beforehand: the bytes that each gives on its own."""
    expected = run.files()
    run.forget()
    monkeypatch.setattr("r2q.evaluation.evaluate.SHARED", shared := {})
    share(run.config, "m", run.unit("rtn-g64"))
    (session,) = shared.values()
    monkeypatch.delattr("r2q.evaluation.session.load_tasks")
    (encoder,) = session._encoders.values()
    known = set(encoder._known)
    run.evaluate()
    assert run.files() == expected
    assert set(encoder._known) == known


def test_a_session_leaves_no_file_of_a_method_in_a_process_that_forks_all_jobs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit that is quantized after an edit had been the older file's, under the new one's key."""
    own = run.folder / "edited_meanwhile.py"
    text = """
from baselines.rtn import RTN
from r2q.config import MethodOptions
class Options(MethodOptions):
    factor: float = 1.0
class Mine(RTN):
    Options, version = Options, 1
"""
    own.write_text(text)
    monkeypatch.syspath_prepend(run.folder)
    mine = {"mine-g64": {"method": "edited_meanwhile.Mine", "granularity": "g64"}}
    run.write(recipes=run.data["recipes"] | mine)
    monkeypatch.setattr("r2q.evaluation.evaluate.SHARED", {})
    share(run.config, "m", run.unit("rtn-g64"))
    assert configuration.method_info("rtn").options.__module__ in sys.modules
    own.write_text(text.replace("Options, 1", "Options, 12"))
    assert configuration.method_info("edited_meanwhile.Mine").version == 12
    assert configuration.import_method("edited_meanwhile.Mine").version == 12  # type: ignore[attr-defined]


def broken(run: Run, value: float) -> None:
    """Put `value` into the full-precision unit, with a report that fits."""
    folder = run.unit("full_precision")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    report = json.loads((folder / "report.json").read_text())
    report["hashes"]["weights"] = folder_digest(folder)
    (folder / "report.json").write_text(json.dumps(report | {"digest": ""}))


def test_nan_is_a_failed_record_and_the_others_go_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    broken(run, float("nan"))
    records = run.evaluate()
    failed = records["full_precision"]
    assert failed["status"] == "failed"
    assert "log-likelihood is not finite" in failed["reason"]
    assert failed["scores"] == []
    assert json.loads((run.unit("full_precision") / "lm_eval.json").read_text()) == {}
    assert records["rtn-g64"]["status"] == "ok"
    assert "FAILED: task choose" in capsys.readouterr().out


def test_the_peak_of_memory_is_that_of_the_whole_unit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was in a task, and texts came later."""
    before = run.record()["peak_mib"]
    run.forget("rtn-g64")
    original = Scorer.loglikelihood

    def hungry(*args: Any, **options: Any) -> Any:
        torch.ones(100 << 20)  # 400 MiB
        return original(*args, **options)

    monkeypatch.setattr(Scorer, "loglikelihood", hungry)
    assert run.evaluate("rtn-g64")["rtn-g64"]["peak_mib"] > before + 300


def test_comparisons_are_paired_by_what_was_kept_of_every_item(run: Run) -> None:
    collect(run.config, run.out.parent)
    rows = {row.metric: row for row in compared(run.out.parent, "full_precision", "rtn-g64") if row.task == "choose"}
    items = [json.loads((run.unit(name) / "items.json").read_text())["choose"]["acc,none"]["values"]
             for name in ("full_precision", "rtn-g64")]  # fmt: skip
    changed = [a for a, b in zip(*items, strict=True) if a != b]
    assert (rows["acc"].test, rows["acc"].paired) == ("McNemar", True)
    tail = sum(math.comb(len(changed), k) for k in range(min(int(sum(changed)), len(changed) - int(sum(changed))) + 1))
    assert rows["acc"].p == pytest.approx(min(1.0, 2 * tail * 0.5 ** len(changed)))


PARTS = {  # what gives the scores of a task or text
    "choose": "r2q.evaluation.adapter.Scorer.loglikelihood",
    "sums": "r2q.evaluation.adapter.Scorer.generate_until",
    "book": "r2q.evaluation.texts.token_perplexity",
}


@pytest.mark.parametrize(
    ("part", "error", "retry"),
    [
        ("book", NotFinite("a window's loss is not finite"), False),
        ("book", RuntimeError("no kernel for 3 rows"), False),
        ("book", RuntimeError("CUDA error: lost"), True),
        ("choose", torch.OutOfMemoryError("no room for 3 GiB"), True),
        *(("sums", kind("the reason"), False) for kind in (KeyError, TypeError, AssertionError, ValueError)),
        ("sums", ZeroDivisionError("the reason"), False),
    ],
)
def test_what_fails_in_one_task_or_text_leaves_the_others(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any, part: str, error: Exception, retry: bool
) -> None:
    before = scores(run.record())
    run.forget("rtn-g64")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(PARTS[part], fail)
        record = run.evaluate("rtn-g64")["rtn-g64"]
    assert (record["status"], record["retry"]) == ("ok", retry)
    (lost,) = (row for row in record["scores"] if row["task"] == part)
    assert (lost["status"], lost["value"], lost["in_table"]) == ("failed", None, True)
    named = "" if isinstance(error, ArithmeticError | ValueError) else f"{type(error).__name__}: "
    assert lost["reason"].endswith(f"{named}{error}")
    assert ("Traceback" in capsys.readouterr().err) == (not isinstance(error, ArithmeticError))
    assert [row for row in record["scores"] if row != lost] == [row for row in before.values() if row["task"] != part]
    if retry:  # the cause is gone
        again = run.evaluate("rtn-g64")["rtn-g64"]
        assert (scores(again), again["retry"]) == (before, False)


def test_items_add_up_to_the_scores(run: Run) -> None:
    record = scores(run.record())
    items = json.loads((run.unit("rtn-g64") / "items.json").read_text())
    for task, metric in (("choose", "acc"), ("choose", "acc_norm"), ("sums", "exact_match"), ("book", "token_ppl_16")):
        found = [kept["values"] for name, kept in items[task].items() if name.split(",")[0] == metric]
        assert len(found) == 1
        mean = sum(found[0]) / len(found[0])
        row = record[task, metric]
        assert (math.exp(mean) if task == "book" else mean) == pytest.approx(row["value"])
        assert len(found[0]) == row["n"]
        assert row["num_fewshot"] == (None if task == "book" else 0)
    assert "pages" not in items  # a ratio of sums is no mean


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        ("failed", "the reason", "quantizing failed: the reason"),
        ("diverged", "step 4, loss nan", "quantizing diverged: step 4, loss nan"),
    ],
)
def test_a_unit_that_could_not_be_quantized(
    status: Status, error: str, said: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.unit("rtn-g64") / "report.json"
    write_record(path, replace(read_json(path, Report), status=status, reason=error))
    record = run.evaluate("rtn-g64")["rtn-g64"]
    assert (record["status"], record["reason"], record["scores"]) == (status, f"quantize: {error}", [])
    assert f"seed 0: not evaluated, {said}\n" in capsys.readouterr().out


def test_bad_input_is_one_sentence(run: Run) -> None:
    with pytest.raises(ConfigError, match="models: unknown model n; valid: m"):
        evaluate_unit(run.config, "n", run.unit("rtn-g64"))
    run.write(perplexity={"book": run.data["perplexity"]["book"] | {"window": 161}})
    with pytest.raises(ConfigError, match=r"book\.window: 161 tokens, but model m has only 160"):
        run.evaluate()
    (run.unit("rtn-g64") / "report.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"rtn-g64/seed0/report\.json; run `quantize` first"):
        run.evaluate("rtn-g64")


def test_a_perplexity_beyond_floating_point_leaves_the_task_its_other_numbers(run: Run) -> None:
    """A text without blanks is one word, of which a destroyed model takes more than 709 nats."""
    tiny.write_text_task(run.folder / "tasks", "pages", ["言" * 300, "two words"])
    run.write(task_include=[str(run.folder / "tasks")], tasks={"pages": {}})
    found = scores(run.evaluate("rtn-g64")["rtn-g64"])
    assert found["pages", "word_perplexity"]["value"] is None
    assert found["pages", "word_perplexity"]["stderr"] is None
    assert found["pages", "bits_per_byte"]["value"] > 1
    assert found["pages", "bits_per_byte"]["stderr"] > 0


def test_a_text_shorter_than_a_window_is_a_row(run: Run) -> None:
    (run.folder / "short.txt").write_text("short")
    run.write(perplexity={"book": {"path": str(run.folder / "short.txt"), "window": 16}})
    rows = scores(run.evaluate("rtn-g64")["rtn-g64"])
    assert "short.txt" in rows["book", "token_ppl_16"]["reason"]
    assert rows["choose", "acc"]["value"] is not None


def test_samples_are_written_when_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = no_loading(monkeypatch)
    run.write(limits={"batch_size": 4, "samples": True})
    record = run.evaluate("rtn-g64")["rtn-g64"]
    lines = [json.loads(line) for line in (run.unit("rtn-g64") / "samples.jsonl").read_text().splitlines()]
    chosen = [line for line in lines if line["task"] == "choose"]
    assert len(chosen) == 8
    assert len([line for line in lines if line["task"] == "sums"]) == 3
    assert sum(line["acc"] for line in chosen) / 8 == scores(record)["choose", "acc"]["value"]
    run.evaluate("rtn-g64")
    assert loaded == ["rtn-g64"]


def test_nothing_but_one_line_a_unit_is_printed(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run.forget()
    run.evaluate()
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "evaluate m full_precision seed 0", "evaluate m rtn-g64 seed 0",
    ]  # fmt: skip
    assert "choose 0." in lines[1]
    assert err == ""


def test_the_command_line_of_lm_eval_reads_a_packed_folder(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without lm-eval's scan of its 14,000 tasks, which takes seconds and is not what is tested."""
    manager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda *_, **options: manager(include_path=options["include_path"])
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = Path(run.data["task_include"][0])
    monkeypatch.chdir(source)  # lm-eval counts data files from where it is started
    model = f"pretrained={run.unit('rtn-g64')},dtype=float32,add_bos_token=False"
    cli.main([
        "lm-eval", "run", "--model", "hf", "--model_args", model, "--tasks", "choose", "--include_path", str(source),
        "--device", "cpu", "--batch_size", "4", "--output_path", str(tmp_path / "out.json"),
    ])  # fmt: skip
    (file,) = tmp_path.glob("out*.json")
    found = json.loads(file.read_text())["results"]["choose"]["acc,none"]
    run.write(models={"m": run.data["models"]["m"] | {"add_bos": False}})
    assert scores(run.evaluate("rtn-g64")["rtn-g64"])["choose", "acc"]["value"] == found
