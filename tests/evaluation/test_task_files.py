"""Finding task files by name, in lm-eval and in folders of the user's own."""

from pathlib import Path

import pytest
from lm_eval.tasks._index import TaskIndex

from r2q.config import ConfigError
from r2q.evaluation.task_files import TaskFiles, default_folder, files_with_python, read_settings
from tests.evaluation import tiny

FILES = TaskFiles()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("piqa", "piqa/piqa.yaml"),
        ("arc_challenge", "arc/arc_challenge.yaml"),
        ("boolq", "super_glue/boolq/default.yaml"),  # the file is named otherwise
        ("social_iqa", "siqa/siqa.yaml"),  # file and folder are
        ("mmlu", "mmlu/default/_mmlu.yaml"),
        ("gsm8k", "gsm8k/gsm8k.yaml"),
    ],
)
def test_tasks_of_lm_eval(name: str, file: str) -> None:
    assert FILES.find(name).path == default_folder() / file


def test_the_text_index_is_that_of_lm_eval() -> None:
    """On whole folders, with groups, tags, includes and Python classes (checked once by hand on all 14,686 names)."""
    roots = [default_folder() / name for name in ("mmlu", "arc", "squadv2", "blimp", "super_glue", "hendrycks_math")]
    for name, entry in TaskIndex.build(roots).items():
        if entry.yaml_path is None:
            assert set(entry.tags) <= set(FILES._index.tags[name]), name
        else:
            assert FILES.find(name).path == entry.yaml_path, name


def test_a_group_stands_for_its_single_tasks() -> None:
    names = FILES.closure("mmlu")
    assert len([n for n, entry in names.items() if not entry.children]) == 57
    assert {"mmlu_stem", "mmlu_stem_tasks", "mmlu_anatomy"} <= names.keys()  # subgroup, tag, task


def test_settings_are_resolved_through_includes() -> None:
    settings = FILES.find("arc_challenge").settings
    assert settings["dataset_name"] == "ARC-Challenge"  # its own
    assert settings["doc_to_choice"] == "{{choices.text}}"  # of arc_easy.yaml
    assert FILES.find("winogrande").settings["doc_to_text"].startswith("!function")


def test_own_folders_come_first(tmp_path: Path) -> None:
    tiny.write_task(tmp_path, "piqa", tiny.choice_rows())
    tiny.write_task(tmp_path / "deep", "mine", tiny.choice_rows(), tag="ours")
    (tmp_path / "group.yaml").write_text("group: both\ntask: [piqa, ours, arc_easy]\n")
    files = TaskFiles([tmp_path])
    assert files.find("piqa").path == tmp_path / "piqa.yaml"
    assert files.find("ours").children == ["mine"]
    assert [n for n, e in files.closure("both").items() if not e.children] == ["arc_easy", "mine", "piqa"]
    with pytest.raises(ConfigError, match="nearest valid: mine"):
        files.find("minne")


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        TaskFiles([tmp_path / "absent"])
    with pytest.raises(ConfigError, match=r"no \.yaml file in"):
        TaskFiles([tmp_path])
    (tmp_path / "a.yaml").write_text("include: b.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: includes .*b\.yaml, which is not there"):
        read_settings(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("include: a.yaml\n")
    with pytest.raises(ConfigError, match="includes itself"):
        read_settings(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("task: [unclosed\n")
    with pytest.raises(ConfigError, match=r"b\.yaml: not YAML"):
        read_settings(tmp_path / "b.yaml")


def test_files_that_run_python_are_known(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("task: plain\n")
    (tmp_path / "code.yaml").write_text("task: code\ndoc_to_text: !function utils.text\n")
    assert files_with_python([tmp_path]) == [tmp_path / "code.yaml"]
