"""Two processes, each with half of the rows and half of every parameter, train as one does."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from r2q.models.apply import apply
from r2q.models.save import save
from r2q.models.targets import list_targets
from r2q.quantization.method import Quantized, Recipe, make_method
from r2q.training.processes import CPU, Group, spread
from r2q.training.trainer import Diverged
from tests.models.tiny import tiny_model
from tests.training.rows import random_data

OPTIONS = {"steps": 4, "batch_rows": 6, "learning_rate": 1e-3, "evaluate_every": 2, "checkpoint_every": 2}
CLIPPED = {"quantizer": "rtn", "keep": "best", "activation_checkpointing": True, "start": "clip-g32"}
CASES = [  # tied embeddings, a clipped start, best weights; experts with trained scales; accumulation; stacks for x W
    ("qwen3-tied", "bitdistiller", CLIPPED),
    ("mixtral", "e2e_scales", {"quantizer": "r2q"}),
    ("opt", "llm_qat_training", {"quantizer": "r2q", "train": "layers", "micro_rows": 2}),
    ("gpt-oss", "bitdistiller", CLIPPED),
    ("llama4", "qat_ce", {"quantizer": "r2q"}),
]


def train(folder: Path, processes: int, case: str = "llama", method: str = "bitdistiller", **options: Any) -> Quantized:
    model = tiny_model(case)
    start = clipped(case, folder.with_name(f"{folder.name}-clip")) if "start" in options else None
    data = replace(random_data(folder, identity="x"), processes=processes, start=start)
    recipe = Recipe("recipe", method, "g32", options=OPTIONS | options)
    return make_method(recipe).quantize(model, list_targets(model), data)


def clipped(case: str, folder: Path) -> Path:
    """A packed folder with shrunken ranges."""
    model = tiny_model(case)
    apply(make_method(Recipe("clip", "rtn", "g32", options={"clip": "mse"})), model, list_targets(model), CPU)
    save(model, None, folder, {})
    return folder


def records(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "training.csv").open()))


@pytest.mark.parametrize(("case", "method", "options"), CASES)
def test_two_processes_train_as_one(case: str, method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Six rows a step are three each (in pieces of two and one), and eight held-out ones four each."""
    one, two = (train(tmp_path / str(n), n, case, method, **options) for n in (1, 2))
    for a, b in zip(records(tmp_path / "1"), records(tmp_path / "2"), strict=True):
        assert a["tokens"] == b["tokens"]
        for key in ("loss", "forward_kl", "gradient_norm", "held_out_loss", "flipped"):
            assert (a[key] == b[key] == "") or float(b[key]) == pytest.approx(float(a[key]), rel=2e-3, abs=1e-6)
    for name, weight in one.layers.items():
        assert (weight.codes == two.layers[name].codes).float().mean() > 0.999
        torch.testing.assert_close(two.layers[name].dequantize().sum(), weight.dequantize().sum(), rtol=1e-2, atol=1e-2)
    assert one.other.keys() == two.other.keys()
    for name, tensor in one.other.items():
        torch.testing.assert_close(two.other[name], tensor, rtol=1e-4, atol=1e-5)
    assert one.notes["training"]["kept_step"] == two.notes["training"]["kept_step"]
    for name in ("gradients", "drift"):
        lines = [list(csv.reader((tmp_path / n / f"{name}.csv").open())) for n in ("1", "2")]
        assert [row[:2] for row in lines[0]] == [row[:2] for row in lines[1]]
    assert not (tmp_path / "2" / ".processes").exists()


LONG = {"steps": 30, "flips_every": 0, "evaluate_every": 30}
SCRIPT = f"""
from pathlib import Path
from tests.training.test_processes import train
if __name__ == "__main__":
    train(Path("FOLDER"), 2, **{LONG!r})
"""


def test_killed_processes_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """Signal 9 to the one that started them; they end with it, and what is started again takes over their states."""
    folder, script = tmp_path / "killed", tmp_path / "script.py"
    script.write_text(SCRIPT.replace("FOLDER", str(folder)))
    path = os.pathsep.join([str(Path.cwd()), *sys.path])
    running = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": path})
    deadline = time.monotonic() + 240
    while not (folder / "checkpoint.json").is_file():
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(1)
    step = json.loads((folder / "checkpoint.json").read_text())["step"]
    assert 0 < step < 30
    again, whole = train(folder, 2, **LONG), train(tmp_path / "whole", 2, **LONG)
    for name, weight in whole.layers.items():
        assert torch.equal(again.layers[name].packed, weight.packed)
    assert all(torch.equal(again.other[name], tensor) for name, tensor in whole.other.items())
    for a, b in zip(records(folder), records(tmp_path / "whole"), strict=True):
        assert {**a, "seconds": ""} == {**b, "seconds": ""}


def test_what_goes_wrong_in_a_process_comes_back(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"diverged at step 2: .*layer .*; no checkpoint before it"):
        train(tmp_path, 2, learning_rate=1e20, evaluate_every=4, flips_every=0)
    assert [row["step"] for row in records(tmp_path)] == ["0", "1"]


def test_more_processes_than_gpus_are_refused(tmp_path: Path) -> None:
    count = torch.cuda.device_count() + 1
    with pytest.raises(ValueError, match=rf"training_processes: {count}, but torch finds {count - 1} GPUs"):
        spread(Group, count, torch.device("cuda"), tmp_path)


def test_shares_are_equal_and_filled_up_with_padding() -> None:
    rows = random_data().held_out[slice(0, 5)]
    shares = [rows.share(rank, 2) for rank in (0, 1)]
    assert [len(share) for share in shares] == [3, 3]
    assert torch.equal(torch.cat([share.tokens for share in shares])[:5], rows.tokens)
    assert shares[1].counted("all").sum(-1).tolist()[-1] == 0
    assert sum(int(share.counted("all").sum()) for share in shares) == int(rows.counted("all").sum())
