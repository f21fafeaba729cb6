"""Rows of a group, the choice of what stands in the table, and values that are no numbers."""

from pathlib import Path
from typing import Any

import pytest

from r2q.config import Config, parse
from r2q.config.sections import Task
from r2q.evaluation.scores import task_scores
from r2q.evaluation.tasks import TaskSet, load_tasks
from tests.evaluation import tiny


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[Config, TaskSet]:
    tiny.write_task(tmp_path, "three", tiny.choice_rows(6, 3))
    tiny.write_task(tmp_path, "two", tiny.choice_rows(2, 2))
    aggregate = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (tmp_path / "both.yaml").write_text(f"group: both\ntask: [three, two]\n{aggregate}metadata: {{version: 2}}\n")
    tiny.write_sum_task(tmp_path, "sums")
    data = tiny.config_data({"m": {"path": "."}}, {"both": {}, "sums": {}}, task_include=[str(tmp_path)])
    config = parse(data, "c.yaml")
    return config, load_tasks(config)


def raw(**changed: Any) -> dict[str, Any]:
    """As `lm_eval.evaluate` returns it."""
    sums = {"name": "sums", "exact_match,strict": 0.2, "exact_match_stderr,strict": 0.1, "exact_match,loose": 0.4}
    return {
        "results": {
            "three": {"alias": "three", "acc,none": 0.5, "acc_stderr,none": 0.2, "acc_norm,none": 0.25},
            "two": {"alias": "two", "acc,none": 1.0, "acc_stderr,none": 0.0, "acc_norm,none": 0.5},
            "both": {"alias": "both", "acc,none": 0.625, "acc_stderr,none": 0.15, "sample_len": 8},
            "sums": sums | {"exact_match_stderr,loose": "N/A"} | changed,
        },
        "group_subtasks": {"both": ["three", "two"]},
        "n-shot": {},
        "versions": {"both": 2, "three": 1.0, "two": 1.0, "sums": 1.0},
        "higher_is_better": {name: {"acc": True, "exact_match": True} for name in ("both", "three", "two", "sums")},
    }


def test_a_group_stands_in_the_table_and_its_tasks_follow(tasks: tuple[Config, TaskSet]) -> None:
    config, loaded = tasks
    rows = task_scores(raw(), loaded, config)
    shown = [(row["task"], row["metric"], row["filter"]) for row in rows if row["in_table"]]
    assert shown == [("both", "acc", "none"), ("sums", "exact_match", "strict")]
    assert [row["task"] for row in rows] == ["both", "three", "three", "two", "two", "sums", "sums"]
    group = rows[0]
    assert group["n"] == 8
    assert group["chance"] == pytest.approx((6 / 3 + 2 / 2) / 8)
    assert group["majority"] == pytest.approx((6 / 3 + 2 / 2) / 8)
    assert (group["stderr"], group["version"], group["higher_is_better"]) == (0.15, "2", True)
    assert rows[-1]["stderr"] is None


def test_rows_say_what_lm_eval_asks_for(tasks: tuple[Config, TaskSet]) -> None:
    """Of a failed task as of others; a group of both kinds says both."""
    config, loaded = tasks
    rows = task_scores(raw(), loaded, config, {"sums": "no memory"})
    assert [(row["task"], row["output_type"]) for row in rows if row["in_table"]] == [
        ("both", "multiple_choice"),
        ("sums", "generate_until"),
    ]
    mixed = raw()
    mixed["group_subtasks"]["both"] = ["three", "sums"]
    assert task_scores(mixed, loaded, config)[0]["output_type"] == "generate_until multiple_choice"


def test_levels_of_a_group_are_over_what_its_score_is_over(tasks: tuple[Config, TaskSet], tmp_path: Path) -> None:
    """The mean over tasks, where the group says so; of the tasks that have the metric."""
    file = tmp_path / "both.yaml"
    file.write_text(file.read_text().replace("true", "false"))
    config, loaded = tasks[0], load_tasks(tasks[0])
    group = task_scores(raw(), loaded, config)[0]
    assert (group["chance"], group["majority"]) == (pytest.approx((1 / 3 + 1 / 2) / 2),) * 2
    assert group["n"] == 8
    without = raw()
    del without["results"]["two"]["acc,none"]
    group = task_scores(without, loaded, config)[0]
    assert (group["chance"], group["n"]) == (pytest.approx(1 / 3), 6)


@pytest.mark.parametrize("filters", ["", ", filter_list: [loose]", ", filter_list: [strict]"])
def test_a_group_that_failed_is_a_row_of_the_number_that_it_would_have_given(tmp_path: Path, filters: str) -> None:
    """Of its aggregated metric and filter, which need not be the first ones of its tasks: one column, not two."""
    parts = [{"name": name, "filter": [{"function": "take_first"}]} for name in ("strict", "loose")]
    for name in ("one", "two"):
        tiny.write_sum_task(tmp_path, name, filter_list=parts)
    tiny.write_task(tmp_path, "choose", tiny.choice_rows(6, 3))
    aggregate = f"aggregate_metric_list: [{{metric: exact_match{filters}}}]\nmetadata: {{version: 2}}\n"
    (tmp_path / "wrote.yaml").write_text(f"group: wrote\ntask: [one, two]\n{aggregate}")
    aggregate = "aggregate_metric_list: [{metric: acc_norm}]\nmetadata: {version: 2}\n"
    (tmp_path / "chose.yaml").write_text(f"group: chose\ntask: [choose]\n{aggregate}")
    data = tiny.config_data({"m": {"path": "."}}, {"wrote": {}, "chose": {}}, task_include=[str(tmp_path)])
    config = parse(data, "c.yaml")
    loaded = load_tasks(config)
    wrote = {"sample_len": 5, "exact_match,strict": 0.2, "exact_match,loose": 0.4}
    single: dict[str, Any] = {"one": wrote, "two": wrote}
    single["choose"] = {"sample_len": 6, "acc,none": 0.5, "acc_norm,none": 0.25}
    given = {
        "results": single | {name: group.aggregate(single) for name, group in loaded.dictionary["groups"].items()},
        "group_subtasks": loaded.dictionary["group_map"],
        "n-shot": {},
        "versions": {},
        "higher_is_better": {},
    }
    names = [("wrote", "exact_match", "strict" if "strict" in filters else "loose"), ("chose", "acc_norm", "none")]
    for failed in ({}, {"wrote": "NaN", "chose": "NaN"}):
        rows = task_scores(given, loaded, config, failed)
        assert [(row["task"], row["metric"], row["filter"]) for row in rows if row["in_table"]] == names


@pytest.mark.parametrize("wanted", ["exact_match/loose", "exact_match,loose"])
def test_the_config_chooses_metric_and_filter(tasks: tuple[Config, TaskSet], wanted: str) -> None:
    config, loaded = tasks
    changed = config.model_copy(update={"tasks": config.tasks | {"sums": Task(metric=wanted)}})
    (row,) = [row for row in task_scores(raw(), loaded, changed) if row["task"] == "sums" and row["in_table"]]
    assert row["filter"] == "loose"


def test_a_metric_that_did_not_come_out_is_a_failed_row(tasks: tuple[Config, TaskSet]) -> None:
    config, loaded = tasks
    changed = config.model_copy(update={"tasks": config.tasks | {"sums": Task(metric="f1")}})
    rows = task_scores(raw(), loaded, changed)
    (failed,) = [row for row in rows if "status" in row]
    assert (failed["task"], failed["metric"], failed["value"]) == ("sums", "f1", None)
    assert "tasks.sums.metric: the task gave no f1; it gave exact_match/strict, exact_match/loose" in failed["reason"]
    assert {row["task"] for row in rows} == {"both", "three", "two", "sums"}


def test_a_value_that_is_not_finite_is_missing_and_not_zero(tasks: tuple[Config, TaskSet]) -> None:
    config, loaded = tasks
    rows = task_scores(raw(**{"exact_match,strict": float("nan")}), loaded, config)
    assert [row["value"] for row in rows if row["task"] == "sums"] == [None, 0.4]


def test_a_score_that_a_task_makes_of_log_likelihoods_itself_has_no_chance_level(tmp_path: Path) -> None:
    """lm-eval's own `acc` there is whether decoding gives the answer, of which guessing gets nothing."""
    (tmp_path / "rules.py").write_text("def likely(doc, results):\n    return {'acc': float(results[0][0] > -30)}\n")
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    settings: dict[str, Any] = {"output_type": "loglikelihood", "doc_to_choice": ..., "doc_to_target": "{{c[0]}}"}
    for name, rule in (("decoded", ...), ("ruled", "RULE")):
        path = tiny.write_task(
            tmp_path, name, tiny.choice_rows(), **settings, metric_list=metrics, process_results=rule
        )
        path.write_text(path.read_text().replace("RULE", "!function rules.likely"))
    asked: dict[str, Any] = {"decoded": {}, "ruled": {}}
    config = parse(tiny.config_data({"m": {"path": "."}}, asked, task_include=[str(tmp_path)]), "c.yaml")
    results = {name: {"alias": name, "acc,none": 0.5} for name in asked}
    given = {"results": results, "group_subtasks": {}, "n-shot": {}, "versions": {}, "higher_is_better": {}}
    rows = task_scores(given, load_tasks(config), config)
    assert [(row["task"], row["chance"]) for row in rows] == [("decoded", 0.0), ("ruled", None)]
