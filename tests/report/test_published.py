"""Published numbers: the files are consistent, ours stand beside them, and wrong full precision stops a run."""

import csv
from collections import defaultdict
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from r2q.kept import ROOT
from r2q.records import Control, Published, columns, read_csv
from r2q.report.collect import collect
from r2q.report.controls import controls
from r2q.report.published import read_published
from r2q.report.run import Run as ReadRun
from r2q.report.tables import table
from tests.report.conftest import Run, score

FOLDER = ROOT / "results" / "published"
DEFINITION = columns(Published)[: columns(Published).index("harness") + 1]
PPL = "token_ppl_2048"


def lines(name: str = "numbers.csv") -> list[dict[str, str]]:
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def agree(one: str, other: str) -> bool:
    """Whether two printed numbers are the same in the digits that both have."""
    if not one or not other:
        return one == other
    exponent = max(int(Decimal(text).as_tuple().exponent) for text in (one, other))
    return len({Decimal(text).quantize(Decimal(1).scaleb(exponent)) for text in (one, other)}) == 1


def test_every_file_has_the_columns_of_a_record_and_their_types() -> None:
    for file in FOLDER.glob("*.csv"):
        with file.open(encoding="utf-8") as stream:
            head = stream.readline().strip().split(",")
        assert head == (["model", "hub"] if file.name == "models.csv" else columns(Published))
    numbers = read_published(FOLDER)
    assert len(numbers) == len(lines())
    assert set(numbers["mark"]) <= {"", "img", "fork", "img fork"}
    shares = numbers[numbers["metric"] != "token_ppl"]["value"]
    assert shares.between(0, 1).all()
    assert (numbers["value"].isna() == numbers["note"].eq("reported as NaN")).all()
    full = numbers["method"] == "full_precision"
    assert (numbers["tolerance"].notna() == full).all()
    assert (numbers.loc[full, "tolerance"] < 0.05 * numbers.loc[full, "value"]).all()
    assert {row["model"] for row in lines("models.csv")} <= set(numbers["model"])
    assert lines("r2q.csv") == []


def test_a_conflict_is_the_same_definition_with_another_value() -> None:
    by_definition = defaultdict(list)
    for row in lines():
        by_definition[tuple(row[name] for name in DEFINITION)].append(row)
    for rows in by_definition.values():
        disputed = {id(row) for pair in combinations(rows, 2) if not agree(*(r["value"] for r in pair)) for row in pair}
        for row in rows:
            assert row["conflict"] == str(id(row) in disputed), row
    assert len({tuple(row.values()) for row in lines()}) == len(lines())


def test_an_average_is_that_of_its_tasks() -> None:
    known: dict[tuple[str, ...], dict[str, Decimal]] = defaultdict(dict)
    for row in lines():
        if row["metric"] == "acc":
            key = tuple(row[name] for name in ("model", "method", "bits", "group", "source"))
            known[key][row["task"]] = Decimal(row["value"])
    wrong, checked = [], 0
    for key, tasks in known.items():
        for name, average in tasks.items():
            parts = [tasks.get(task) for task in name.removeprefix("average of ").split()]
            if len(parts) > 1 and None not in parts:
                mean = sum(part for part in parts if part is not None) / len(parts)
                digits = max(int(number.as_tuple().exponent) for number in (*filter(None, parts), average))
                checked += 1
                wrong += [(key[0], key[1])] if abs(mean - average) > Decimal(1).scaleb(digits) else []
    assert checked > 12
    assert wrong == [("tinyllama-1.1b-v1.1", "bitdistiller")]  # its note says so


def llama(tmp_path: Path, ppl: float, model: str = "meta-llama/Llama-2-7b-hf", **text: Any) -> Run:
    """A collected run of one model whose full precision has this perplexity, and round to nearest 400 at g64."""
    wiki = {"path": "Salesforce/wikitext:wikitext-2-raw-v1:test", "window": 2048} | text
    made = Run(
        tmp_path, ("m",), {"m": {"path": model}}, perplexity={"wiki": wiki},
        tasks={"piqa": None, "winogrande": {"items": 100}},
    )  # fmt: skip
    lower = {"higher_is_better": False, "chance": None, "majority": None, "n": 166, "stderr": 0.03}
    for recipe, value in (("full-precision", ppl), ("rtn-g64", 400.0), ("r2q-g64", 500.0), ("random-codes-g64", 1e5)):
        scores = [
            score("wiki", PPL, value, **lower),
            score("piqa", "acc", 0.781, num_fewshot=0),
            score("winogrande", "acc", 0.1, num_fewshot=0),  # of 100 items: not what is published
        ]
        made.change("m", recipe, "evaluation.json", scores=scores)
    collect(made.config_path, made.results)
    return made


def test_published_numbers_stand_beside_ours(tmp_path: Path) -> None:
    made = llama(tmp_path / "run", 5.475)
    table(made.results, tmp_path / "tables")
    with (tmp_path / "tables" / "published.csv").open(newline="") as file:
        shown = [(r["recipe"], r["number"], r["ours"], r["published"], r["source"]) for r in csv.DictReader(file)]
    assert shown == [
        ("full-precision", f"wiki {PPL}", "5.475", "5.47", "OmniQuant imgs/weight_only.png"),
        ("full-precision", f"wiki {PPL}", "5.475", "5.47", "EfficientQAT README"),
        ("full-precision", "piqa acc", "0.781", "0.7786", "BitDistiller imgs/result7b.jpg"),
        ("full-precision", "piqa acc", "0.781", "0.7807", "auto-round docs"),
        ("rtn-g64", f"wiki {PPL}", "400.0", "431.97", "OmniQuant imgs/weight_only.png"),
    ]


@pytest.mark.parametrize(
    ("model", "text", "rows"),
    [
        ("models/Llama-2-7b-hf/", {}, 5),  # a folder called like the repository
        ("someone/Llama-2-7b-hf", {}, 0),  # another one of the hub, whatever it holds
        ("meta-llama/Llama-2-7b-hf", {"window": 1024}, 2),
        ("meta-llama/Llama-2-7b-hf", {"windows": 20}, 2),
        ("meta-llama/Llama-2-7b-hf", {"separator": " "}, 2),
        ("meta-llama/Llama-2-7b-hf", {"path": "Salesforce/wikitext:wikitext-103-raw-v1:test"}, 2),
    ],
)
def test_only_the_same_definition_is_set_beside(tmp_path: Path, model: str, text: dict[str, Any], rows: int) -> None:
    if model.endswith("/"):
        model = str(tmp_path / model)
    made = llama(tmp_path / "run", 5.475, model, **text)
    table(made.results, tmp_path / "tables")
    shown = (tmp_path / "tables" / "published.md").read_text()
    assert shown.count("| m ") == rows
    assert ("no rows for this table" in shown) == (rows == 0)


def test_wrong_full_precision_stops_the_run(tmp_path: Path) -> None:
    out = tmp_path / "controls.csv"
    controls(llama(tmp_path / "right", 5.475).results, out)
    held = read_csv(out, Control)
    assert list(held["published"]) == [5.47, 5.47, 0.7786, 0.7807]
    assert held["agrees"].all()
    out.unlink()
    with pytest.raises(ValueError, match=r"is 5\.51") as error:
        controls(llama(tmp_path / "wrong", 5.51).results, out)
    assert str(error.value) == (
        f"m, full-precision: wiki {PPL} is 5.51, published 5.47 (OmniQuant imgs/weight_only.png) or 5.47 (EfficientQAT "
        "README), tolerance 0.03: find out why before any row of m is trusted"
    )
    assert not out.exists()


def test_full_precision_that_failed_is_said_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = llama(tmp_path / "run", 5.475)
    lost = score("wiki", PPL, None, status="failed", reason="not finite")
    made.change("m", "full-precision", "evaluation.json", scores=[lost, score("piqa", "acc", 0.781, num_fewshot=0)])
    collect(made.config_path, made.results)
    controls(made.results, tmp_path / "controls.csv")
    said = f"controls: m, full-precision wiki {PPL} failed (not finite): nothing says what the other rows"
    assert capsys.readouterr().out.startswith(said)
    assert list(read_csv(tmp_path / "controls.csv", Control)["published"]) == [0.7786, 0.7807]


def test_of_disputed_numbers_one_is_enough_and_the_tolerance_is_the_files(tmp_path: Path) -> None:
    made = llama(tmp_path / "run", 5.60)
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "models.csv").write_text((FOLDER / "models.csv").read_text())
    of_llama = [row for row in lines() if (row["model"], row["method"]) == ("llama-2-7b", "full_precision")]
    row = next(row for row in of_llama if row["value"] == "5.47")
    piqa = next(row for row in of_llama if row["task"] == "piqa")
    for tolerance, other, passes in (("0.03", "5.30", False), ("0.2", "5.30", True), ("0.03", "5.62", True)):
        with (folder / "mine.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns(Published))
            writer.writeheader()
            writer.writerows([row | {"tolerance": tolerance}, row | {"value": other, "tolerance": tolerance}, piqa])
        if passes:
            controls(made.results, tmp_path / "controls.csv", folder)
            assert len(read_csv(tmp_path / "controls.csv", Control)) == 3
        else:
            with pytest.raises(ValueError, match=r"published 5\.47 .* or 5\.3 "):
                controls(made.results, tmp_path / "controls.csv", folder)


def test_a_folder_without_numbers_is_refused(tmp_path: Path) -> None:
    made = llama(tmp_path / "run", 5.47)
    with pytest.raises(FileNotFoundError, match="no published numbers in"):
        controls(made.results, tmp_path / "controls.csv", tmp_path)
    assert ReadRun(made.results).published == FOLDER
