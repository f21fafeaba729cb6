"""Figures: drawn from their CSV and nothing else, with the same bytes every time."""

from __future__ import annotations

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from r2q.report.figures import figure, lattice, layer_errors
from r2q.report.collect import collect
from r2q.report.scores import read_csv, write_csv
from r2q.report.figures.style import recipe_mark, style

LEVELS = {"rtn-g8": [-0.1, 0.0, 0.1, 0.2], "r2q-g8": [-0.15, 0.05, -0.05, 0.15]}  # in the order of the codes
WEIGHTS = [-0.14, -0.06, -0.01, 0.0, 0.02, 0.06, 0.11, 0.21]


@pytest.fixture
def lattice_csv(tmp_path):
    rows = []
    for recipe, levels in LEVELS.items():
        for index, weight in enumerate(WEIGHTS):
            code = min(range(4), key=lambda j: abs(levels[j] - weight))
            rows.append(
                {
                    "recipe": recipe,
                    "model": "mini-llama",
                    "layer": "model.layers.0.q",
                    "row": 2,
                    "group": 1,
                    "index": index,
                }
                | {"weight": weight, "code": code, "quantized": levels[code]}
                | {f"level_{j}": level for j, level in enumerate(levels)}
            )
    write_csv(tmp_path / "lattice.csv", list(rows[0]), rows)
    return tmp_path / "lattice.csv"


@pytest.fixture
def layers_csv(run):
    collect(run.config_path, run.results)
    return run.results / "layers.csv"


def test_lattice_draws_the_csv(lattice_csv):
    with style():
        drawn = lattice.draw(read_csv(lattice_csv, lattice.COLUMNS))
    stairs = [axes for axes in drawn.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left").strip() for axes in stairs] == list(LEVELS)
    for axes, (recipe, levels) in zip(stairs, LEVELS.items(), strict=True):
        dots = np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() == "o"])
        expected = [(w, min(levels, key=lambda level: abs(level - w))) for w in WEIGHTS]
        assert sorted(map(tuple, dots.tolist())) == sorted(expected), recipe
        error = np.mean([(w - q) ** 2 for w, q in expected])
        assert f"MSE {error:.2e}, relative error {error / np.mean(np.square(WEIGHTS)):.3f}" in [
            text.get_text() for text in axes.texts
        ]
    counts = [[int(text.get_text()) for text in axes.texts if text.get_text().isdigit()] for axes in drawn.axes]
    assert [c for c in counts if c] == [[2, 3, 2, 1], [1, 2, 3, 2]]  # on each level, lowest first


def test_lattice_shows_an_empty_level(lattice_csv):
    frame = read_csv(lattice_csv, lattice.COLUMNS)
    frame["level_3"] = frame["level_3"].where(frame["recipe"] != "rtn-g8", 0.9)
    keep = frame[(frame["recipe"] == "rtn-g8") & (frame["weight"] < 0.2)]
    with style():
        drawn = lattice.draw(keep)
    assert [text.get_text() for text in drawn.axes[1].texts if text.get_text().isdigit()] == ["2", "3", "2", "0"]


def test_lattice_refuses_weights_off_their_levels(lattice_csv, tmp_path):
    text = lattice_csv.read_text()
    assert ",3,0.2," in text
    lattice_csv.write_text(text.replace(",3,0.2,", ",3,0.19,"))
    with pytest.raises(ValueError, match="recipe rtn-g8: a quantized weight is on none of the levels"):
        lattice.plot(lattice_csv, tmp_path / "x")


def test_weight_error_draws_the_csv(layers_csv, tmp_path):
    figure.weight_error(layers_csv, tmp_path / "weight_error")
    data = read_csv(tmp_path / "weight_error.csv", weight_error.DATA_COLUMNS)
    first = data[(data["model"] == "mini-opt") & (data["recipe"] == "rtn-g64")]
    assert list(first["kind"]) == ["q_proj", "q_proj", "down_proj"]  # by kind, then by depth
    assert list(first["block"].astype(int)) == [0, 1, 0]
    assert list(first["relative_error"]) == pytest.approx([0.25, 0.3, 0.275])
    with style():
        drawn = weight_error.draw(weight_error.prepare(read_csv(layers_csv, weight_error.LAYER_COLUMNS)))
    maps = [axes for axes in drawn.axes if axes.get_title(loc="left").startswith("mini-")]
    assert [axes.get_title(loc="left") for axes in maps] == ["mini-llama", "mini-opt"]
    labels = [label.get_text() for label in maps[1].get_yticklabels()]
    assert labels == ["rtn-g64  2.28", "random-codes-g64  2.28", "r2q-g64  2.50"]  # by bits, then as in the config
    cells = np.asarray(maps[1].collections[0].get_array()).reshape(3, 3)
    assert cells[0].tolist() == first["relative_error"].to_list()
    beside = drawn.axes[3]
    assert [text.get_text() for text in beside.texts] == ["0.275", "2.200", "0.138"]  # medians
    assert [line.get_xdata()[0] for line in beside.lines if line.get_marker() == "s"] == pytest.approx([0.275])
    low, high = maps[1].collections[0].get_clim()
    assert (low, high) == pytest.approx((0.125, 0.3))  # the control, worse than zeros, does not stretch the scale


def test_missing_layer_is_crossed_out(layers_csv):
    frame = weight_error.prepare(read_csv(layers_csv, weight_error.LAYER_COLUMNS))
    gone = (frame["model"] == "mini-llama") & (frame["recipe"] == "rtn-g64") & (frame["block"] == 1)
    with style():
        whole, holed = weight_error.draw(frame), weight_error.draw(frame[~gone])
    assert len(holed.axes[0].lines) == len(whole.axes[0].lines) + 1


def test_bits_are_per_weight_not_per_layer(layers_csv):
    frame = read_csv(layers_csv, weight_error.LAYER_COLUMNS)
    wide = frame["layer"] == "model.layers.0.mlp.down_proj"
    frame.loc[wide, ["shape", "bits_per_weight"]] = ["128x256", 2.0]  # as many weights as four of the other two
    with style():
        drawn = weight_error.draw(weight_error.prepare(frame))
    assert "r2q-g64  2.17" in [label.get_text() for label in drawn.axes[0].get_yticklabels()]  # (2.5 + 2.5 + 4 * 2) / 6


def test_seeds_are_averaged(layers_csv):
    frame = read_csv(layers_csv, weight_error.LAYER_COLUMNS)
    again = frame.assign(seed=1, relative_error=frame["relative_error"] * 3)
    both = weight_error.prepare(pd.concat([frame, again]))
    assert set(both["seeds"]) == {2}
    once = weight_error.prepare(frame)
    assert both["relative_error"].to_list() == pytest.approx((2 * once["relative_error"]).to_list())


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        ("model.layers.11.self_attn.q_proj", ("q_proj", 11)),
        ("model.decoder.layers.3.fc1", ("fc1", 3)),
        ("model.layers.2.mlp.experts.gate_up_proj", ("experts.gate_up_proj", 2)),
        ("model.layers.2.block_sparse_moe.experts.7.w1", ("experts.w1", 2)),
        ("lm_head", ("lm_head", -1)),
    ],
)
def test_layer_names(layer, parts):
    assert weight_error.split_name(layer) == parts


def test_same_bytes_whatever_the_user_has_set(lattice_csv, layers_csv, tmp_path):
    """In a second process with another hash seed, day and matplotlibrc."""
    lattice.plot(lattice_csv, tmp_path / "lattice")
    figure.weight_error(layers_csv, tmp_path / "weight_error")
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\nsvg.fonttype: none\n")
    code = (
        "import sys; from r2q.report import lattice, weight_error; "
        "lattice.plot(sys.argv[1], sys.argv[3] + '/lattice'); "
        "weight_error.plot(sys.argv[2], sys.argv[3] + '/weight_error')"
    )
    (tmp_path / "again").mkdir()
    environment = {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "SOURCE_DATE_EPOCH": "0", "PATH": ""}
    command = [sys.executable, "-c", code, str(lattice_csv), str(layers_csv), str(tmp_path / "again")]
    subprocess.run(command, check=True, env=environment)
    for name in ("lattice.png", "lattice.svg", "weight_error.png", "weight_error.svg", "weight_error.csv"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_drawing_leaves_matplotlib_as_it_was(lattice_csv, tmp_path):
    before = dict(mpl.rcParams)
    lattice.plot(lattice_csv, tmp_path / "lattice")
    assert dict(mpl.rcParams) == before


def test_recipes_keep_their_marks():
    names = ["full-precision", "random-codes-g64", "rtn-g64", "rtn-clip-g64", "r2q-g64", "r2q-refit-g64",
             "r2q-alternating-g64", "rtn-channel", "r2q-channel"]  # fmt: skip
    marks = [recipe_mark(name) for name in names]
    assert len(set(marks)) == len(names)  # all told apart
    shapes = {(mark.marker, mark.filled) for mark in marks}
    assert len(shapes) == len(names)  # without colour too
    assert recipe_mark("r2q-g128") == recipe_mark("r2q-g64")
    assert recipe_mark("full_precision") == recipe_mark("full-precision")
    assert recipe_mark("new-method-g64") == recipe_mark("new-method-g128") != recipe_mark("new-method-channel")


def test_no_layers_is_an_error(tmp_path):
    write_csv(tmp_path / "layers.csv", weight_error.LAYER_COLUMNS, [])
    with pytest.raises(ValueError, match=r"layers\.csv has no layers"):
        figure.weight_error(tmp_path / "layers.csv", tmp_path / "x")
    assert not (tmp_path / "x.csv").exists()


def test_report_never_imports_torch():
    modules = ["collect", "compare", "figure", "latex", "lattice", "render", "scores", "style", "summary", "table",
               "weight_error"]  # fmt: skip
    code = f"import sys, importlib; [importlib.import_module('r2q.report.' + m) for m in {modules}]; "
    code += "print([m for m in ('torch', 'transformers', 'lm_eval', 'matplotlib.pyplot') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
