"""Killed and started again; losses that are not finite; the order of rows; checkpoints of something else."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from r2q.models.load import load_full
from r2q.models.targets import list_targets
from r2q.quantization.method import Recipe, make_method
from r2q.training import trainer
from r2q.training.data import Order, Rows, TrainingData, read, write
from r2q.training.losses import SplitModel
from r2q.training.options import TrainingOptions
from r2q.training.schedule import learning_rate
from r2q.training.state import Store
from r2q.training.trainer import Diverged, Trainer
from tests.models.tiny import tiny_model
from tests.training.rows import random_data
from tests.training.teacher import make, teacher_folder

OPTIONS = {"steps": 6, "batch_rows": 4, "learning_rate": 1e-3, "checkpoint_every": 2, "evaluate_every": 3}


def train(folder: str | Path, keep: str = "last", identity: str = "x") -> dict[str, torch.Tensor]:
    """Final codes, scales and other parameters of a small run."""
    model = tiny_model("llama")
    recipe = Recipe("recipe", "bitdistiller", "g32", options=OPTIONS | {"quantizer": "r2q", "keep": keep})
    data = random_data(Path(folder), identity=identity)
    result = make_method(recipe).quantize(model, list_targets(model), data)
    found = {f"{name}.{key}": t for name, w in result.layers.items() for key, t in w.grid.tensors().items()}
    return found | {name: w.packed for name, w in result.layers.items()} | result.other


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


SCRIPT = """
import os, signal, sys
from r2q.training.state import Store
from tests.training.test_trainer import train

save = Store.save

def save_and_die(self, name, state):
    fatal = name == "checkpoint" and state["step"] == 4
    if not fatal or sys.argv[1] == "after":
        save(self, name, state)
    if fatal:
        os.kill(os.getpid(), signal.SIGKILL)

Store.save = save_and_die
train(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("how", "spared"), [({}, 6 * 4 + 10 * 4 + 3 * 4), ({"compute": "bfloat16"}, 0), ({"compiled": True}, 0)]
)
def test_what_the_teacher_says_comes_with_the_rows_and_moves_no_bit(
    how: dict[str, Any], spared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of steps, coefficient and held-out losses; where the arithmetic is that of the rows."""
    folder = teacher_folder(tmp_path)
    *rows, _, digest = make(folder, tmp_path / "rows.safetensors", device="cpu")
    model, read_rows, hidden = load_full(str(folder)), [0], SplitModel.hidden

    def counted(self: SplitModel, tokens: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        read_rows[-1] += len(tokens)
        return hidden(self, tokens, places)

    monkeypatch.setattr(SplitModel, "hidden", counted)
    monkeypatch.setattr(torch, "compile", lambda function: function)  # half a minute
    recipe = Recipe("recipe", "bitdistiller", "g32", options=OPTIONS | {"quantizer": "r2q", "compute": "float32"} | how)
    found = []
    for given in (rows, [replace(some, states=None) for some in rows]):
        data = TrainingData(*given, "generated", digest)
        result = make_method(recipe).quantize(model, list_targets(model), data)
        found.append({name: layer.packed for name, layer in result.layers.items()} | result.other)
        read_rows.append(0)
    assert_same(*found)
    assert read_rows[1] - read_rows[0] == spared


@pytest.mark.parametrize(("when", "last"), [("before", 2), ("after", 4)])
def test_killed_and_started_again_gives_the_same_bits(
    when: str, last: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process is killed with signal 9 before or after its second checkpoint, of step 4, is written."""
    folder, path = tmp_path / "run", os.pathsep.join([str(Path.cwd()), *sys.path])
    killed = subprocess.run([sys.executable, "-c", SCRIPT, when, folder], env=os.environ | {"PYTHONPATH": path})
    assert killed.returncode == -signal.SIGKILL
    result = train(folder)
    assert f"goes on after step {last} of 6" in capsys.readouterr().out
    assert_same(result, train(tmp_path / "whole"))
    rows = [list(csv.DictReader((f / "training.csv").open())) for f in (folder, tmp_path / "whole")]
    for one, other in zip(*rows, strict=True):
        assert {**one, "seconds": ""} == {**other, "seconds": ""}


DAMAGE = {
    "missing": None,
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "flipped": lambda content: bytes([*content[:-40], content[-40] ^ 1, *content[-39:]]),
    "{}": lambda content: b"{}",
    "[]": lambda content: b"[]",
    "wrong keys": lambda content: b'{"identity": "x", "step": 4}',
    "wrong kinds": lambda content: b'{"identity": "x", "step": "4", "processes": 1, "sha256": {}}',
    "no hashes": lambda content: b'{"identity": "x", "step": 4, "processes": 1, "sha256": []}',
}
LATEST, BEFORE = ("checkpoint.json", "checkpoint-4-0.pt"), ("checkpoint-before.json", "checkpoint-2-0.pt")
BOTH = [(one, other) for one in LATEST for other in BEFORE]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped in its fifth step of six, and one that did not, which keeps its best weights."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        real = Trainer._step

        def stop(self: Trainer, step: int, *rest: Any) -> Any:
            if step == 5:
                raise KeyboardInterrupt
            return real(self, step, *rest)

        patch.setattr(Trainer, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(folder / "run", keep="best")
    torch.save(train(folder / "whole", keep="best"), folder / "whole.pt")
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_heals(
    kind: str, interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file, and one of each state: training goes on from what is whole, to the bits of an uninterrupted run."""
    expected = torch.load(interrupted / "whole.pt")
    cases = [((name,), 2) for name in LATEST] + [((name,), 4) for name in BEFORE] + [(names, 0) for names in BOTH]
    for number, (names, step) in enumerate(cases):
        folder = shutil.copytree(interrupted / "run", tmp_path / str(number))
        for name in names:
            damage, path = DAMAGE[kind], folder / name
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage(path.read_bytes()))
        result = train(folder, keep="best")
        said = capsys.readouterr().out
        assert (f"goes on after step {step} of 6" in said) if step else ("goes on" not in said)
        assert_same(result, expected)
        assert {path.name for path in folder.iterdir()} >= {"checkpoint.json", "checkpoint-before.json"}
        train(folder, keep="best")  # and what it left is whole
        assert "goes on after step 6 of 6" in capsys.readouterr().out


def test_without_checkpoints_no_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIONS, "checkpoint_every", 0)
    train(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drift.csv", "gradients.csv", "training.csv"]


def test_the_last_two_states_are_kept(interrupted: Path) -> None:
    names = {path.name for path in (interrupted / "run").glob("checkpoint*")}
    assert names == {*LATEST, *BEFORE}


def test_a_checkpoint_of_something_else_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, identity="one")
    capsys.readouterr()
    train(tmp_path, identity="one")
    assert "goes on after step 6" in capsys.readouterr().out
    train(tmp_path, identity="other")
    said = capsys.readouterr().out
    assert "goes on" not in said
    assert f"{tmp_path}/checkpoint.json: its state is of other options" in said


def test_the_best_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With held-out losses 5, 1, 3 (steps 0, 3, 6) the weights of step 3 come out."""
    kept = {}

    def held_out(self: Trainer) -> dict[str, float]:
        loss = [5.0, 1.0, 3.0][sum("held_out_loss" in row for row in self.rows)]
        kept[loss] = {name: p.detach().clone() for name, p in self.parameters.items()}
        return {"held_out_loss": loss, "held_out_forward_kl": loss, "held_out_reverse_kl": loss}

    monkeypatch.setattr(Trainer, "held_out", held_out)
    found = train(tmp_path, keep="best")
    norm = "model.norm.weight"
    assert torch.equal(found[norm], kept[1.0][norm])
    assert not torch.equal(found[norm], kept[3.0][norm])


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    real, calls = trainer.chunked_losses, []

    def losses(*args: object) -> object:
        sums = real(*args)  # type: ignore[arg-type]
        calls.append(torch.is_grad_enabled())
        return sums._replace(loss=sums.loss * float("inf")) if sum(calls) == 4 else sums

    monkeypatch.setattr(trainer, "chunked_losses", losses)
    with pytest.raises(Diverged, match=r"diverged at step 4: loss (inf|nan).*; the checkpoint of step 2 is kept"):
        train(tmp_path)
    state = Store(tmp_path, "x").load("checkpoint", torch.device("cpu"))
    assert state is not None
    assert state["step"] == 2
    assert len(list(csv.DictReader((tmp_path / "training.csv").open()))) == 4  # steps 0 to 3


def test_weights_that_leave_the_quantizers_numbers_are_a_divergence(tmp_path: Path) -> None:
    recipe = Recipe("recipe", "bitdistiller", "g32", options=OPTIONS | {"quantizer": "r2q", "learning_rate": 1e20})
    with pytest.raises(Diverged, match=r"diverged at step 1: .*layer .*largest 16-bit scale; no checkpoint"):
        make_method(recipe).quantize(
            model := tiny_model("llama"), list_targets(model), random_data(tmp_path, identity="x")
        )


def test_every_row_once_an_epoch_and_the_same_for_all() -> None:
    order = Order(rows=10, batch=4, seed=0)
    seen = torch.cat([order(step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(Order(10, 4, 0)(3), order(3))  # a step needs no history
    assert not torch.equal(Order(10, 4, 1)(3), order(3))


def test_learning_rates() -> None:
    constant = TrainingOptions(learning_rate=1.0, steps=4, warmup_steps=2)
    assert [learning_rate(constant, step) for step in (1, 2, 3, 4)] == [0.5, 1.0, 1.0, 1.0]
    linear = TrainingOptions(learning_rate=1.0, steps=4, schedule="linear")
    assert [learning_rate(linear, step) for step in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]
    cosine = TrainingOptions(learning_rate=1.0, steps=4, schedule="cosine")
    assert learning_rate(cosine, 4) == pytest.approx(0.05)
    assert learning_rate(cosine, 2) == pytest.approx(0.525)


def test_rows_on_disk(tmp_path: Path) -> None:
    data = random_data()
    path = tmp_path / "rows.safetensors"
    digest = write(path, data.train, data.held_out, {"kind": "text", "seed": 0})
    train_rows, held_out, settings, again = read(path)
    assert digest == again
    assert settings["kind"] == "text"
    assert torch.equal(train_rows.tokens, data.train.tokens)
    assert torch.equal(held_out.end, data.held_out.end)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="content and hash differ"):
        read(path)
    for damaged in (content[:50], content.replace(b'"facts":"{', b'"facts":"[', 1)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"rows\.safetensors: damaged or truncated"):
            read(path)
    with pytest.raises(FileNotFoundError, match="`teacher-data` makes it"):
        read(tmp_path / "none.safetensors")


def test_what_counts_in_a_row() -> None:
    rows = Rows(torch.zeros(2, 5, dtype=torch.int64), torch.tensor([2, 0]), torch.tensor([4, 5]))
    assert rows.counted("all").tolist() == [[True, True, True, False], [True] * 4]
    assert rows.counted("response").tolist() == [[False, True, True, False], [True] * 4]


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_full_disk_is_said_where_a_state_is_written(tmp_path: Path, size: int) -> None:
    """Torch says "unexpected pos 704 vs 598"."""
    (tmp_path / ".checkpoint-4-0.pt.writing").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*checkpoint-4-0\.pt\.writing'"):
        Store(tmp_path, "x").save("checkpoint", {"step": 4, "weights": torch.zeros(size)})
    assert not list(tmp_path.glob("checkpoint*"))
