"""Figures: drawn from their CSV and nothing else, with the same bytes every time."""

import itertools
import json
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from r2q.config import describe_recipe, load
from r2q.records import read_drawn, write_csv
from r2q.report.collect import collect
from r2q.report.figures import drift, figure, find, frontier, lattice, layer_errors, mechanism, tasks, training
from r2q.report.figures.labels import apart
from r2q.report.figures.style import quantizer_mark, style
from r2q.report.run import Run
from r2q.report.training import gather_training
from tests.report.large import QUANTIZERS, large_run

LEVELS = {"rtn-g8": [-0.1, 0.0, 0.1, 0.2], "r2q-g8": [-0.15, 0.05, -0.05, 0.15]}  # in the order of the codes
WEIGHTS = [-0.14, -0.06, -0.01, 0.0, 0.02, 0.06, 0.11, 0.21]


@pytest.fixture
def lattice_csv(tmp_path):
    rows = []
    for recipe, levels in LEVELS.items():
        for index, weight in enumerate(WEIGHTS):
            code = min(range(4), key=lambda j: abs(levels[j] - weight))
            row = {"recipe": recipe, "model": "mini-llama", "layer": "model.layers.0.q", "row": 2, "group": 1}
            row |= {"index": index, "weight": weight, "code": code, "quantized": levels[code]}
            rows.append(row | {f"level_{j}": level for j, level in enumerate(levels)})
    write_csv(tmp_path / "lattice.csv", list(rows[0]), rows)
    return tmp_path / "lattice.csv"


def draw(module, frame):
    """A figure in which everything has its place."""
    with style():
        drawn = module.draw(frame)
        drawn.draw_without_rendering()
    return drawn


def test_lattice_draws_the_csv(lattice_csv):
    drawn = draw(lattice, read_drawn(lattice_csv, lattice.COLUMNS))
    stairs = [axes for axes in drawn.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left").strip() for axes in stairs] == list(LEVELS)
    for axes, (recipe, levels) in zip(stairs, LEVELS.items(), strict=True):
        dots = np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() == "o"])
        expected = [(w, min(levels, key=lambda level: abs(level - w))) for w in WEIGHTS]
        assert sorted(map(tuple, dots.tolist())) == sorted(expected), recipe
        error = np.mean([(w - q) ** 2 for w, q in expected])
        assert f"relative error {error / np.mean(np.square(WEIGHTS)):.3f}" in [text.get_text() for text in axes.texts]
    counts = [[int(text.get_text()) for text in axes.texts if text.get_text().isdigit()] for axes in drawn.axes]
    assert [c for c in counts if c] == [[2, 3, 2, 1], [1, 2, 3, 2]]  # on each level, lowest first


def test_lattice_shows_an_empty_level(lattice_csv):
    frame = read_drawn(lattice_csv, lattice.COLUMNS)
    frame["level_3"] = frame["level_3"].where(frame["recipe"] != "rtn-g8", 0.9)
    keep = frame[(frame["recipe"] == "rtn-g8") & (frame["weight"] < 0.2)]
    drawn = draw(lattice, keep)
    assert [text.get_text() for text in drawn.axes[1].texts if text.get_text().isdigit()] == ["2", "3", "2", "0"]


def test_lattice_refuses_weights_off_their_levels(lattice_csv, tmp_path):
    text = lattice_csv.read_text()
    assert ",3,0.2," in text
    lattice_csv.write_text(text.replace(",3,0.2,", ",3,0.19,"))
    with pytest.raises(ValueError, match="recipe rtn-g8: a quantized weight is on none of the levels"):
        figure("lattice", lattice_csv.parent, tmp_path / "x")


def test_layer_errors_draw_the_csv(collected, tmp_path):
    figure("layer_errors-mini-opt", collected, tmp_path / "e")
    data = read_drawn(tmp_path / "e.csv", layer_errors.COLUMNS)
    first = data[data["recipe"] == "rtn-g64"]
    assert list(first["kind"]) == ["q_proj", "q_proj", "down_proj"]  # by kind, then by depth
    assert list(first["blocks"].astype(int)) == [0, 1, 0]
    assert list(first["error"]) == pytest.approx([0.25, 0.3, 0.275])
    drawn = draw(layer_errors, data)
    (chart,) = [axes for axes in drawn.axes if axes.get_title(loc="left")]
    labels = [label.get_text() for label in chart.get_yticklabels()]
    assert labels == ["r2q-g64", "rtn-g64", "random-codes-g64"]  # by their medians
    cells = np.asarray(chart.collections[0].get_array()).reshape(3, 3)
    assert cells[1].tolist() == first["error"].to_list()
    assert [text.get_text() for text in chart.texts] == ["0.14", "0.28", "2.2"]
    low, high = chart.collections[0].get_clim()
    assert 0.125 <= low < high <= 0.3  # the control, worse than zeros, does not stretch the scale


def errors(layers: pd.DataFrame, model: str) -> pd.DataFrame:
    """What the figure draws of a layers.csv."""
    return layer_errors.data(SimpleNamespace(layers=layers), model)  # type: ignore[arg-type]


def test_output_errors_stand_beside_those_of_the_weights(collected, tmp_path):
    frame = Run(collected).layers.assign(output_error=0.5)
    both = errors(frame, "mini-opt")
    assert set(both["measure"]) == {"relative_error", "output_error"}
    drawn = draw(layer_errors, both)
    titles = [axes.get_title(loc="left") for axes in drawn.axes if axes.get_title(loc="left")]
    assert titles == ["weights", "outputs"]


@pytest.mark.parametrize("blocks", [2, 30])
def test_the_head_is_drawn_beside_the_blocks(collected, blocks):
    """A head that is quantized, too (`lm_head: true`), is in no block."""
    first = Run(collected).layers.iloc[:1]
    layers = [first.assign(block=i, layer=f"layer{i}") for i in range(blocks)]
    layers.append(first.assign(block=pd.NA, layer="lm_head", kind="lm_head", relative_error=0.9))
    head = errors(pd.concat(layers).astype({"block": "Int64"}), first["model"].iloc[0]).query("kind == 'lm_head'")
    assert head[["depth", "blocks", "error", "layers"]].to_numpy().tolist() == [[-1, "none", 0.9, 1]]


def test_layers_of_a_deep_model_are_drawn_in_six_parts(collected):
    first = Run(collected).layers.iloc[:1]
    deep = pd.concat([first.assign(block=i, layer=f"layer{i}", relative_error=i / 30) for i in range(30)])
    drawn = errors(deep, deep["model"].iloc[0])
    assert list(drawn["blocks"]) == ["0 to 4", "5 to 9", "10 to 14", "15 to 19", "20 to 24", "25 to 29"]
    assert drawn["error"].to_list() == pytest.approx([(2 + 5 * part) / 30 for part in range(6)])
    assert set(drawn["layers"]) == {5}


def test_seeds_are_averaged(collected):
    frame = Run(collected).layers
    seeds = pd.concat([frame, frame.assign(seed=1, relative_error=frame["relative_error"] * 3)])
    both = errors(seeds, "mini-opt")
    assert set(both["seeds"]) == {2}
    assert both["error"].to_list() == pytest.approx((2 * errors(frame, "mini-opt")["error"]).to_list())


@pytest.mark.parametrize(
    ("values", "front"),
    [
        ({"rtn-g64": 0.36}, {"r2q-g64"}),
        ({"rtn-g64": 0.4}, {"rtn-g64", "r2q-g64"}),
        ({"rtn-g64": 0, "r2q-g64": 0}, set()),
    ],
)
def test_a_recipe_at_chance_is_not_on_the_front(collected, values, front):
    changed = Run(collected)
    scores = changed.scores[changed.scores["model"] == "mini-llama"].assign(chance=0.25, majority=0.35)
    for recipe, value in values.items():
        scores.loc[(scores["recipe"] == recipe) & (scores["metric"] == "acc"), "value"] = value
    changed.__dict__["scores"] = scores
    points = frontier.data(changed, "bytes")
    assert set(points.loc[points["higher_is_better"] & points["front"], "recipe"]) == front
    draw(frontier, points)


def test_the_front_is_what_no_smaller_recipe_beats(collected, tmp_path):
    """By hand: rtn 2.28 bits and 69.5, r2q 2.5 and 84.5; full precision and random codes stand apart."""
    figure("frontier-bits", collected, tmp_path / "f")
    data = read_drawn(tmp_path / "f.csv", frontier.COLUMNS)
    points = data[(data["model"] == "mini-llama") & data["measure"].str.startswith("average")]
    assert dict(zip(points["recipe"], points["value"], strict=True)) == pytest.approx(
        {"full-precision": 94.5, "r2q-g64": 84.5, "rtn-g64": 69.5, "random-codes-g64": 25.5}
    )
    assert set(points.loc[points["front"].astype(bool), "recipe"]) == {"rtn-g64", "r2q-g64"}
    error = 1.959964 * 100 * (2 * 0.02**2) ** 0.5 / 2  # two tasks as independent samples
    rtn = points[points["recipe"] == "rtn-g64"].iloc[0]
    assert (rtn["low"], rtn["high"]) == pytest.approx((69.5 - error, 69.5 + error))
    mean = data[(data["model"] == "mean of models") & (data["recipe"] == "rtn-g64")]
    assert sorted(mean["value"]) == pytest.approx([30.5, 69.5])  # both models are alike


def test_an_interval_wider_than_the_figure_leaves_room_for_the_marks(collected):
    """Of two windows, over seven decades: beside it, all marks had been one line of dots."""
    frame = frontier.data(Run(collected), "bytes")
    of_text = ~frame["higher_is_better"]
    frame.loc[of_text, ["low", "high"]] = 1e-7, 1e7
    marks = frame.loc[of_text & ~frame["control"], "value"]
    panels = [axes for axes in frontier.draw(frame).axes if axes.get_yscale() == "log"]
    assert panels
    for axes in panels:
        low, high = axes.get_ylim()
        assert low < marks.min()
        assert marks.max() < high
        assert high / low < 1e5  # in place of 1e14 and more


def test_tasks_are_measured_from_chance_to_full_precision(collected, tmp_path):
    figure("tasks-mini-llama", collected, tmp_path / "t")
    data = read_drawn(tmp_path / "t.csv", tasks.COLUMNS).set_index(["recipe", "task"])
    assert data["share"]["rtn-g64", "mini_facts"] == pytest.approx((0.69 - 0.25) / (0.94 - 0.25))
    assert data["share"]["full-precision", "mini_who"] == 1


def test_a_model_with_controls_alone_has_no_panel(make_run, tmp_path):
    """The default run has one: a smaller model in full precision."""
    run = make_run(models=("mini-llama", "mini-opt"))
    run.config["models"]["mini-opt"]["recipes"] = ["full-precision"]
    run.config_path.write_text(json.dumps(run.config))
    collect(run.config_path, run.results)
    for name in ("frontier-bytes", "frontier-bits"):
        figure(name, run.results, tmp_path / name)
        assert set(read_drawn(tmp_path / f"{name}.csv", frontier.COLUMNS)["model"]) == {"mini-llama"}


@pytest.mark.parametrize("common", [[], ["full-precision"]])
def test_models_without_a_common_recipe_have_no_mean(make_run, tmp_path, common):
    """Of none but full precision neither, which competes with nobody."""
    run = make_run(models=("mini-llama", "mini-opt"))
    for model, recipe in (("mini-llama", "r2q-g64"), ("mini-opt", "rtn-g64")):
        run.config["models"][model]["recipes"] = [*common, recipe]
    run.config_path.write_text(json.dumps(run.config))
    collect(run.config_path, run.results)
    figure("frontier-bits", run.results, tmp_path / "f")
    assert set(read_drawn(tmp_path / "f.csv", frontier.COLUMNS)["model"]) == {"mini-llama", "mini-opt"}


def test_a_task_at_which_full_precision_guesses_is_left_out(collected):
    found = Run(collected)
    guessed = (found.scores["method"] == "full_precision") & (found.scores["task"] == "mini_who")
    found.scores.loc[guessed, ["value", "stderr"]] = found.scores.loc[guessed, "chance"].iloc[0] + 0.02, 0.02
    assert "mini_who" not in set(tasks.data(found, "mini-llama")["task"])
    found.scores.loc[guessed, "stderr"] = 0.005
    assert "mini_who" in set(tasks.data(found, "mini-llama")["task"])
    found.scores.loc[found.scores["method"] == "full_precision", "stderr"] = 1.0
    assert tasks.data(found, "mini-llama").empty
    found.scores["chance"] = float("nan")  # of a run whose tasks are texts, or failed
    assert tasks.data(found, "mini-llama").empty


def test_a_task_with_little_way_to_go_does_not_decide_the_order():
    """Full precision is 40 points above chance at one task and 2 at the other, where a point is noise."""
    rows = [("wide", 0.25, 0.65, {"good": 0.60, "poor": 0.35}), ("narrow", 0.33, 0.35, {"good": 0.33, "poor": 0.36})]
    rows = [(recipe, task, value, *ends) for task, *ends, values in rows for recipe, value in values.items()]
    frame = pd.DataFrame(rows, columns=["recipe", "task", "value", "chance", "full"])
    assert tasks.of_all(frame).to_dict() == pytest.approx({"good": 0.35 / 0.42, "poor": 0.13 / 0.42})
    # it failed in one: of the other alone it says nothing
    assert tasks.of_all(frame.drop(index=1))[["poor"]].isna().all()


def test_the_mechanism_adds_up(tmp_path):
    """Of R2Q itself, wherever it stands: one of three bits before it ended the run, and a refined one was drawn."""
    weights = [0.3, -0.1, 0.05, -0.4]
    alpha = 0.2125, 0.1375  # mean |w|, mean ||w| - alpha|
    rows = [
        {"recipe": recipe, "method": "r2q", "model": "m", "layer": "l", "row": 0, "group": 0, "index": i, "weight": w,
         "quantized": min(levels, key=lambda level: abs(level - w))} | {f"level_{j}": v for j, v in enumerate(levels)}
        for recipe, *scales in (("3 bits", *alpha, 0.07), ("refit", 0.21, 0.15), ("1 bit", alpha[0]), ("mine", *alpha))
        for levels in [sorted(map(sum, itertools.product(*((-scale, scale) for scale in scales))))]
        for i, w in enumerate(weights)
    ]  # fmt: skip
    write_csv(tmp_path / "lattice.csv", list(rows[0]), [dict.fromkeys(rows[0]) | row for row in rows])
    figure("mechanism", tmp_path, tmp_path / "m")
    data = read_drawn(tmp_path / "m.csv", mechanism.COLUMNS)
    assert (data["alpha_1"][0], data["alpha_2"][0]) == pytest.approx(alpha)
    assert (data["first"] + data["second"]).to_list() == pytest.approx(data["quantized"].to_list())
    write_csv(tmp_path / "lattice.csv", list(rows[0]), [dict.fromkeys(rows[0]) | row for row in rows[:12]])
    with pytest.raises(ValueError, match="two signs in a row"):
        figure("mechanism", tmp_path, tmp_path / "m")


def test_running_medians_and_ranges_over_seeds(results, tmp_path):
    gather_training(results / "config.yaml", results)
    figure("training-all", results, tmp_path / "t")
    data = read_drawn(tmp_path / "t.csv", training.COLUMNS)
    one = data.query("model == 'one' and measure == 'loss' and step == 1 and granularity == 'g64'")
    assert one.set_index("quantizer")["mean"].to_dict() == pytest.approx({"r2q": 4 * 1.01, "rtn": 8 * 1.01})
    assert one["low"].to_list() == pytest.approx([4.0, 8.0])  # a window of one step: the range over seeds 0, 1, 2
    assert one["high"].to_list() == pytest.approx([4 * 1.02, 8 * 1.02])


def test_a_running_median_is_over_a_tenth_of_the_trainings_own_steps():
    unit = {"model": "m", "granularity": "g64", "quantizer": "r2q", "seed": 0, "gradient_norm": 1.0}
    steps = [unit | {"frame": f"f, {n} steps", "recipe": f"r{n}", "step": i, "loss": float((i % 10) ** 2)}
             for n in (10, 100) for i in range(1, n + 1)]  # fmt: skip
    drawn = training.data(SimpleNamespace(steps=pd.DataFrame(steps)), "all").query("measure == 'loss'")  # type: ignore[arg-type]
    short, long = (drawn[drawn["frame"] == f"f, {n} steps"].set_index("step")["median"] for n in (10, 100))
    assert short.to_list() == [1.0, 4.0, 9.0, 16.0, 25.0, 36.0, 49.0, 64.0, 81.0, 0.0]  # one step a window
    assert set(long.loc[10:90]) == {20.5}  # of 0, 1, 4 ... 81, whatever comes first


def test_every_block_is_a_point_of_the_drift_and_no_head(results, tmp_path):
    gather_training(results / "config.yaml", results)
    figure("drift", results, tmp_path / "d")
    data = read_drawn(tmp_path / "d.csv", drift.COLUMNS)
    assert set(data["block"]) == {0, 1, 2, 3, 4}
    point = data[(data["model"] == "two") & (data["quantizer"] == "rtn") & (data["measure"] == "quantized")].iloc[0]
    assert (point["before"], point["after"]) == pytest.approx((0.4, 0.2))  # 0.8 and 0.4 over 2.0


def test_an_unknown_figure_names_those_there_are(run, tmp_path):
    with pytest.raises(ValueError, match=r"there is no figure latice; there are .*lattice"):
        figure("latice", run.results, tmp_path / "x")
    with pytest.raises(ValueError, match="there is no figure frontier-size; there are frontier-bytes, frontier-bits"):
        figure("frontier-size", run.results, tmp_path / "x")


def test_same_bytes_whatever_the_user_has_set(lattice_csv, collected, tmp_path):
    """In a second process with another hash seed, day and matplotlibrc."""
    shutil.copy(lattice_csv, collected / "lattice.csv")
    names = ["lattice", "layer_errors-mini-opt", "frontier-bytes", "tasks-mini-opt"]
    for name in names:
        figure(name, collected, tmp_path / name)
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\nsvg.fonttype: none\n")
    code = (
        "import sys; from r2q.report.figures import figure; "
        "[figure(name, sys.argv[1], sys.argv[2] + '/' + name) for name in sys.argv[3:]]"
    )
    (tmp_path / "again").mkdir()
    environment = {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "SOURCE_DATE_EPOCH": "0", "PATH": ""}
    command = [sys.executable, "-c", code, str(collected), str(tmp_path / "again"), *names]
    subprocess.run(command, check=True, env=environment)
    for name in (f"{drawn}.{ending}" for drawn in names for ending in ("png", "svg", "csv")):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_drawing_leaves_matplotlib_as_it_was(lattice_csv, tmp_path):
    before = dict(mpl.rcParams)
    figure("lattice", lattice_csv.parent, tmp_path / "again")
    assert dict(mpl.rcParams) == before


def test_quantizers_keep_their_marks():
    """Every quantizer of the shipped configs has a colour and a marker that no other has."""
    configs = [load(path) for path in sorted(Path("config").glob("*.yaml"))]
    labels = {describe_recipe(config, name).label.partition(" (")[0] for config in configs for name in config.recipes}
    marks = [quantizer_mark(label) for label in sorted(labels)]
    assert len(labels) > 12
    assert len({mark.colour for mark in marks}) == len({mark.marker for mark in marks}) == len(marks)
    assert quantizer_mark("rtn (clipped start)").colour == quantizer_mark("rtn").colour
    lines = [quantizer_mark(f"rtn{start}").line for start in ("", " (clipped start)", " (gptq-rtn start)")]
    assert len(set(map(str, lines))) == 3
    assert quantizer_mark("new method") == quantizer_mark("new method") != quantizer_mark("newer method")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    return large_run(tmp_path_factory.mktemp("large"))


@pytest.mark.parametrize(
    "name", ["frontier-bytes", "frontier-bits", "granularity", "tasks-smollm2-135m", "layer_errors-smollm2-135m"]
)
def test_a_column_of_a_paper_holds_sixty_recipes(large, name):
    """At 3.5 inches no letter is below 6 points, nothing sticks out, and no name lies on another or on a title."""
    drawn = drawn_for_print(name, large)
    texts = [text for axes in drawn.axes for text in axes.get_children() if isinstance(text, Text)]
    names = [text.get_window_extent() for text in texts if text.get_text().strip()]
    assert len(names) >= 5
    assert not [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if _overlap(a, b)]
    levels = [line.get_window_extent().y0 for axes in drawn.axes for line in axes.lines if line.get_color() == "black"]
    assert not [a for a in names for y in levels if a.y0 + 2 < y < a.y1 - 2]


@pytest.mark.parametrize(("module", "name"), [(training, "training"), (drift, "drift")])
def test_recipes_that_differ_in_a_learning_rate_are_no_seeds(results, module, name):
    """A second recipe with the first one's frame, quantizer and granularity, and ten times its numbers."""
    gather_training(results / "config.yaml", results)
    run = Run(results)
    known = run.steps if name == "training" else run.drift
    again = known[known["recipe"] == "bitdistiller-r2q-g64"].assign(recipe="faster")
    large = {c: 10 * again[c] for c in ("gradient_norm", "loss", "latent_moved", "quantized_after") if c in again}
    other = Run(results)
    other.__dict__ |= {"steps" if name == "training" else "drift": pd.concat([known, again.assign(**large)])}
    pd.testing.assert_frame_equal(module.data(other, "all"), module.data(run, "all"))


@pytest.mark.parametrize("name", ["training-all", "training-paper", "drift"])
def test_a_column_of_a_paper_holds_the_figures_of_training(results, name):
    gather_training(results / "config.yaml", results)
    drawn_for_print(name, results)


def drawn_for_print(name, folder):
    """A figure of a run, 3.5 inches wide, with all that is written in it inside and not below 6 points."""
    module, variant = find(name)
    drawn = draw(module, module.data(Run(folder), variant))
    assert drawn.get_size_inches()[0] == 3.5
    texts = [text for text in drawn.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 6
    for text in texts:
        text.set_in_layout(True)  # also what the layout makes no room for
    box = drawn.get_tightbbox()  # inches
    assert min(box.x0, box.y0) >= -0.01
    assert max(box.x1 - 3.5, box.y1 - drawn.get_size_inches()[1]) <= 0.01
    return drawn


def test_the_best_of_sixty_recipes_are_named(large):
    data = frontier.data(Run(large), "bytes")
    drawn = draw(frontier, data)
    for axes, (_, part) in zip(drawn.axes, data.groupby("measure", sort=False), strict=True):
        front = part[part["front"]].sort_values("value")
        best = front["recipe"].iloc[-1 if part["higher_is_better"].iloc[0] else 0]
        assert best in [text.get_text().replace("\n", "") for text in axes.texts]


def test_names_are_measured_on_one_canvas(large, monkeypatch):
    """A canvas a name is as large as the figure: of thirty models they took 10 GB."""
    made = []
    make = RendererAgg.__init__
    monkeypatch.setattr(RendererAgg, "__init__", lambda self, *args: made.append(make(self, *args)))
    data = frontier.data(Run(large), "bytes")
    with style():
        drawn = frontier.draw(data)
    assert sum(len(axes.texts) for axes in drawn.axes) > 4
    assert len(made) <= 2


def _overlap(one, other) -> bool:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width > 1 and height > 0.25 * min(one.height, other.height)  # boxes of letters have room above them


def test_names_are_moved_apart_in_their_order():
    moved = apart([5.0, 5.1, 1.0, 9.9], 1.0, 0.0, 10.0)
    assert moved == pytest.approx([5.0, 6.0, 1.0, 9.9])
    assert apart([9.9, 9.8, 9.7], 1.0, 0.0, 10.0) == pytest.approx([10.0, 9.0, 8.0])


@pytest.mark.parametrize("name", ["frontier-bytes", "granularity"])
def test_every_method_of_somebody_elses_has_a_mark(large, tmp_path, name):
    """Whichever of the spare ones its name leads to."""
    names = {quantizer_mark(f"method{i}").marker: f"method{i}" for i in range(60)}
    assert len(names) == 6
    run = Run(large)
    strange = dict(zip(QUANTIZERS, names.values(), strict=True))
    run.__dict__["scores"] = run.scores.assign(quantizer=run.scores["quantizer"].replace(strange))
    module, variant = find(name)
    draw(module, module.data(run, variant))


def test_trainings_of_two_lengths_are_two_lines(large):
    lines = find("granularity")[0].data(Run(large), "")
    assert not lines.duplicated(["family", "granularity"]).any()
    lengths = {f"bitdistiller r2q, {steps} steps" for steps in (256, 1024)}  # as claims and the table of frames say
    assert lengths | {"gptq r2q", "r2q"} <= set(lines["family"])


def test_trainings_alike_in_all_but_a_learning_rate_are_two_lines(large, tmp_path):
    """As where the steps of both are the same, there is nothing but their names to tell them apart."""
    shutil.copy(large / "scores.csv", tmp_path)
    lines = find("granularity")[0].data(Run(tmp_path), "")
    assert not lines.duplicated(["family", "granularity"]).any()
    assert {"bitdistiller-r2q", "bitdistiller-long-r2q", "gptq r2q", "r2q"} <= set(lines["family"])


@pytest.mark.parametrize("name", ["frontier-bytes", "tasks-LONG", "layer_errors-LONG"])
@pytest.mark.parametrize("between", ["-", "_"])
def test_long_names_leave_room_for_what_is_drawn(run, name, between):
    """Also those in which there is nowhere to break."""
    model, recipe = "a-model-with-a-long-name-of-many-words", "-".join(["a-very-long-name-of-a-recipe"] * 3) + "-"
    model, recipe = (text.replace("-", between) for text in (model, recipe))
    module, variant = find(name.replace("LONG", "mini-opt"))
    collect(run.config_path, run.results)
    frame = module.data(Run(run.results), variant).assign(model=model)
    frame["recipe"] = recipe + frame["recipe"].str.replace("-", between)
    if name.startswith("frontier"):
        frame = frame.drop_duplicates("recipe").assign(measure="accuracy, %")  # one panel
    drawn = draw(module, frame)
    assert drawn.axes[0].get_window_extent().width > 0.2 * drawn.bbox.width
    titles = titles_within(drawn)
    assert not any(_overlap(_ink(a), _ink(b)) for a, b in combinations(titles, 2) if a.axes is b.axes)


def titles_within(drawn):
    """All titles of a figure that have text, none of which goes beyond the sheet."""
    titles = [title for axes in drawn.axes for title in (axes._left_title, axes._right_title)]
    titles = [title for title in [*titles, drawn._suptitle] if title is not None and title.get_text().strip()]
    for box in (title.get_window_extent() for title in titles):
        assert drawn.bbox.x0 <= box.x0
        assert max(box.x1 - drawn.bbox.x1, box.y1 - drawn.bbox.y1) <= 0
    return titles


@pytest.mark.parametrize("name", ["training-all", "drift", "granularity", "lattice"])
def test_titles_of_long_names_stay_on_the_sheet(results, large, lattice_csv, name):
    module, variant = find(name)
    if name == "lattice":
        frame = read_drawn(lattice_csv, lattice.COLUMNS)
    else:
        gather_training(results / "config.yaml", results)
        frame = module.data(Run(large if name == "granularity" else results), variant)
    drawn = draw(module, frame.assign(model="a_model_" * 10))
    titles_within(drawn)


@pytest.mark.parametrize("name", ["training-all", "drift", "granularity", "frontier-bytes", "lattice", "mechanism"])
@pytest.mark.parametrize(
    "named", ["my_package_of_methods.quantizers.ANameOfAClassWithoutEnd", "包.模块的名字.量化器的类"]
)
@pytest.mark.filterwarnings("error:Glyph")
def test_names_of_methods_of_yours_stay_on_the_sheet_and_are_no_boxes(results, large, lattice_csv, name, named):
    """In legends and beside lines as in titles; a class may have a name of any letters."""
    module, variant = find(name)
    if name in ("lattice", "mechanism"):
        frame = read_drawn(lattice_csv, lattice.COLUMNS).assign(layer=f"{named}.layer")
        frame["recipe"] = f"{named}-" + frame["recipe"]
        parts = dict.fromkeys(("first", "residual", "second", "alpha_1", "alpha_2"), 0.1)
        frame = frame.assign(**parts) if name == "mechanism" else frame
    else:
        gather_training(results / "config.yaml", results)
        frame = module.data(Run(results if name in ("training-all", "drift") else large), variant)
        for column in {"quantizer", "family"} & set(frame.columns):
            frame[column] = frame[column].str.replace("rtn", named)
    drawn = draw(module, frame)
    shown = [text for text in drawn.findobj(Text) if len(text.get_text().strip()) > 8]  # no numbers at ticks
    assert any(named[-3:].encode("unicode_escape").decode()[-3:] in text.get_text() for text in shown)
    for box in (text.get_window_extent() for text in shown):
        assert drawn.bbox.x0 - 1 <= box.x0
        assert box.x1 <= drawn.bbox.x1 + 1
    assert drawn.axes[0].get_window_extent().width > 0.2 * drawn.bbox.width


@pytest.mark.parametrize(
    ("task", "shown"), [("a_$5_$6", "a_$5_$6"), (r"$\frac$", r"$\frac$"), ("任务_привет", r"\u4efb\u52a1_привет")]
)
@pytest.mark.filterwarnings("error:Glyph")
def test_names_of_tasks_are_no_formulas_and_no_boxes(tmp_path, task, shown):
    shares = {"value": 0.5, "chance": 0.25, "n": 100, "seeds": 1, "full": 0.9, "share": 0.4}
    frame = pd.DataFrame([{"model": "m", "recipe": name, "task": task} | shares for name in ("a", "b")])
    with style():
        drawn = tasks.draw(frame)
        drawn.draw_without_rendering()
        label = drawn.axes[0].get_xticklabels()[1]
        assert label._preprocess_math(label.get_text())[0].startswith(f"{shown} (25, 90)")


def _ink(title):
    """The box of a title without its last, empty line."""
    box = title.get_window_extent()
    lines = title.get_text().split("\n")
    share = len([line for line in lines if line]) / len(lines)
    return Bbox.from_extents(box.x0, box.y1 - share * box.height, box.x1, box.y1)


def test_nothing_to_draw_is_said(collected, tmp_path):
    figure("layer_errors-nobody", collected, tmp_path / "x")
    assert (tmp_path / "x.csv").read_text().splitlines() == [",".join(layer_errors.COLUMNS)]
    assert (tmp_path / "x.svg").is_file()


def test_report_never_imports_torch():
    modules = ["collect", "compare", "claims", "figures.lattice", "figures.frontier", "page", "tables"]
    code = f"import sys, importlib; [importlib.import_module('r2q.report.' + m) for m in {modules}]; "
    code += "print([m for m in ('torch', 'transformers', 'lm_eval', 'matplotlib.pyplot') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
