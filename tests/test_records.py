"""Records come back as they were written, or are named as damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from r2q.intact import Damaged, sign
from r2q.kept import write_json
from r2q.records import (
    Evaluation,
    Facts,
    Layer,
    Report,
    Score,
    TaskScore,
    columns,
    read_csv,
    read_drawn,
    read_if_whole,
    read_json,
    write_csv,
    write_record,
)
from tests.units import report

LAYER = Layer(
    "model.layers.0.mlp.up_proj", [4, 2], 1e-3, 0.1 + 0.2, 2.5, block=0, kind="up_proj", notes={"loss": [1.0]}
)
REPORT = report(
    options={"clip": "none"}, facts=Facts(quantizer="rtn"), layers=[LAYER], seconds=1, versions={"torch": "2"},
    hashes={"weights": None}, files={"config.json": 2},
)  # fmt: skip
EVALUATION = Evaluation(
    key="k", status="failed", reason="no memory", scores=[TaskScore("t", "acc", "none", None, None, 4, 0.25, None, True,
    True, "1")], seconds=1.0, task_seconds={"t": 0.5}, peak_mib=None, device="cpu", dtype="float32", batch_size=4,
    add_bos=None, seeds={"torch": 1}, versions={}, hashes={}, truncated={}, files={}, retry=True,
)  # fmt: skip


@pytest.mark.parametrize("record", [REPORT, EVALUATION])
def test_a_record_comes_back(record: Report | Evaluation, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", record)
    assert read_json(tmp_path / "a.json", type(record)) == record


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "fine"}, "status: Input should be 'ok', 'failed' or 'diverged'"),
        ({"layers": [{"name": "x"}]}, "layers.0.shape: Field required"),
        ({"format_version": 1}, "format_version: Input should be 2"),
        ({"seed": "one"}, "seed: Input should be a valid integer"),
        ({"files": None}, "files: Input should be an object"),
    ],
)
def test_a_field_that_is_wrong_is_named(change: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, REPORT)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Damaged) as error:
        read_json(path, Report)
    assert str(error.value).startswith(f"{path}: damaged: {said}")


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "null", "\x00", '{"key": "k"}'])
def test_a_damaged_file_is_named_and_made_again(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    assert read_if_whole(path, Report) is None
    path.write_text(text)
    assert read_if_whole(path, Report) is None
    assert f"{path}: damaged" in capsys.readouterr().out


SCORE = Score(
    run="r", model="m", family="f", recipe="x", method="rtn", granularity=None, group_size=None, bits_per_weight=2.5,
    file_bytes=10, seed=0, task="t", metric="acc", value=0.1 + 0.2, stderr=None, n=4, chance=None, majority=None,
    higher_is_better=True, in_table=None, status="failed", seconds=None, peak_mib=None, provenance="p",
    reason="a, b: c",
)  # fmt: skip


def test_a_csv_keeps_every_digit_type_and_gap(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    write_csv(path, columns(Score), [SCORE, replace(SCORE, seed=1, in_table=False)])
    frame = read_csv(path, Score)
    assert frame["value"][0] == 0.1 + 0.2
    assert (frame["granularity"][0], frame["reason"][0], frame["seed"].tolist()) == ("", "a, b: c", [0, 1])
    assert frame["in_table"].isna().tolist() == [True, False]
    older = path.read_text().replace(",reason", "").replace(',"a, b: c"', "")
    path.write_text(older)
    assert read_csv(path, Score)["reason"].tolist() == ["", ""]  # of a version that had none
    path.write_text(older.replace(",chance", ",luck"))
    with pytest.raises(ValueError, match="has no column chance; it has run, model"):
        read_csv(path, Score)


def test_a_signed_csv_that_was_edited_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    write_csv(path, columns(Score), [SCORE])
    sign(tmp_path / "collected.sha256", [path])
    assert len(read_csv(path, Score)) == 1
    path.write_text(path.read_text().replace("0.30000000000000004", "0.9"))
    with pytest.raises(Damaged, match=r"scores\.csv is not what was written"):
        read_csv(path, Score)


@pytest.mark.parametrize("content", [b"", b"run,model\na,b\na,b,c\n", b"run\n\xff\n"])
def test_what_is_no_csv_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_bytes(content)
    for read in (lambda: read_csv(path, Score), lambda: read_drawn(path, ["run"])):
        with pytest.raises(ValueError, match=r"scores\.csv: no CSV \("):
            read()


def test_a_record_of_which_a_number_was_edited_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report = replace(REPORT, bits_per_weight=2, notes={10: 1, 2: (0.5, None)})  # not as JSON has them
    write_record(path, report)
    assert read_json(path, Report).bits_per_weight == 2.0
    for old, new in (('"bits_per_weight": 2,', '"bits_per_weight": 1,'), ('"seed": 0', '"seed": 1')):
        write_record(path, report)
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        with pytest.raises(Damaged, match=r"report\.json: damaged: it is not what was written"):
            read_json(path, Report)
