"""On a GPU: the compiled quantizer's numbers, training with it, blocks compiled as a whole, two GPUs as one."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from r2q.models.targets import list_targets
from r2q.quantization.method import Quantized, Recipe, make_method
from r2q.training.fake_quant import FakeQuantizer
from r2q.training.losses import DISTILLING, chunked_losses
from tests.models.tiny import needs_gpu, tiny_model
from tests.training.rows import random_data

pytestmark = needs_gpu
OPTIONS = {"steps": 4, "batch_rows": 6, "learning_rate": 1e-3, "compute": "float32", "evaluate_every": 2}

QUANTIZERS: list[tuple[str, dict[str, Any]]] = [
    ("rtn", {}),
    ("rtn", {"clip": "mse"}),
    ("r2q", {}),
    ("r2q", {"refine": "alternating"}),
    ("llm_qat", {}),
    ("hqq", {}),
]


def train(folder: Path, processes: int = 1, case: str = "llama", **options: Any) -> tuple[Quantized, list[float]]:
    """The result and the losses of a small run on the GPU."""
    model = tiny_model(case)
    data = replace(random_data(folder, identity="x"), device=torch.device("cuda"), processes=processes)
    recipe = Recipe("recipe", "bitdistiller", "g32", options=OPTIONS | options)
    result = make_method(recipe).quantize(model, list_targets(model), data)
    rows = list(csv.DictReader((folder / "training.csv").open()))
    return result, [float(row["loss"]) for row in rows[1:]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("granularity", ["g64", "channel"])
@pytest.mark.parametrize(("name", "options"), QUANTIZERS)
def test_the_compiled_pass_gives_what_is_stored(
    name: str, options: dict[str, Any], granularity: str, dtype: torch.dtype
) -> None:
    """Weights of several shapes; where a code differs, the weight lies on the border of both levels (rounding).

    A level may be off by the last digits of its group's largest one, as it is of 16-bit scales.
    """
    quantizer = FakeQuantizer(make_method(Recipe(name, name, granularity, options=options)), "layer")
    assert quantizer.fused
    last_digits = 1e-2 if dtype == torch.bfloat16 else 1e-3  # of bfloat16; of a 16-bit scale
    for rows, columns in ((128, 256), (512, 256), (256, 1024)):
        weight = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02).to("cuda", dtype)
        stored = quantizer.method.quantize_weight(weight).dequantize()
        found = quantizer(weight).float()
        width = columns if granularity == "channel" else 64
        groups = weight.float().unflatten(1, (-1, width))
        if "clip" in options:  # two ranges of a group may give the same error: then either is right
            ours, theirs = ((groups - x.unflatten(1, (-1, width))).square().sum(2) for x in (found, stored))
            low, high = groups.amin(2), groups.amax(2)
            between = ((3 * low / (low - high)) % 1 - 0.5).abs() < 1e-3  # zero as near to one level as to another
            assert between.float().mean() < 0.05
            torch.testing.assert_close(ours[~between], theirs[~between], rtol=2e-2, atol=0)
            continue
        level = stored.abs().unflatten(1, (-1, width)).amax(2).repeat_interleave(width, 1)
        other = (found - stored).abs() > last_digits * level
        assert other.float().mean() < 1e-3
        border = (found + stored) / 2
        largest = float(stored.abs().max())
        assert bool(((weight.float() - border)[other].abs() < last_digits * largest).all())


@pytest.mark.parametrize("kind", ["ce", *DISTILLING])
def test_compiled_losses_and_gradients_are_the_plain_ones(kind: str) -> None:
    """Chunks of 40 and 20 tokens on the GPU, all at once on the CPU."""
    generator = torch.Generator().manual_seed(0)
    hidden, teacher, weight, own = (torch.randn(n, 32, generator=generator) for n in (100, 100, 700, 700))
    labels = torch.randint(700, (100,), generator=generator)
    found = []
    for device, chunk in (("cuda", 40), ("cpu", 100)):
        h, w = (x.to(device, copy=True).requires_grad_() for x in (hidden, weight))
        full = own.to(device)
        sums = chunked_losses(
            kind,
            h,
            (w, None),
            teacher.to(device),
            lambda x, full=full: x @ full.t(),
            labels.to(device),
            0.3,
            chunk,
            0.01,
        )
        sums.objective.backward()
        assert h.grad is not None
        assert w.grad is not None
        found.append([x.cpu() for x in (sums.loss, sums.forward_kl, sums.reverse_kl, h.grad, w.grad)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_training_on_the_gpu_is_training_on_the_cpu(case: str, tmp_path: Path) -> None:
    gpu, losses = train(tmp_path / "gpu", case=case, quantizer="r2q")
    model = tiny_model(case)
    recipe = Recipe("recipe", "bitdistiller", "g32", options=OPTIONS | {"quantizer": "r2q"})
    cpu = make_method(recipe).quantize(model, list_targets(model), random_data(tmp_path / "cpu"))
    expected = [float(row["loss"]) for row in csv.DictReader((tmp_path / "cpu" / "training.csv").open()) if row["loss"]]
    assert losses[0] == pytest.approx(expected[0], rel=1e-2)
    assert losses == pytest.approx(expected, rel=0.1)  # the few codes that differ move all later steps
    for name, weight in cpu.layers.items():
        assert (weight.codes == gpu.layers[name].codes.cpu()).float().mean() > 0.97


def test_weights_in_bfloat16_train_as_those_in_float32(tmp_path: Path) -> None:
    """They are rounded by chance after each step, the same way each time."""
    options = {"quantizer": "rtn", "steps": 12, "learning_rate": 1e-4}
    exact = train(tmp_path / "exact", **options)[1]
    one, two = (train(tmp_path / name, latent="bfloat16", compute="auto", **options)[1] for name in ("one", "two"))
    assert one == pytest.approx(exact, rel=0.1)
    assert one == pytest.approx(two, rel=1e-2)


@pytest.mark.parametrize("case", ["llama", "opt", "qwen2"])
def test_compiled_blocks_train_as_plain_ones(case: str, tmp_path: Path) -> None:
    plain, compiled = (
        train(tmp_path / str(on), case=case, quantizer="r2q", compiled=on, activation_checkpointing=True)[1]
        for on in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=1e-2)


def test_deterministic_training_repeats_itself(tmp_path: Path) -> None:
    options = {"quantizer": "r2q", "compiled": True, "deterministic": True, "compute": "bfloat16"}
    results = [train(tmp_path / str(n), **options)[0] for n in (1, 2)]
    for name, weight in results[0].layers.items():
        assert torch.equal(weight.packed, results[1].layers[name].packed)
    assert all(torch.equal(tensor, results[1].other[name]) for name, tensor in results[0].other.items())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("compiled", [False, True])
def test_two_gpus_train_as_one(compiled: bool, tmp_path: Path) -> None:
    one, two = (train(tmp_path / str(n), n, quantizer="r2q", compiled=compiled)[1] for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-2)
