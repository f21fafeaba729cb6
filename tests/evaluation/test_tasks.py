"""Checking and loading tasks: lm-eval's own definitions over local files, no stale data, nothing shared but work."""

import os
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import pytest

from r2q.config import Config, ConfigError, parse
from r2q.evaluation.task_files import TaskFiles
from r2q.evaluation.tasks import TaskSet, _aggregation_problem, check_tasks, load_tasks
from tests.evaluation import tiny

HUB: dict[str, dict[str, list[dict[str, Any]]]] = {  # columns as on the hub
    "piqa": {
        "train": [{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}],
        "validation": [{"goal": f"goal {i}", "sol1": "do", "sol2": "do not", "label": i % 2} for i in range(4)],
    },
    "arc_easy": {
        "test": [
            {
                "id": str(i),
                "question": f"question {i}",
                "choices": {"text": ["u", "v", "w", "x"][: 3 + i % 2], "label": ["A", "B", "C", "D"][: 3 + i % 2]},
                "answerKey": "B",
            }
            for i in range(4)
        ]
    },
    "boolq": {"validation": [{"question": "is it", "passage": f"p {i}", "label": int(i > 0)} for i in range(4)]},
    "wikitext": {"test": [{"page": f" = Title {i} = \n \n Some words @-@ here , and more . "} for i in range(3)]},
    "gsm8k": {
        "train": [{"question": f"t {i}", "answer": f"so #### {i}"} for i in range(9)],
        "test": [{"question": f"q {i}", "answer": f"thus\n#### {i}"} for i in range(3)],
    },
    "siqa": {
        "validation": [
            {"context": "c", "question": "q", "answerA": "a", "answerB": "b", "answerC": "d", "label": str(1 + i % 3)}
            for i in range(3)
        ]
    },
    "sciq": {
        "validation": [
            {"question": f"q {i}", "distractor1": "a", "distractor2": "b", "distractor3": f"c {i}",
             "correct_answer": "d", "support": ""}
            for i in range(3)
        ]
    },
    "mmlu/anatomy": {
        split: [{"question": f"{split} {i}", "subject": "anatomy", "choices": list("wxyz"), "answer": i % 4}
                for i in range(6)]
        for split in ("dev", "test")
    },
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A `task_data` folder; half of its files are compressed."""
    for number, (task, splits) in enumerate(HUB.items()):
        for split, rows in splits.items():
            tiny.write_jsonl(tmp_path / "data" / task / f"{split}.jsonl{'.xz' if number % 2 else ''}", rows)
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks the hub for data fails the test."""

    def refuse(*args: Any, **_: Any) -> None:
        raise AssertionError(f"load_dataset was asked for {args}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)


def config(tasks: dict[str, Any], **settings: Any) -> Config:
    settings |= {"task_data": str(settings["task_data"])} if "task_data" in settings else {}
    return parse(tiny.config_data({"m": {"path": "."}}, tasks, **settings), "c.yaml")


def load(tasks: dict[str, Any], **settings: Any) -> TaskSet:
    return load_tasks(config(tasks, **settings))


def prompts(tasks: TaskSet, name: str) -> list[Any]:
    task = tasks.dictionary["tasks"][name]
    task.build_all_requests()
    return [instance.args for instance in task.instances]


def test_tasks_of_lm_eval_read_local_files(data: Path) -> None:
    tasks = load(dict.fromkeys(["piqa", "arc_easy", "boolq", "wikitext", "social_iqa", "mmlu_anatomy"]), task_data=data)
    assert prompts(tasks, "piqa")[:2] == [("Question: goal 0\nAnswer:", said) for said in (" do", " do not")]
    assert prompts(tasks, "boolq")[0] == ("p 0\nQuestion: is it?\nAnswer:", " no")
    assert prompts(tasks, "wikitext")[0] == (" = Title 0 =\n\nSome words-here, and more. ",)  # detokenized by the task
    assert prompts(tasks, "social_iqa")[1] == ("Q: c q\nA:", " b")
    assert prompts(tasks, "mmlu_anatomy")[0][0].endswith("test 0\nA. w\nB. x\nC. y\nD. z\nAnswer:")
    levels = {name: (items.chance, items.majority) for name, items in tasks.items.items() if items is not None}
    assert levels["piqa"] == (0.5, 0.5)
    assert levels["arc_easy"] == (pytest.approx((1 / 3 + 1 / 4) / 2), None)  # B in every item, with other choices
    assert levels["boolq"] == (0.5, 0.75)
    assert levels["social_iqa"] == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert tasks.items["wikitext"] is None
    assert tasks.limits == {
        "piqa": 4, "arc_easy": 4, "boolq": 4, "wikitext": 3, "social_iqa": 3, "mmlu_anatomy": 6,
    }  # fmt: skip


def test_a_missing_test_split_leaves_the_validation_split(data: Path) -> None:
    tasks = load({"sciq": {}}, task_data=data)
    settings = tasks.dictionary["tasks"]["sciq"].dump_config()
    assert "test_split" not in settings
    assert settings["dataset_kwargs"] == {"data_files": {"validation": ["validation.jsonl"]}}
    assert tasks.items["sciq"] is not None
    assert tasks.items["sciq"].majority is None  # the right choice is always the last: an accident of the file


def test_few_shot_examples_come_from_the_training_split(data: Path) -> None:
    tasks = load({"gsm8k": {}}, task_data=data)
    text, settings = prompts(tasks, "gsm8k")[0]
    assert text.count("Question: t ") == 5
    assert text.endswith("Question: q 0\nAnswer:")
    assert settings["until"][0] == "Question:"
    again = load({"gsm8k": {}}, task_data=data)
    assert prompts(again, "gsm8k") == prompts(tasks, "gsm8k") == prompts(tasks, "gsm8k")
    assert prompts(load({"gsm8k": {"num_fewshot": 2}}, task_data=data), "gsm8k")[0][0].count("Question: t ") == 2
    (data / "gsm8k" / "train.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"gsm8k takes its 5 few-shot examples from train\.jsonl .* not in .*gsm8k"):
        check_tasks(config({"gsm8k": {}}, task_data=data))
    load({"gsm8k": {"num_fewshot": 0}}, task_data=data)


def test_missing_files_are_named(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"winogrande needs .*data/winogrande/validation\.jsonl \(or \.xz, \.gz\)"):
        check_tasks(config({"winogrande": {}}, task_data=data))
    (data / "boolq" / "validation.jsonl").rename(data / "boolq" / "test.jsonl")
    with pytest.raises(ConfigError, match=r"boolq needs validation\.jsonl .*; there is test"):
        check_tasks(config({"boolq": {}}, task_data=data))


def test_all_problems_at_once(tmp_path: Path, data: Path) -> None:
    tiny.write_task(tmp_path / "own", "mine", tiny.choice_rows(), dataset_kwargs={"data_files": {"test": "gone.jsonl"}})
    tiny.write_task(tmp_path / "own", "zero", tiny.choice_rows(), num_fewshot=0)
    right = {"wikitext": "word_perplexity", "gsm8k": "exact_match/strict-match"}
    metrics = {"piqa": "acc_nrom"} | right | {"boolq": "acc/strict"}
    tasks = {"arc_esay": {}} | {name: {"metric": metric} for name, metric in metrics.items()}
    tasks |= {"mine": {}, "zero": {"num_fewshot": 3}}
    text = {"wt": {"path": str(tmp_path / "no.txt")}}
    with pytest.raises(ConfigError) as caught:
        check_tasks(config(tasks, task_data=data, task_include=[str(tmp_path / "own")], perplexity=text))
    lines = str(caught.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        "tasks:", "tasks.piqa.metric:", "tasks.boolq.metric:", f"{tmp_path / 'own' / 'mine.yaml'}:",
        "tasks.zero.num_fewshot:", "perplexity.wt.path:",
    ]  # fmt: skip
    assert lines[0].endswith("nearest valid: arc_easy")
    assert lines[1].endswith("nearest valid: acc_norm")
    assert lines[2].endswith("the task has no acc/strict; valid: acc/none")
    assert "gone.jsonl" in lines[3]


def test_check_says_where_the_data_are(data: Path, tmp_path: Path) -> None:
    tiny.write_task(tmp_path / "own", "mine", tiny.choice_rows())
    found = check_tasks(config({"piqa": {}, "mine": {}}, task_data=data, task_include=[str(tmp_path / "own")]))
    assert found["piqa"]["piqa"]["validation"] == [data / "piqa" / "validation.jsonl"]
    assert found["mine"] == {"mine": {"test": [tmp_path / "own" / "mine.jsonl"]}}
    assert check_tasks(config({"piqa": {}}))["piqa"] == {"piqa": "hub"}


def test_same_path_same_time_new_content(tmp_path: Path) -> None:
    """`datasets` keys its cache by path and time, and would give the old rows."""
    rows = tiny.choice_rows()
    tiny.write_task(tmp_path, "mine", rows)
    file = tmp_path / "mine.jsonl"
    before, times = load({"mine": {}}, task_include=[str(tmp_path)]), file.stat()
    tiny.write_jsonl(file, [row | {"q": row["q"].replace("Where", "Whose")} for row in rows])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load({"mine": {}}, task_include=[str(tmp_path)])
    assert prompts(before, "mine")[0][0].startswith("Question: Where")
    assert prompts(after, "mine")[0][0].startswith("Question: Whose")
    assert before.hash != after.hash


def test_the_hash_follows_content_and_not_place(tmp_path: Path) -> None:
    hashes = []
    for folder in ("a", "b/c"):
        tiny.write_task(tmp_path / folder, "mine", tiny.choice_rows())
        hashes.append(load({"mine": {}}, task_include=[str(tmp_path / folder)]).hash)
    tiny.write_task(tmp_path / "a", "mine", tiny.choice_rows(), doc_to_text="Q: {{q}}\nA:")
    hashes.append(load({"mine": {}}, task_include=[str(tmp_path / "a")]).hash)
    hashes.append(load({"mine": {"items": 5}}, task_include=[str(tmp_path / "b")]).hash)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_every_evaluation_gets_its_own_copy(tmp_path: Path) -> None:
    """A task that writes into its documents, or answers left in a prompt, may not reach the next unit."""
    tiny.write_task(tmp_path, "mine", tiny.choice_rows())
    task = load({"mine": {}}, task_include=[str(tmp_path)]).dictionary["tasks"]["mine"]
    task.build_all_requests()
    first = task.instances
    first[0].resps.append(1.0)
    first[0].doc["q"] = "changed"
    assert next(iter(task.eval_docs))["q"] == "changed"  # prompt and document are one object, as in lm-eval
    task.build_all_requests()
    assert task.instances[0].resps == []
    assert task.instances[0].doc["q"] == next(iter(task.eval_docs))["q"] == tiny.choice_rows()[0]["q"]


@pytest.mark.parametrize("folder", ["squad_completion", "based-squad"])  # the task's name, or its name on the hub
def test_a_task_that_is_a_python_class_reads_local_files_too(tmp_path: Path, folder: str) -> None:
    said = r"loads hazyresearch/based-squad; it needs .*squad_completion/<split>\.jsonl"
    with pytest.raises(ConfigError, match=said):
        load({"squad_completion": {}}, task_data=tmp_path)
    rows = [{"text": f" passage {i}", "value": f"answer {i}"} for i in range(3)]
    tiny.write_jsonl(tmp_path / folder / "validation.jsonl.xz", rows)
    tasks = load({"squad_completion": {}}, task_data=tmp_path)
    assert [text for text, _ in prompts(tasks, "squad_completion")] == ["passage 0", "passage 1", "passage 2"]


def test_a_group_and_its_member_cannot_both_be_asked(tmp_path: Path) -> None:
    tiny.write_task(tmp_path, "one", tiny.choice_rows())
    (tmp_path / "g.yaml").write_text("group: g\ntask: [one]\n")
    with pytest.raises(ConfigError, match="one is also part of another entry"):
        load({"g": {}, "one": {}}, task_include=[str(tmp_path)])
    with pytest.raises(ConfigError, match=r"tasks\.one: one is also part of g; name it once"):  # before any work
        check_tasks(config({"g": {}, "one": {}}, task_include=[str(tmp_path)]))
    with pytest.raises(ConfigError, match=r"tasks\.mmlu_anatomy: mmlu_anatomy is also part of mmlu"):
        check_tasks(config({"mmlu": {}, "mmlu_anatomy": {}}))


def test_a_group_that_aggregates_what_no_task_gives_is_refused(tmp_path: Path) -> None:
    tiny.write_task(tmp_path, "one", tiny.choice_rows())
    group = "group: both\ntask: [one]\naggregate_metric_list: [{metric: exact_match}]\n"
    (tmp_path / "both.yaml").write_text(group)
    with pytest.raises(ConfigError, match=r"aggregates exact_match, its tasks give acc, acc_norm"):
        check_tasks(config({"both": {}}, task_include=[str(tmp_path)]))


@pytest.mark.parametrize("name", ["mmlu_flan_cot_zeroshot", "afrobench"])
def test_such_groups_of_lm_eval_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: the group aggregates"):
        check_tasks(config({name: {}}))


@pytest.mark.parametrize(("kind", "target"), list(product(("multiple_choice", "generate_until"), ("gold", "{{gold}}"))))
def test_a_right_answer_that_is_null_is_named_with_task_and_row(tmp_path: Path, kind: str, target: str) -> None:
    rows = tiny.choice_rows()
    rows[2]["gold"] = None
    more: dict[str, Any] = {}
    if kind == "generate_until":
        more = {"doc_to_choice": ..., "metric_list": [{"metric": "exact_match"}]}
    tiny.write_task(tmp_path, "mine", rows, output_type=kind, doc_to_target=target, **more)
    with pytest.raises(ConfigError, match=r"task mine, row 3: the right answer is None"):
        load({"mine": {}}, task_include=[str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "chance"), [("truthfulqa_mc2", (2 / 3 + 1 / 4) / 2), ("truthfulqa_mc1", (1 / 3 + 1 / 4) / 2)]
)
def test_chance_of_a_task_with_a_rule_of_its_own_is_what_guessing_gets_by_it(
    tmp_path: Path, name: str, chance: float
) -> None:
    """TruthfulQA's mc2 is the share of probability on true answers; its file names the first one alone."""
    rows = []
    for choices, labels in (("abc", [1, 1, 0]), ("abcd", [1, 0, 0, 0])):
        many = {"choices": list(choices), "labels": labels}
        one = many | {"labels": [1] + [0] * (len(labels) - 1)}
        rows.append({"question": "q", "mc1_targets": one, "mc2_targets": many})
    tiny.write_jsonl(tmp_path / name / "validation.jsonl", rows)
    items = load({name: {}}, task_data=tmp_path).items[name]
    assert items is not None
    assert items.chance == pytest.approx(chance)
    assert items.majority is None  # true ones stand first


def test_a_right_answer_may_be_a_whole_number_of_numpy(tmp_path: Path) -> None:
    """As a function of a task's own gives it (`np.argmax`); lm-eval compares it as any other."""
    (tmp_path / "answers.py").write_text("import numpy as np\ndef gold(doc):\n    return np.int64(doc['gold'])\n")
    path = tiny.write_task(tmp_path, "mine", tiny.choice_rows(), doc_to_target="FUNCTION")
    path.write_text(path.read_text().replace("FUNCTION", "!function answers.gold"))
    items = load({"mine": {}}, task_include=[str(tmp_path)]).items["mine"]
    assert items is not None
    assert items.gold == [[row["gold"]] for row in tiny.choice_rows()]


def test_groups_of_lm_eval_whose_tasks_give_what_they_aggregate_pass() -> None:
    files = TaskFiles()
    for name in ("mmlu_stem", "blimp", "xcopa", "hendrycks_ethics"):
        assert _aggregation_problem(name, files.closure(name)) is None, name
