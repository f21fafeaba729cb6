"""The main table: which rows, in which order, what is marked, in three formats."""

import csv
import io
import itertools
import re
import shutil
import subprocess

import pandas as pd
import pytest

from r2q.plan import Plan
from r2q.records import Latency, LayerRow, Score, Step, columns, read_drawn, write_csv
from r2q.report.averages import average_scores
from r2q.report.collect import collect
from r2q.report.figures import frontier
from r2q.report.page import page
from r2q.report.run import Run, read_scores
from r2q.report.tables import TABLES, table
from r2q.report.tables.paper import coarse, cost, fine, frames, generative, groups, latency, main, memory
from r2q.report.tables.render import terminal
from r2q.report.tables.sheet import Entry, Sheet, escape, grid, latex, markdown
from r2q.report.tables.summary import AVERAGE, Column, show, summarize
from tests.report.large import large_run


def frame(rows):
    """Scores from short rows: recipe, bits, seed, task, value and changes; one model, four-choice items."""
    records = []
    for recipe, bits, seed, task, value, changes in rows:
        record = dict.fromkeys(columns(Score)) | {
            "run": "r", "model": "m", "family": "f", "recipe": recipe, "method": recipe.partition("-")[0],
            "bits_per_weight": bits, "file_bytes": int(1000 * bits), "seed": seed, "task": task, "metric": "acc",
            "value": value, "stderr": 0.02, "n": 400, "chance": 0.25, "majority": 0.25, "higher_is_better": True,
            "in_table": True, "status": "ok", "reason": "", "control": False,
        }  # fmt: skip
        records.append(record | changes)
    return pd.DataFrame(records, columns=columns(Score))


LOST = {"in_table": None, "metric": "", "chance": None, "majority": None}  # of a unit without values
PPL = {"metric": "token_ppl_128", "higher_is_better": False, "chance": None, "majority": None}


def rows_of(summary, model=0):
    return {row.recipe: row for row in summary.blocks[model].rows}


@pytest.fixture
def tables(run, tmp_path):
    """main.{csv,md,tex} of the hand-made run with one failed recipe."""
    run.fail("mini-opt", "r2q-g64", "layer model.layers.0.fc_1: 50 % & more | of it is not finite")
    collect(run.config_path, run.results)
    table(run.results, tmp_path / "tables")
    return {kind: (tmp_path / "tables" / f"main.{kind}").read_text() for kind in ("csv", "md", "tex")}


def test_row_order(tables):
    rows = list(csv.DictReader(tables["csv"].splitlines()))
    assert [row["recipe"] for row in rows if row["model"] == "mini-llama"] == [
        "chance", "majority", "full-precision", "rtn-g64", "random-codes-g64", "r2q-g64",
    ]  # fmt: skip  # full precision first, then by bits, 2.28 and 2.5, then as in the config
    assert rows[0]["mini_facts acc ↑"] == "0.25"
    assert rows[1]["mini_facts acc ↑"] == "0.27"


def test_column_order_and_average(tables):
    rows = {row["recipe"]: row for row in csv.DictReader(tables["csv"].splitlines()) if row["model"] == "mini-llama"}
    shown = [name for name in rows["rtn-g64"] if name.endswith(("↑", "↓", "average"))]
    assert shown == ["mini_text word_perplexity ↓", "mini_facts acc ↑", "mini_who acc ↑", "average"]
    assert float(rows["rtn-g64"]["average"]) == pytest.approx((0.69 + 0.70) / 2)  # no perplexity in it
    assert float(rows["rtn-g64"]["average spread"]) == pytest.approx(0.02 / 2**0.5)  # in the unit of its number
    assert float(rows["chance"]["average"]) == pytest.approx((0.25 + 0.5) / 2)


def test_programs_read_columns_of_numbers_as_numbers(tables):
    """What is not there is an empty field: a dash makes a column of texts, in pandas as in R."""
    read = pd.read_csv(io.StringIO(tables["csv"]))
    numbers = [name for name in read.columns if name.endswith((" acc ↑", "bits", "MiB", "average", "spread"))]
    assert len(numbers) == 9
    assert [name for name in numbers if not pd.api.types.is_numeric_dtype(read[name])] == []


def test_best_is_bold_among_rivals_of_equal_bits():
    scores = frame([
        ("full_precision", 16.0, 0, "a", 0.9, {}), ("full_precision", 16.0, 0, "p", 5.0, PPL),
        ("rtn-g64", 2.28, 0, "a", 0.6, {}), ("rtn-g64", 2.28, 0, "p", 30.0, PPL),
        ("r2q-g64", 2.5, 0, "a", 0.7, {}), ("r2q-g64", 2.5, 0, "p", 20.0, PPL),
        ("rtn-3bit", 3.28, 0, "a", 0.8, {}), ("rtn-3bit", 3.28, 0, "p", 9.0, PPL),
        ("random_codes", 2.28, 0, "a", 0.85, {"control": True}),
        ("random_codes", 2.28, 0, "p", 1.0, PPL | {"control": True}),
    ])  # fmt: skip
    summary = summarize(scores)
    best = {(row.recipe, column.task) for row in summary.blocks[0].rows
            for column, cell in zip(summary.columns, row.cells, strict=True) if cell.best}  # fmt: skip
    # neither full precision, nor the control, nor the only 3-bit row; perplexity is best when low
    assert best == {("r2q-g64", "a"), ("r2q-g64", "p")}


def test_equal_to_the_shown_digit_is_equally_best():
    scores = frame([("rtn", 2.0, 0, "a", 0.70004, {}), ("r2q", 2.5, 0, "a", 0.70001, {}), ("x", 2.9, 0, "a", 0.69, {})])
    rows = rows_of(summarize(scores))
    assert [rows[name].cells[0].best for name in ("rtn", "r2q", "x")] == [True, True, False]


@pytest.mark.parametrize(
    ("value", "stderr", "majority", "marked"),
    [
        (0.265, 0.02, 0.25, True),  # within one standard error of chance
        (0.275, 0.02, 0.25, False),
        (0.10, 0.02, 0.25, True),  # below chance is no better
        (0.60, 0.02, 0.62, True),  # above chance, but no better than one constant answer
        (0.65, 0.02, 0.62, False),
    ],
)
def test_chance_marks(value, stderr, majority, marked):
    changes = {"stderr": stderr, "majority": majority}
    scores = frame([("rtn", 2.0, 0, "a", value, changes), ("r2q", 2.5, 0, "a", value - 0.01, changes)])
    cell = rows_of(summarize(scores))["rtn"].cells[0]
    assert cell.at_chance is marked
    assert cell.best is not marked  # nothing at chance is the best


def test_a_perplexity_is_never_at_chance_and_has_no_row_of_guesses():
    """Of a run of texts alone they were two rows of nothing."""
    rows = rows_of(summarize(frame([("rtn", 2.0, 0, "p", 0.2, PPL)])))
    assert list(rows) == ["rtn"]
    assert not rows["rtn"].cells[0].at_chance


def test_two_chance_levels_of_one_task_are_an_error():
    scores = frame([("rtn", 2.0, 0, "a", 0.5, {}), ("r2q", 2.5, 0, "a", 0.5, {"chance": 0.5})])
    with pytest.raises(ValueError, match=r"model m, a acc: chance should be one number, not \[0.25, 0.5\]"):
        summarize(scores)


def test_several_seeds_are_mean_and_sd():
    scores = frame([
        ("rtn", 2.0, 0, "a", 0.5, {}), ("rtn", 2.0, 0, "b", 0.9, {}),
        ("rtn", 2.0, 1, "a", 0.7, {}), ("rtn", 2.0, 1, "b", 0.7, {}),
    ])  # fmt: skip
    summary = summarize(scores)
    row = rows_of(summary)["rtn"]
    assert row.seeds == 2
    assert [cell.value for cell in row.cells] == pytest.approx([0.6, 0.8, 0.7])
    assert [cell.sd for cell in row.cells] == pytest.approx([0.2 / 2**0.5, 0.2 / 2**0.5, 0.0])  # the averages are equal
    assert row.cells[0].stderr == 0.02  # more seeds do not make more items
    assert "rtn (2 seeds)" in terminal(summary)


def test_one_failed_seed_leaves_the_others():
    failed = {"status": "failed", "reason": "NaN"} | LOST
    scores = frame([("rtn", 2.0, 0, "a", 0.5, {}), ("rtn", 2.0, 1, "", None, failed)])
    row = rows_of(summarize(scores))["rtn"]
    assert (row.seeds, row.failures, row.failed) == (1, (("failed", "seed 1: NaN"),), False)
    assert row.cells[0].value == 0.5


@pytest.mark.parametrize(
    ("first", "second", "status", "reasons"),
    [
        ("diverged: step 4", "diverged: step 9", "diverged", "diverged: seed 0: step 4; seed 1: step 9"),
        ("diverged: step 4", "failed: 1: NaN", "failed", "diverged: seed 0: step 4; failed: seed 1: 1: NaN"),
    ],
)
def test_a_recipe_without_values_says_what_each_seed_did(first, second, status, reasons):
    rows = [
        ("rtn", 2.0, seed, "", None, LOST | dict(zip(("status", "reason"), text.split(": ", 1), strict=True)))
        for seed, text in enumerate((first, second))
    ]
    summary = summarize(frame([("r2q", 2.5, 0, "a", 0.9, {}), ("r2q", 2.5, 1, "a", 0.9, {}), *rows]))
    row = rows_of(summary)["rtn"]
    assert (row.failed, row.status, row.reasons) == (True, status, reasons)
    assert f"  {reasons}\n" in terminal(summary)
    assert rows_of(summary)["r2q"].status == "ok"


def test_average_needs_every_part():
    scores = frame([
        ("rtn", 2.0, 0, "a", 0.5, {}), ("rtn", 2.0, 0, "b", 0.5, {}), ("r2q", 2.5, 0, "a", 0.9, {}),
    ])  # fmt: skip
    rows = rows_of(summarize(scores))
    assert rows["r2q"].cells[2].value is None
    assert rows["rtn"].cells[2].value == 0.5


def test_written_answers_go_by_what_the_task_asks_for(tmp_path):
    """DROP's `em` and SQuAD's `contains` are written answers, a choice that is scored by `f1` is none.

    An older run, which does not say, has what the names of metrics tell, and says so.
    """
    write, choose = {"output_type": "generate_until"}, {"output_type": "multiple_choice"}
    scores = frame([
        ("rtn", 2.0, 0, "drop", 0.1, {"metric": "em"} | write),
        ("rtn", 2.0, 0, "squad", 0.2, {"metric": "contains"} | write),
        ("rtn", 2.0, 0, "gsm8k", 0.3, {"metric": "exact_match/strict"} | write),
        ("rtn", 2.0, 0, "copa", 0.5, choose), ("rtn", 2.0, 0, "cb", 0.4, {"metric": "f1"} | choose),
    ])  # fmt: skip
    scores.to_csv(tmp_path / "scores.csv", index=False)
    sheet = generative(Run(tmp_path))
    assert [name.split()[0] for name in sheet.head[4:]] == ["drop", "squad", "gsm8k", "average"]
    scores.drop(columns="output_type").to_csv(tmp_path / "scores.csv", index=False)
    older = generative(Run(tmp_path))
    assert [name.split()[0] for name in older.head[4:]] == ["gsm8k", "cb", "average"]
    assert (len(older.notes), "before scores.csv had output types" in older.notes[-1]) == (len(sheet.notes) + 1, True)
    scores[scores["output_type"] == "multiple_choice"].to_csv(tmp_path / "scores.csv", index=False)
    assert generative(Run(tmp_path)) is None


def test_a_task_may_be_called_average():
    scores = frame([("rtn", 2.0, 0, "average", 0.5, {}), ("rtn", 2.0, 0, "b", 1.0, {})])
    assert [cell.value for cell in rows_of(summarize(scores))["rtn"].cells] == [0.5, 1.0, 0.75]


def test_free_answers_have_no_majority():
    free = {"metric": "exact_match", "chance": 0.0, "majority": None}
    scores = frame([("rtn", 2.0, 0, "a", 0.9, {"majority": 0.3}), ("rtn", 2.0, 0, "sums", 0.01, free)])
    rows = rows_of(summarize(scores))
    assert [cell.value for cell in rows["majority"].cells] == [0.3, None, 0.15]
    assert [cell.at_chance for cell in rows["rtn"].cells] == [False, True, False]


def test_failed_recipe_is_a_row(tables):
    reason = "layer model.layers.0.fc_1: 50 % & more | of it is not finite"
    row = [r for r in csv.DictReader(tables["csv"].splitlines()) if r["mini_text word_perplexity ↓"] == "failed"]
    assert [(r["model"], r["recipe"], r["mini_facts acc ↑"]) for r in row] == [("mini-opt", "r2q-g64", "")]
    assert re.search(r"\| r2q-g64 +\| +– \| +– \| +failed \|", tables["md"])
    assert f"- mini-opt, r2q-g64 failed: {reason}." in tables["md"]
    assert r"r2q-g64 failed: layer model.layers.0.fc\_1: 50 \% \& more \textbar{} of it" in tables["tex"]


def test_a_recipe_that_diverged_is_a_row(run, tmp_path, capsys):
    run.fail("mini-opt", "r2q-g64", "step 4, loss nan, gradient norm 2.0", status="diverged")
    collect(run.config_path, run.results)
    table(run.results, tmp_path, show=True)
    texts = {kind: (tmp_path / f"main.{kind}").read_text() for kind in ("csv", "md", "tex")}
    reason = "step 4, loss nan, gradient norm 2.0"
    assert re.search(r"\| r2q-g64 +\| +– \| +– \| +diverged \|", texts["md"])
    assert f"- mini-opt, r2q-g64 diverged: {reason}.\n" in texts["md"]
    assert re.search(rf"r2q-g64 +– +– +diverged: {reason}\n", capsys.readouterr().out)
    assert "failed" not in "".join(texts.values())


def test_a_line_in_a_field_ends_no_field():
    assert {line.count("|") for line in grid(["a|b", "c"], [["1", "no|yes"]])} == {3}


def test_markdown_grid_is_whole(tables):
    (block,) = re.findall(r"(?:^\|.*\n)+", tables["md"], flags=re.M)
    assert len({line.count("|") for line in block.splitlines()}) == 1
    assert len({len(line) for line in block.splitlines()}) == 1  # aligned in the source
    assert "**84.0** ±2.0" in tables["md"]
    assert "25.0° ±2.0" in tables["md"]
    assert "| mini_text word_perplexity ↓ | mini_facts acc ↑ |" in tables["md"]


def timed(recipe, weights, ms, **more):
    """A step of a batch of two on a GPU."""
    known = {"run": "r", "model": "mini-llama", "recipe": recipe, "seed": 0, "weights": weights, "phase": "decode",
             "batch": 2, "context": 512, "compiled": False, "device": "a GPU", "dtype": "bfloat16", "median_ms": ms,
             "first_quartile_ms": ms - 1, "third_quartile_ms": ms + 1, "tokens_per_second": 2e3 / ms,
             "peak_bytes": 2**21, "weight_bytes_read": 2**20, "share_of_copy_bandwidth": 0.5}  # fmt: skip
    return Latency(**known | more)


def test_latency_stands_beside_sixteen_bits_and_in_the_cost(collected, tmp_path):
    assert latency(Run(collected)) is None
    dense = [timed("r2q-g64", "dense", 30.0), timed("r2q-g64", "dense", 8.0, compiled=True)]
    packed = [timed("r2q-g64", "packed", 12.0), timed("r2q-g64", "packed", 4.0, compiled=True)]
    lost = Latency("r", "mini-opt", "r2q-g64", 0, reason="failed: not finite")
    write_csv(collected / "latency.csv", columns(Latency), [*packed, *dense, lost])
    sheet = latency(Run(collected))
    rows = [[entry.text if isinstance(entry, Entry) else entry for entry in row] for row in sheet.body]
    assert [row[2] for row in rows] == ["decode", "decode, compiled"]
    assert rows[0][3:] == ["2", "12.00 (11.00, 13.00)", "30.00 (29.00, 31.00)", "2.50", "166.7", "66.7", "1.00",
                           "0.50", "2.00", "2.00"]  # fmt: skip
    assert rows[1][6:9] == ["2.00", "500.0", "250.0"]
    assert "mini-opt, r2q-g64: failed: not finite." in sheet.notes
    assert "On a GPU, bfloat16, a context of 512 tokens." in sheet.notes
    costs = cost(Run(collected))
    assert costs.head[-1] == "tokens/s, batch 2"
    assert {(row[0], row[1]): row[-1].text for row in costs.body}["mini-llama", "r2q-g64"] == "500.0"  # the faster
    page([collected], tmp_path / "report.html")
    assert "<td>12.00 (11.00, 13.00)</td>" in (tmp_path / "report.html").read_text()


def test_twins_that_do_not_fit_into_memory_are_named_below_the_times_of_their_checkpoints(run, tmp_path):
    collect(run.config_path, run.results)
    packed = [timed("r2q-g64", "packed", 12.0), timed("r2q-g64", "packed", 24.0, batch=16)]
    large = Latency("r", "mini-llama", "r2q-g64", 0, "dense", "decode", 16, 512, False, reason="no room")
    whole = Latency("r", "mini-opt", "r2q-g64", 0, "dense", reason="no room at all")
    rows = [*packed, timed("r2q-g64", "dense", 30.0), large, timed("r2q-g64", "packed", 5.0, model="mini-opt"), whole]
    write_csv(run.results / "latency.csv", columns(Latency), rows)
    sheet = latency(Run(run.results))
    assert [[entry.text for entry in row[4:7]] for row in sheet.body] == [
        ["12.00 (11.00, 13.00)", "30.00 (29.00, 31.00)", "2.50"],
        ["24.00 (23.00, 25.00)", "–", "–"],
        ["5.00 (4.00, 6.00)", "–", "–"],
    ]
    assert "mini-llama, r2q-g64, 16 bits, decode, batch 16: no room." in sheet.notes
    assert "mini-opt, r2q-g64, 16 bits: no room at all." in sheet.notes
    page([run.results], tmp_path / "report.html")
    assert "no room at all" in (tmp_path / "report.html").read_text()


def test_the_plan_names_every_table_without_reading_pandas():
    assert Plan.tables == tuple(TABLES)


def test_latex_is_balanced(run, tmp_path):
    """Every table: as many fields in each row as columns, nothing scaled, braces closed."""
    run.fail("mini-opt", "r2q-g64", "a {brace} and 50 %")
    collect(run.config_path, run.results)
    table(run.results, tmp_path)
    for name in TABLES:
        tex = (tmp_path / f"{name}.tex").read_text()
        body = tex.replace(r"\{", "").replace(r"\}", "")
        assert body.count("{") == body.count("}")
        assert "resizebox" not in tex
        assert tex.isascii()
        (columns,) = {len(spec) for spec in re.findall(r"\\begin{tabular}{([lr]+)}", tex)}
        for line in re.findall(r"^(.*) \\\\$", tex, flags=re.M):
            assert len(re.findall(r"(?<!\\)&", line)) + 1 == columns
        code = tex.replace(r"\_", "").replace(r"\%", "").replace(r"\#", "").replace(r"\&", "")
        assert "_" not in re.sub(r"\\label{[^}]*}", "", code)
    tex = (tmp_path / "main.tex").read_text()
    assert r"\textbf{84.0}" in tex
    assert r"\textcolor{gray}{25.0" in tex


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_without_overfull_boxes(collected, tmp_path):
    table(collected, tmp_path)
    text = "\\documentclass[twocolumn,a4paper]{article}\\usepackage[margin=2cm]{geometry}\\usepackage{booktabs,xcolor}"
    inputs = "".join(f"\\input{{{name}.tex}}\\clearpage" for name in TABLES)
    (tmp_path / "all.tex").write_text(f"{text}\\begin{{document}}{inputs}\\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-2000:]
    assert "Overfull" not in found.stdout


def test_a_wide_table_is_set_in_parts():
    head = ["recipe", *(f"task {i}" for i in range(30))]
    tex = latex(Sheet("wide", "Wide", head, [["rtn", *(Entry(f"{i}.0", value=float(i)) for i in range(30))]]))
    assert tex.count(r"\begin{table*}") == 3  # 30 columns of 7 to 9 letters
    assert all(f"{i}.0" in tex for i in range(30))


def by_size(run, tmp_path):
    """Names of the table by file size, and those that are marked."""
    collect(run.config_path, run.results)
    table(run.results, tmp_path)
    rows = list(csv.DictReader((tmp_path / "memory.csv").open()))
    return [row["recipe"] for row in rows], [row["recipe"] for row in rows if row["average accuracy, % bold"]]


def test_files_in_the_order_of_their_size(run, tmp_path):
    """Of equal size and average the first named is best; full precision takes no part."""
    names, best = by_size(run, tmp_path)
    small = ["rtn-g64", "random-codes-g64"]
    assert names == [*small, *small, "r2q-g64", "r2q-g64", "full-precision", "full-precision"]
    assert best == ["rtn-g64", "r2q-g64"]  # of the model that stands first


def test_a_recipe_whose_first_seed_failed_has_a_size(make_run, tmp_path):
    run = make_run(models=("mini-llama",), seeds=[0, 1])
    run.unit("mini-llama", "random-codes-g64", seed=1)
    run.fail("mini-llama", "random-codes-g64", "weights are not finite")
    names, _ = by_size(run, tmp_path)
    assert names == ["rtn-g64", "random-codes-g64", "r2q-g64", "full-precision"]
    (row,) = [row for row in csv.DictReader((tmp_path / "cost.csv").open()) if row["recipe"] == "random-codes-g64"]
    assert (row["bits"], row["peak MiB, evaluation"]) == ("2.28125", "300.0")
    assert "random-codes-g64" in set(frontier.data(Run(run.results), "bits")["recipe"])


def sized(tmp_path, rows):
    """The table of sizes of recipes (name, bits, accuracy, changes); MiB follow the bits."""
    return memory(run_of(tmp_path, frame((*row[:2], 0, "a", *row[2:]) for row in rows)))


def test_of_files_of_one_size_the_best_is_best_alone(tmp_path):
    """Whatever their order."""
    values = [("awq", 2.0, 0.5, {}), ("gptq", 2.0, 0.6, {}), ("hqq", 2.0, 0.8, {}), ("r2q", 2.5, 0.8, {})]
    sheet = sized(tmp_path, values)
    assert [row[1] for row in sheet.body] == ["awq", "gptq", "hqq", "r2q"]  # of one size: as in the config
    assert [row[1] for row in sheet.body if row[-1].bold] == ["hqq"]


@pytest.mark.parametrize(("value", "majority", "marked"), [(0.27, 0.25, True), (0.6, 0.62, True), (0.65, 0.62, False)])
def test_an_average_is_at_chance_by_the_rule_of_the_main_table(tmp_path, value, majority, marked):
    level = {"majority": majority}
    sheet = sized(tmp_path, [("rtn", 2.0, value, level), ("r2q", 2.5, value - 0.1, level)])
    cell = sheet.body[0][-1]
    assert (cell.grey, cell.bold) == (marked, not marked)
    assert any("Grey" in note for note in sheet.notes)  # r2q always is


def test_intervals_have_the_digits_of_their_number(tmp_path):
    kl = PPL | {"metric": "kl", "stderr": 0.15}
    sheet = sized(tmp_path, [("rtn", 2.0, 0.9, {}), ("r2q", 2.5, 13.0, kl)])
    assert sheet.body[1][4].text == "13.00 (12.71, 13.29)"


def test_terminal_fits():
    wide = "r2q-alternating-channel"
    names = ["mini_text", "mini_facts", "mini_tools", "mini_next", "mini_who", "mini_yesno", "mini_sums", "train_text"]
    metrics = {"mini_text": "word_perplexity", "train_text": "token_ppl_2048", "mini_sums": "exact_match"}
    scores = frame([
        (recipe, bits, 0, name, 123456.0 if "text" in name else 1.0,
         {"metric": metrics.get(name, "acc"), "higher_is_better": "text" not in name})
        for recipe, bits in ((wide, 2.5), ("rtn", 2.25)) for name in names
    ])  # fmt: skip
    lines = terminal(summarize(scores)).splitlines()
    assert max(map(len, lines)) <= 130
    row = next(line for line in lines if line.startswith(wide))
    assert row.split()[-7:] == ["100.0*"] * 7  # six tasks and the average
    assert "1.2e+05" in row


def test_show_prints_the_compact_form(collected, tmp_path, capsys):
    table(collected, tmp_path / "t", show=True)
    printed = capsys.readouterr().out
    assert printed == terminal(summarize(read_scores(collected / "scores.csv")))
    table(collected, tmp_path / "t")
    assert capsys.readouterr().out == ""


def test_numbers_as_shown():
    ppl, acc = Column("t", "ppl", False, False), Column("a", "acc", True, True)
    assert [show(v, ppl) for v in (5.4712, 37.366, 123.456, 5469.2, 123456.0, float("inf"), None)] == [
        "5.47", "37.37", "123.5", "5469", "1.2e+05", "inf", "–",
    ]  # fmt: skip
    small = [show(v, ppl) for v in (0.0, 0.99951, 0.9994, 0.56234, 0.0449, 0.001234, 0.0009876, -0.0123)]
    assert small == ["0.00", "1.00", "0.999", "0.562", "0.0449", "0.00123", "9.9e-04", "-0.0123"]
    assert show(0.8125, acc) == "81.2"


def test_score_above_one_is_not_an_accuracy():
    scores = frame([("rtn", 2.0, 0, "bleu", 23.0, {"chance": None, "majority": None}), ("rtn", 2.0, 0, "a", 0.5, {})])
    columns = summarize(scores).columns
    assert [column.percent for column in columns] == [False, True]
    assert AVERAGE not in [column.task for column in columns]


def test_nothing_to_show_is_an_error(collected, tmp_path):
    path = collected / "scores.csv"
    path.write_text(path.read_text().replace(",True,ok,", ",False,ok,"))
    (collected / "collected.sha256").unlink()
    with pytest.raises(ValueError, match=r"no score has in_table = True"):
        table(collected, tmp_path)


def test_a_run_of_failures_alone_has_tables_of_them(run, tmp_path, capsys):
    """Also where groups alone failed, of which there is a table of their own."""
    for model in ("mini-llama", "mini-opt"):
        for recipe in run.config["recipes"]:
            run.fail(model, recipe, f"no {recipe} memory", status="diverged" if recipe == "r2q-g64" else "failed")
    collect(run.config_path, run.results)
    table(run.results, tmp_path, show=True)
    for name, recipes in (("main", list(run.config["recipes"])), ("fine", ["r2q-g64", "rtn-g64"])):
        rows = read_drawn(tmp_path / f"{name}.csv", ["model", "recipe", "status"])
        found = {row["recipe"]: row["status"] for row in rows.to_dict("records") if row["model"] == "mini-opt"}
        assert [found[recipe] == "diverged" for recipe in recipes] == [recipe == "r2q-g64" for recipe in recipes]
        assert set(found.values()) == {"diverged", "failed"}
        assert len(rows) == 2 * len(run.config["recipes"])
        assert "mini-opt, rtn-g64 failed: no rtn-g64 memory." in (tmp_path / f"{name}.md").read_text()
    printed = capsys.readouterr().out
    assert printed.count("diverged: no r2q-g64 memory") == 2
    assert "chance" not in printed.split("*")[0]


def test_missing_column_is_named(collected, tmp_path):
    path = collected / "scores.csv"
    path.write_text(path.read_text().replace(",chance,", ",luck,", 1))
    (collected / "collected.sha256").unlink()
    with pytest.raises(ValueError, match=r"scores\.csv has no column chance; it has run, model"):
        table(collected, tmp_path)


def test_a_table_of_frames_has_every_training(tmp_path):
    """Also those that differ in nothing that the table shows, such as their number of steps."""
    run = Run(large_run(tmp_path))
    sheet = frames(run)
    numbers = [cell for row in sheet.body for cell in row[2:] if cell.value is not None]
    assert len(numbers) == run.scores.loc[run.scores["kind"] == "training", "recipe"].nunique() == 36
    names = {f"bitdistiller, {steps} steps, {group}" for steps in (256, 1024) for group in ("g64", "g32", "channel")}
    assert {row[1] for row in sheet.body} == names  # two tables of the quantizers, not a row for each recipe


def test_codes_of_other_widths_have_rows_and_families_of_their_own(tmp_path):
    """At one granularity round to nearest has 2 bits and R2Q 3; at the other both have both."""
    trained = [("rtn", 2, "g64"), ("r2q", 3, "g64"), *itertools.product(("rtn", "r2q"), (2, 3), ("channel",))]
    facts = {"method": "bitdistiller", "frame": "bitdistiller", "kind": "training", "file_bytes": 9}
    scores = frame(
        (f"{q}-{bits}-{width}", bits + 0.5, 0, "task", 0.4,
         facts | {"quantizer": q, "granularity": width, "bits": bits})
        for q, bits, width in trained
    )  # fmt: skip
    alone = facts | {"method": "lsq.LSQ", "frame": None, "quantizer": "LSQ", "granularity": "g64", "bits": 2}
    scores = pd.concat([scores, frame([("lsq-g64", 2.5, 0, "task", 0.4, alone)])])  # trains in a way of its own
    scores.to_csv(tmp_path / "scores.csv", index=False)
    run = Run(tmp_path)
    rows = {str(row[1]): [cell.value is not None for cell in row[2:]] for row in frames(run).body}
    assert rows == {
        "bitdistiller, g64": [True, False], "bitdistiller, 3 bits, g64": [False, True],
        "bitdistiller, channel": [True, True], "bitdistiller, 3 bits, channel": [True, True],
    }  # fmt: skip
    rows = {str(row[1]): [cell.value is not None for cell in row[2:]] for row in groups(run).body}
    assert rows == {
        "bitdistiller rtn": [True, True], "bitdistiller r2q, 3 bits": [True, True],
        "bitdistiller rtn, 3 bits": [False, True], "bitdistiller r2q": [False, True], "LSQ": [True, False],
    }  # fmt: skip


def test_the_cost_of_a_training_is_that_of_all_its_steps(tmp_path):
    """Records count tokens from the start and seconds by step; of seeds, the mean."""
    folder = large_run(tmp_path)
    facts = {"model": "smollm2-135m", "recipe": "bitdistiller-r2q-g64", "frame": "bitdistiller", "steps": 3}
    records = [
        facts | {"seed": seed, "step": step, "tokens": 100 * step, "seconds": None if step == 0 else first + step}
        for seed, first in ((0, 10.0), (1, 20.0))
        for step in range(4)
    ]
    write_csv(folder / "training.csv", columns(Step), records)
    sheet = cost(Run(folder))
    place = [sheet.head.index(name) for name in ("recipe", "training tokens", "training s")]
    rows = {str(row[place[0]]): [row[j].value for j in place[1:]] for row in sheet.body}
    assert rows["bitdistiller-r2q-g64"] == [300, (10 + 20) * 3 / 2 + 1 + 2 + 3]
    assert rows["rtn-g64"] == [None, None]


@pytest.mark.parametrize("other", [-0.1, 0.2])
def test_no_recipe_decides_whether_a_correlation_is_an_accuracy(other):
    """Matthews correlations are no shares of right answers, whether or not one of them is negative."""
    mcc = {"metric": "mcc", "chance": None, "majority": None}
    values = {("rtn-g64", 2.28): (0.5, 0.3, 0.1), ("r2q-g64", 2.5): (0.6, 0.4, other)}
    scores = frame(
        (*recipe, 0, task, value, mcc if task == "cola" else {})
        for recipe, row in values.items()
        for task, value in zip(("one", "two", "cola"), row, strict=True)
    )
    summary = summarize(scores)
    assert {column.task: column.percent for column in summary.columns} == {
        "one": True, "two": True, "cola": False, AVERAGE: True
    }  # fmt: skip
    assert rows_of(summary)["rtn-g64"].cells[-1].value == pytest.approx(0.4)
    assert dict(average_scores(scores)[["recipe", "value"]].to_numpy()) == pytest.approx({"rtn-g64": 40, "r2q-g64": 50})


def run_of(folder, scores):
    """A run of hand-made scores and no layers."""
    rows = scores.astype(object).where(scores.notna(), None).to_dict("records")
    write_csv(folder / "scores.csv", columns(Score), rows)
    write_csv(folder / "layers.csv", columns(LayerRow), [])
    return Run(folder)


def test_an_average_is_one_number_wherever_it_stands(tmp_path):
    """A score of one's own that goes beyond 1 for one recipe alone is no share in the tables that lack this recipe,
    either: it had been averaged in those of granularities and frames, beside a main table that left it out."""
    facts = {
        "rtn": {"kind": "weights", "quantizer": "rtn"},
        "qat_ce-r2q": {"kind": "training", "frame": "qat_ce", "quantizer": "r2q"},
        "qat_ce-rtn": {"kind": "training", "frame": "qat_ce", "quantizer": "rtn"},
    }
    average = {"rtn": 55, "qat_ce-r2q": 65, "qat_ce-rtn": 75}  # of the two accuracies
    own = {"metric": "gain", "chance": None, "majority": None}
    rows = []
    for name, width in itertools.product(facts, ("g64", "channel")):
        gain = 3.0 if (name, width) == ("rtn", "g64") else 0.3
        for task, value, more in (("one", 0.0, {}), ("two", 0.1, {}), ("mine", gain, own)):
            share = value if more else value + average[name] / 100 - 0.05
            rows.append((f"{name}-{width}", 2.5, 0, task, share, more | facts[name] | {"granularity": width}))
    run = run_of(tmp_path, frame(rows))
    for make in (main, fine, coarse):
        sheet = make(run)
        place = sheet.head.index("average")
        found = {row[1]: 100 * row[place].value for row in sheet.body if row[1] not in ("chance", "majority")}
        assert found == pytest.approx({name: average[name.rpartition("-")[0]] for name in found})
    assert {row[1]: row[-1].value for row in memory(run).body} == pytest.approx(
        {name: average[name.rpartition("-")[0]] for name in dict.fromkeys(run.scores["recipe"])}
    )
    for make, shown in ((groups, [55, 65, 75]), (frames, [65, 75])):
        cells = {round(part.value) for row in make(run).body for part in row if isinstance(part, Entry)}
        assert sorted(cells) == shown


def test_a_recipe_of_which_nothing_came_stands_among_written_answers_too(tmp_path):
    wrote = {"metric": "exact_match", "output_type": "generate_until", "chance": 0.0, "majority": None}
    nothing = {"metric": "", "status": "failed", "reason": "no memory", "value": None, "in_table": None}
    run = run_of(tmp_path, frame([
        ("rtn", 2.0, 0, "sums", 0.5, wrote), ("rtn", 2.0, 0, "piqa", 0.5, {"output_type": "multiple_choice"}),
        ("gone", 2.0, 0, "", None, nothing),
    ]))  # fmt: skip
    sheet = generative(run)
    assert [row[1] for row in sheet.body] == ["chance", "rtn", "gone"]
    assert sheet.notes[0] == "m, gone failed: no memory."
    assert main(run).body[-1][1] == "gone"


def test_a_seed_that_failed_in_a_task_leaves_the_other_its_standard_error():
    """Without it the number had no ±, and one that is within an error of chance was not marked."""
    lost = {"value": None, "stderr": None, "status": "failed", "reason": "no"}
    scores = frame([("rtn", 2.0, 0, "a", 0.265, {}), ("rtn", 2.0, 1, "a", None, lost), ("rtn", 2.0, 1, "b", 0.9, {})])
    cell = rows_of(summarize(scores))["rtn"].cells[0]
    assert (cell.value, cell.spread, cell.at_chance) == (0.265, 0.02, True)


def test_two_names_of_other_letters_are_two_names_in_latex():
    """Each letter had been a question mark, also in the formula of the weights' error."""
    assert escape("(w − ŵ)²") == r"(w $-$ $\hat{w}$)$^2$"
    names = ["任务", "תויד", "a_é", "🙂", "±"]
    assert [escape(name) for name in names] == [
        r"\textbackslash{}u4efb\textbackslash{}u52a1",
        r"\textbackslash{}u05ea\textbackslash{}u05d5\textbackslash{}u05d9\textbackslash{}u05d3",
        r"a\_\textbackslash{}xe9", r"\textbackslash{}U0001f642", r"$\pm$",
    ]  # fmt: skip


def test_markdown_shows_reasons_that_look_like_tags():
    """A reader of Markdown leaves <class 'int'> out, as HTML that it does not know."""
    sheet = Sheet("x", "X", ["recipe"], [["a<b>"]], ["m failed: <class 'int'>."])
    text = markdown(sheet)
    assert r"| a\<b>  |" in text
    assert text.endswith("- m failed: \\<class 'int'>.\n")
