"""collect: a tidy row per number, in the config's order, with a provenance that can be looked up."""

import json
import os

import pytest

from r2q.config import load
from r2q.kept import key
from r2q.plan import Plan
from r2q.plan.checks import stale
from r2q.report.collect import collect, metric_name
from r2q.report.page import page
from r2q.report.run import read_scores
from r2q.report.tables import table

HEADER = (
    "run,model,family,recipe,method,granularity,group_size,bits_per_weight,file_bytes,seed,task,metric,value,stderr,n,"
    "chance,majority,higher_is_better,in_table,status,seconds,peak_mib,provenance,reason,version,num_fewshot,kind,frame,"
    "quantizer,control,quantize_cpu_seconds,evaluate_cpu_seconds,bits,output_type"
)


def collected(run):
    collect(run.config_path, run.results)
    return read_scores(run.results / "scores.csv")


def test_columns_and_order(run):
    scores = collected(run)
    assert (run.results / "scores.csv").read_text().splitlines()[0] == HEADER
    units = list(dict.fromkeys(zip(scores["model"], scores["recipe"], strict=True)))
    recipes = ["full-precision", "r2q-g64", "rtn-g64", "random-codes-g64"]  # not the alphabet, not the folders' order
    assert units == [(model, recipe) for model in ("mini-llama", "mini-opt") for recipe in recipes]
    first = scores.head(4)
    named = first["task"] + " " + first["metric"]  # the units hold them in another order
    assert list(named) == ["mini_text word_perplexity", "mini_facts acc", "mini_facts acc_norm", "mini_who acc"]
    assert len(scores) == 2 * 4 * 4


def test_values_of_a_row(run):
    rows = collected(run)
    row = rows[(rows["recipe"] == "rtn-g64") & (rows["model"] == "mini-opt") & (rows["task"] == "mini_who")].iloc[0]
    assert (row["method"], row["granularity"], row["group_size"], row["seed"]) == ("rtn", "g64", 64, 0)
    assert row["bits"] == 2
    assert (row["value"], row["stderr"], row["n"], row["chance"], row["majority"]) == (0.7, 0.02, 400, 0.5, 0.5)
    assert (row["seconds"], row["peak_mib"]) == (0.5, 300.0)  # of this task; of the evaluation
    assert (row["quantize_cpu_seconds"], row["evaluate_cpu_seconds"]) == (3.5, 1.5)
    assert (row["bits_per_weight"], row["file_bytes"], row["status"]) == (2.28125, 800_000, "ok")
    assert row["higher_is_better"]
    assert row["in_table"]


def test_floats_survive_and_bytes_are_stable(run):
    exact = 0.1 + 0.2  # 0.30000000000000004
    run.change("mini-opt", "rtn-g64", "report.json", bits_per_weight=exact)
    assert exact in set(collected(run)["bits_per_weight"])
    names = ("scores.csv", "layers.csv", "provenance.json")
    before = [(run.results / name).read_bytes() for name in names]
    collect(run.config_path, run.results)
    assert [(run.results / name).read_bytes() for name in names] == before
    assert not any(b"\r" in content for content in before)


def test_failed_units_are_rows(run):
    run.fail("mini-opt", "rtn-g64", "layer fc1: group size 64 does not divide 100")
    run.change("mini-opt", "r2q-g64", "evaluation.json", status="failed", reason="out of memory", scores=[])
    rows = collected(run)
    quantize = rows[(rows["model"] == "mini-opt") & (rows["recipe"] == "rtn-g64")]
    assert list(quantize["status"]) == ["failed"]
    assert list(quantize["reason"]) == ["layer fc1: group size 64 does not divide 100"]
    assert quantize[["value", "bits_per_weight", "file_bytes", "n"]].isna().all().all()
    assert (quantize["task"].iloc[0], quantize["metric"].iloc[0]) == ("", "")
    evaluate = rows[(rows["model"] == "mini-opt") & (rows["recipe"] == "r2q-g64")]
    assert list(zip(evaluate["status"], evaluate["reason"], strict=True)) == [("failed", "out of memory")]
    assert list(evaluate["bits_per_weight"]) == [2.5]  # the file is there
    assert len(rows) == 2 * 4 * 4 - 2 * 3


def test_a_unit_that_diverged_is_a_row_of_its_own_kind(run):
    reason = "step 4, loss nan, gradient norm 2.0; the checkpoint: of step 2"
    run.fail("mini-opt", "rtn-g64", reason, status="diverged")
    rows = collected(run)
    row = rows[(rows["model"] == "mini-opt") & (rows["recipe"] == "rtn-g64")]
    assert row[["status", "reason"]].to_numpy().tolist() == [["diverged", reason]]
    assert row[["value", "bits_per_weight", "file_bytes", "n"]].isna().all().all()
    assert len(rows) == 2 * 4 * 4 - 3


@pytest.mark.parametrize(("name", "verb"), [("report.json", "quantize"), ("evaluation.json", "evaluate")])
def test_numbers_of_another_config_are_no_rows(run, name, verb):
    """As after `snakemake --touch`, or where the verb is called by hand: provenance.json tells of this config."""
    run.change("mini-opt", "r2q-g64", name, asked=key({"another": "config"}))
    with pytest.raises(ValueError, match=f"r2q-g64/seed0/{name} was made with another config.*run `{verb}` again"):
        collect(run.config_path, run.results)


def test_units_on_other_data_are_no_rows_and_are_evaluated_again(run, monkeypatch):
    """A data set of the hub that nobody pinned, or tasks of another lm-eval: no input of the workflow changes."""
    file = run.folder("mini-llama", "rtn-g64") / "evaluation.json"
    before = json.loads(file.read_text())
    run.change("mini-llama", "rtn-g64", "evaluation.json", hashes=before["hashes"] | {"tasks": "01d"})
    os.utime(file, ns=(1, 1))
    with pytest.raises(ValueError, match=r"mini-llama/rtn-g64/seed0/evaluation.json: evaluated when .* run `evaluate`"):
        collect(run.config_path, run.results)
    monkeypatch.chdir(run.root)
    reason = "mini-llama: tasks or texts held something else when older units were evaluated: again"
    assert stale(Plan(load(run.config_path))) == {str(file.relative_to(run.root)): reason}


def test_an_update_between_units_is_said(run, capsys):
    collected(run)
    assert "units were" not in capsys.readouterr().out
    run.change("mini-opt", "r2q-g64", "report.json", versions={"torch": "9.1"})
    run.change("mini-opt", "r2q-g64", "evaluation.json", device="NVIDIA H100", limits={"threads": 2})
    run.change("mini-opt", "rtn-g64", "evaluation.json", limits={"threads": 4})
    collected(run)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(", which may")[0] for line in said] == [
        "collect: units were quantized with torch 2.13.0 and 9.1",
        "collect: units were evaluated on NVIDIA H100 and cpu",
        "collect: units were evaluated with limits.threads 2 and 4",
    ]
    limits = [one["limits"]["evaluate"] for one in json.loads((run.results / "provenance.json").read_text()).values()]
    assert {"threads": 2} in limits


def test_a_score_without_value_says_so(run):
    path = run.folder("mini-llama", "rtn-g64") / "evaluation.json"
    scores = json.loads(path.read_text())["scores"]
    scores[0] |= {"value": None, "stderr": None}
    run.change("mini-llama", "rtn-g64", "evaluation.json", scores=scores)
    rows = collected(run)
    row = rows[rows["value"].isna()]
    assert row[["task", "status", "reason"]].to_numpy().tolist() == [["mini_who", "failed", "no finite value"]]


def test_several_seeds(make_run):
    run = make_run(models=("mini-llama",), seeds=[3, 1])
    for recipe in run.config["recipes"]:
        run.unit("mini-llama", recipe, seed=3)
    run.unit("mini-llama", "random-codes-g64", seed=1)  # the only method whose seed moves anything
    rows = collected(run)
    assert list(dict.fromkeys(rows.loc[rows["recipe"] == "random-codes-g64", "seed"])) == [3, 1]
    assert set(rows.loc[rows["recipe"] == "r2q-g64", "seed"]) == {3}


def test_missing_files_are_named(run):
    report = run.folder("mini-llama", "rtn-g64") / "report.json"
    evaluation = run.folder("mini-opt", "r2q-g64") / "evaluation.json"
    report.unlink()
    evaluation.unlink()
    with pytest.raises(FileNotFoundError) as error:
        collect(run.config_path, run.results)
    assert str(report) in str(error.value)
    assert str(evaluation) in str(error.value)
    assert str(error.value).count(".json") == 2
    assert not (run.results / "scores.csv").exists()


def test_evaluation_of_other_weights_is_refused(run):
    run.change("mini-opt", "rtn-g64", "evaluation.json", hashes={"weights": "older", "tasks": "t", "code": "c"})
    with pytest.raises(ValueError, match=r"is of weights older, but report\.json wrote weights-of-mini-opt-rtn-g64-0"):
        collect(run.config_path, run.results)


def test_a_folder_with_another_unit_is_refused(run):
    run.change("mini-opt", "rtn-g64", "report.json", recipe="r2q-g64")
    with pytest.raises(ValueError, match=r"report\.json is of mini-opt/r2q-g64/seed0, not of mini-opt/rtn-g64/seed0"):
        collect(run.config_path, run.results)


def test_layers(collected):
    lines = (collected / "layers.csv").read_text().splitlines()
    assert lines[0] == (
        "run,model,recipe,seed,layer,shape,mse,relative_error,bits_per_weight,seconds,status,block,kind,clipped_error,"
        "clipped"
    )
    layer = "demo,mini-llama,r2q-g64,0,model.layers.0.self_attn.q_proj,128x64,0.0001,0.125,2.5,0.01,ok,0,q_proj,,0"
    assert lines[1] == layer
    assert len(lines) == 1 + 2 * 3 * 3  # full precision has none


def test_provenance_resolves_and_tells_apart(run):
    scores = collected(run)
    provenance = json.loads((run.results / "provenance.json").read_text())
    assert set(scores["provenance"]) == set(provenance)
    assert len(provenance) == 8  # one per unit
    rows = scores[(scores["model"] == "mini-opt") & (scores["recipe"] == "r2q-g64")]
    assert rows["provenance"].nunique() == 1
    record = provenance[rows["provenance"].iloc[0]]
    assert record["config"]["model"]["path"] == "mini/models/mini-opt"
    assert record["config"]["recipe"]["options"]["refine"] == "none"  # defaults are written out
    assert record["weights"] == {"source": "source-of-mini-opt", "weights": "weights-of-mini-opt-r2q-g64-0"}
    assert record["versions"]["evaluate"]["lm_eval"] == "0.4.13"
    assert record["data"] == {"tasks": "7a5c"}
    report = json.loads((run.folder("mini-opt", "r2q-g64") / "report.json").read_text())
    run.change("mini-opt", "r2q-g64", "report.json", hashes=report["hashes"] | {"calibration": "ca1", "training": "70"})
    collect(run.config_path, run.results)
    data = [record["data"] for record in json.loads((run.results / "provenance.json").read_text()).values()]
    assert {"tasks": "7a5c", "calibration": "ca1", "training": "70"} in data
    assert record["evaluation"]["batch_size"] == 64


def test_provenance_moves_with_what_moves_numbers_and_nothing_else(run, make_run):
    def hashes(of):
        scores = collected(of)
        return dict(zip(zip(scores["model"], scores["recipe"], strict=True), scores["provenance"], strict=True))

    before = hashes(run)
    limits = {"threads": 2}
    assert hashes(make_run("other", limits=limits, figures={"lattice": {"row": 3}})) == before
    fewer = make_run("fewer", models=("mini-llama",))
    assert hashes(fewer).items() < before.items()
    own = {"mini-llama": {"path": "mini/models/mini-llama", "recipes": ["rtn-g64", "r2q-g64"]}}
    assert hashes(make_run("own", entries=own)).items() < before.items()
    items = hashes(make_run("items", limits={"items": 10}))
    assert not set(items.values()) & set(before.values())
    run.change("mini-opt", "r2q-g64", "evaluation.json", device="cuda")
    moved = hashes(run)
    assert [unit for unit in before if before[unit] != moved[unit]] == [("mini-opt", "r2q-g64")]


def test_filters_become_part_of_the_metric():
    assert metric_name("acc", "none") == "acc"
    assert metric_name("exact_match", "strict-match") == "exact_match/strict-match"


def test_full_precision_that_had_been_quantized_is_called_so(make_run, tmp_path):
    """In every table and on the page; a source that was not is passed over."""
    run = make_run(models=("mini-llama", "mini-opt"), entries={
        "mini-llama": {"path": "tiny.gguf"}, "mini-opt": {"path": "mini/models/mini-opt"}})  # fmt: skip
    facts = {"models": {"mini-llama": {"source_format": "gguf Q4_1", "fingerprint": "f"}}}
    (run.results / "mini-llama" / "prepared.json").write_text(json.dumps(facts))
    collect(run.config_path, run.results)
    table(run.results, tmp_path / "tables")
    page([run.results], tmp_path / "page.html", figures=tmp_path)
    said = "mini-llama: full precision = weights dequantized from gguf Q4_1."
    for file in ("tables/main.md", "tables/memory.md", "page.html"):
        text = (tmp_path / file).read_text()
        assert said in text
        assert "mini-opt: full precision" not in text
