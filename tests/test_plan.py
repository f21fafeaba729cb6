"""What a result depends on: the lists of source files hold all that the verbs import, and inputs what is read."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from r2q import prepare
from r2q.config import load, parse
from r2q.kept import ROOT, seed_of, source_files
from r2q.plan import Plan, Unit, model_files
from r2q.plan.checks import problems, stale
from r2q.plan.sources import SOURCES
from r2q.records import write_record
from tests.configs import config_of
from tests.test_layers import FILES, ours
from tests.units import report

# What says, checks, finds or writes, and computes no number; words of a recipe are asked for by their values.
NO_NUMBERS = {
    "r2q/__init__.py", "r2q/_hook.py", "r2q/cli.py", "r2q/client.py", "r2q/failures.py", "r2q/inputs/hub.py",
    "r2q/intact.py", "r2q/kept.py", "r2q/measure.py", "r2q/prepare.py", "r2q/records.py", "r2q/server.py",
    "r2q/plan/__init__.py", "r2q/plan/checks.py", "r2q/plan/sources.py",
}  # fmt: skip
READ_BY_OTHERS: dict[str, set[str]] = {
    "train": {"r2q/files.py", "r2q/tokens.py"},  # by `calibrate`, whose tokens are hashed
    "quantize": {"r2q/files.py", "r2q/tokens.py"},
}
TRAINING = {f"r2q/training/{file.name}" for file in (ROOT / "r2q/training").glob("*.py")}
READ_BY_OTHERS["quantize"] |= TRAINING  # by recipes that train
ENTRY = {
    "source": "r2q/models/source.py",
    "calibrate": "r2q/models/calibration.py",
    "teacher_data": "r2q/training/teacher_data.py",
    "quantize": "r2q/quantize.py",
    "train": "r2q/quantize.py",
    "reference": "r2q/evaluation/fidelity.py",
    "evaluate": "r2q/evaluation/evaluate.py",
    "latency": "r2q/bench.py",
    "lattice": "r2q/models/inspect.py",
    "report": "r2q/report/collect.py",
}


def imported(file: str) -> set[str]:
    """Every file of `r2q` behind one: what it imports, over and over, wherever in the file."""
    found, queue = set(), [file]
    while queue:
        name = queue.pop()
        if name not in found | NO_NUMBERS and not name.startswith("r2q/config/"):
            found.add(name)
            module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            queue += [FILES[other].relative_to(ROOT).as_posix() for other in ours(module)]
    return found


@pytest.mark.parametrize("verb", ENTRY)
def test_the_list_of_sources_has_all_that_a_verb_imports(verb: str) -> None:
    listed = {file.relative_to(ROOT).as_posix() for file in source_files(SOURCES[verb])}
    missing = imported(ENTRY[verb]) - READ_BY_OTHERS.get(verb, set()) - listed
    assert {name for name in missing if not name.endswith("/__init__.py")} == set()


@pytest.mark.parametrize("verb", sorted(SOURCES.keys() - {"report", "lattice"}))
def test_a_column_of_a_table_makes_no_unit_again(verb: str) -> None:
    assert ROOT / "r2q/records.py" not in source_files(SOURCES[verb])


@pytest.mark.parametrize("verb", ["teacher_data", "quantize", "train"])
def test_what_draws_counts_where_seeds_come_from(verb: str) -> None:
    assert inspect.getsourcefile(seed_of) in map(str, source_files(SOURCES[verb]))


def test_every_listed_source_is_there() -> None:
    assert [path for paths in SOURCES.values() for path in paths if not (ROOT / path).exists()] == []


def test_files_that_no_one_reads_are_no_inputs(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.model", "README.md", "provenance.json", "flax.msgpack"):
        (tmp_path / name).touch()
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    config = load(ROOT / "config" / "smoke.yaml")
    entry = config.models["mini-opt"].model_copy(update={"path": str(tmp_path)})
    assert [Path(path).name for path in model_files(entry)] == ["config.json", "model.safetensors", "tokenizer.model"]


def test_files_that_tasks_name_elsewhere_are_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    passing = ("tasks/.git/index", "tasks/.DS_Store", "tasks/__pycache__/utils.cpython-311.pyc")
    names = ("data/a.csv", "data/b-1.jsonl", "data/b-2.jsonl", "rows/test.parquet", "base.yaml", "other/unread.csv")
    for name in ("tasks/beside.jsonl", *names, *passing):
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).touch()
    Path("base.yaml").write_text("dataset_path: csv\ndataset_kwargs: {data_files: {test: data/a.csv}}\n")
    Path("tasks/a.yaml").write_text("include: ../base.yaml\ntask: a\n")
    files = "[beside.jsonl, '../data/b-*.jsonl', 'https://x/y.jsonl', results/made.jsonl, absent.jsonl]"
    Path("tasks/b.yaml").write_text(f"task: b\ndataset_path: json\ndataset_kwargs: {{data_files: {files}}}\n")
    Path("tasks/c.yaml").write_text("task: c\ndataset_path: rows\n")
    Path("tasks/damaged.yaml").write_text("task: [")
    recipes = {"fp": {"method": "full_precision"}}
    config = parse(config_of(recipes, tasks={"a": {}}, task_include=["tasks"]), "x.yaml")
    read = {"tasks/a.yaml", "tasks/b.yaml", "tasks/c.yaml", "tasks/damaged.yaml", "tasks/beside.jsonl"} | {*names[:5]}
    assert set(Plan(config).task_files()) == read
    made = {"results": ["results/made.jsonl", "results/made.yaml"]}  # by a rule, which may not have run yet
    assert set(Plan(config, made).task_files()) == read | {*made["results"]}


def test_what_is_asked_of_a_unit_moves_with_what_it_depends_on_and_nothing_else() -> None:
    config = load(ROOT / "config" / "smoke.yaml")
    unit, base = Unit("mini-llama", "rtn-g64", 0), Plan(config)

    def moved(**changes: object) -> tuple[bool, bool]:
        other = Plan(config.model_copy(update=changes))
        return (
            other.asked_quantize(unit) != base.asked_quantize(unit),
            other.asked_evaluate(unit) != base.asked_evaluate(unit),
        )

    recipes = dict(config.recipes)
    assert moved(recipes=recipes | {"r2q-g64": recipes["r2q-g64"].model_copy(update={"bits": 3})}) == (False, False)
    assert moved(recipes=recipes | {"rtn-g64": recipes["rtn-g64"].model_copy(update={"bits": 3})}) == (True, False)
    assert moved(limits=config.limits.model_copy(update={"batch_size": 8})) == (False, True)
    assert moved(limits=config.limits.model_copy(update={"threads": 3})) == (False, False)
    assert moved(device="cpu") == (True, True)
    for limit, moves in (("threads", False), ("items", True)):
        limits = config.limits.model_copy(update={limit: 3})
        other = Plan(config.model_copy(update={"limits": limits}))
        assert (other.asked_collect() != base.asked_collect()) == moves, limit


def test_the_order_of_a_config_counts_where_it_is_seen() -> None:
    """Rows of scores.csv stand in it, and the lattice figure is of the first model. Units are what they are."""
    config = load(ROOT / "config" / "smoke.yaml")
    base = Plan(config)
    for section in ("models", "recipes", "tasks"):
        backwards = dict(reversed(getattr(config, section).items()))
        other = Plan(config.model_copy(update={section: backwards}))
        assert other.asked_collect() != base.asked_collect(), section
        assert other.asked_quantize(base.units[0]) == base.asked_quantize(base.units[0])
        assert other.asked_evaluate(base.units[0]) == base.asked_evaluate(base.units[0])
        assert other.asked_lattice() == base.asked_lattice(), section  # one model alone has both recipes
    both = {name: model.model_copy(update={"recipes": None}) for name, model in config.models.items()}
    ways = [dict(both.items()), dict(reversed(both.items()))]
    first, second = (Plan(config.model_copy(update={"models": way})).asked_lattice() for way in ways)
    assert first != second


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_job_which_reads_the_resolved_config_is_asked_the_same(file: Path) -> None:
    """Else no run would ever be finished: results keep what the job was asked, and the plan holds them against that."""
    plan = Plan(load(file))
    of_job = Plan(parse(yaml.safe_load(yaml.safe_dump(plan.config.resolved(), allow_unicode=True)), "config.yaml"))
    asked = [("quantize", unit) for unit in plan.units] + [("evaluate", unit) for unit in plan.units]
    asked += plan.token_files.values()
    assert [plan.asked(*one) for one in asked] == [of_job.asked(*one) for one in asked]
    assert len({plan.asked("quantize", unit) for unit in plan.units}) == len({(u.model, u.recipe) for u in plan.units})


def test_an_optimizer_is_missed_only_where_a_training_that_needs_it_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is imported to find out. Where all is trained, tables can be made without it."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(name)
    recipes = {"a-g64": {"method": "bitdistiller", "granularity": "g64", "options": {"optimizer": "adamw_8bit"}}}
    models = {name: {"path": f"a/{name}", "recipes": ["a-g64"]} for name in ("one", "two")}
    training = {"texts": [{"path": "train.txt", "rows": 200}], "held_out": 8}
    recipes |= {"of_no_model-g64": recipes["a-g64"]}
    text = {"test": {"path": "test.txt"}}
    plan = Plan(parse(config_of(recipes, models=models, tasks={}, perplexity=text, training=training), "x.yaml"))
    unit = Unit("one", "a-g64", 0)

    def train(model: str, **changes: Any) -> None:
        made = {"model": model, "recipe": "a-g64", "asked": plan.asked("quantize", replace(unit, model=model))}
        write_record(Path(plan.results, model, "a-g64", "seed0", "report.json"), report(**made | changes))

    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    missing = "recipes.a-g64.options.optimizer: adamw_8bit needs torchao, which is not installed here"
    assert [line.partition(": pip")[0] for line in problems(plan, [])] == [missing]
    train("one")
    assert len(problems(plan, [])) == 1
    train("two", status="diverged")  # stays as it is
    assert problems(plan, []) == []
    for change in ({"retry": True}, {"asked": "of another config"}, {"asked": ""}, {"files": {"x": 1}}):
        train("one", **change)
        assert len(problems(plan, [])) == 1, change
    monkeypatch.setattr(prepare, "find_spec", lambda name: name)
    assert problems(plan, []) == []


def test_a_damaged_file_of_tokens_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the run needs it: one that an earlier config left is nobody's."""
    config = load(ROOT / "config/embedded.yaml")
    plans = Plan(config), Plan(config.model_copy(update={"fidelity": None}))
    monkeypatch.chdir(tmp_path)
    file = Path(plans[0].results, "mini-llama/reference.safetensors")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"cut off")
    assert [list(stale(plan)) for plan in plans] == [[str(file)], []]
