"""BitDistiller's clipping against a search by brute force, with its quantizer written out."""

import pytest
import torch

from baselines._calibrated import error_roots, search_range
from baselines.bitdistiller_clip import awq_lattice, two_sided
from r2q.models.targets import list_targets
from r2q.quantization.grid import stored
from tests.baselines.calibrated import quantize, text
from tests.models.tiny import inputs_of, tiny_model


def published(w: torch.Tensor) -> torch.Tensor:
    """AWQ's quantizer at two bits on the last dimension (scales rounded to 16 bits, as they are stored)."""
    max_val, min_val = w.amax(-1, keepdim=True), w.amin(-1, keepdim=True)
    scales = stored((max_val - min_val).clamp(min=1e-5) / 3).float()
    zeros = (-torch.round(min_val / scales)).clamp(0, 3)
    return (torch.clamp(torch.round(w / scales) + zeros, 0, 3) - zeros) * scales


@pytest.mark.parametrize("granularity", ["g16", "channel"])
@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_the_whole_range_alone_is_the_plain_quantizer(case: str, granularity: str) -> None:
    model = tiny_model(case)
    result = quantize("bitdistiller_clip", model, granularity, steps=1)
    for target in list_targets(model):
        weight = target.weight.detach()
        groups = weight.reshape(-1, 16 if granularity == "g16" else weight.shape[-1])
        assert torch.equal(result.layers[target.name].dequantize(), published(groups).reshape(weight.shape))


def test_one_sided_groups_lose_an_end() -> None:
    values = torch.tensor([[[1.0, 1.2, 1.4, 1.6]]])
    grid = awq_lattice(values, 2)
    assert torch.equal(grid.decode(grid.encode(values)), published(values))
    assert published(values).max() < 0.61


@pytest.mark.parametrize("tokens_", [8, 40])
def test_the_search_is_brute_force(tokens_: int) -> None:
    generator = torch.Generator().manual_seed(tokens_)
    values, x = torch.randn(5, 2, 16, generator=generator), torch.randn(tokens_, 32, generator=generator)
    values[0] = values[0].abs() + 0.2  # no sign change
    low, high = search_range(values, error_roots(x, 16), two_sided(10, 20), awq_lattice, 2)
    for row in range(5):
        for group in range(2):
            w, part = values[row, group], x[:, 16 * group : 16 * group + 16]
            best = (float("inf"), 0.0, 0.0)
            for i in range(10):
                for j in range(10):
                    ends = w.min() * (1 - j / 20), w.max() * (1 - i / 20)
                    error = float(((part @ published(w.clamp(*ends))) - part @ w).square().mean())
                    if error < best[0] * (1 - 1e-5):
                        best = (error, float(ends[0]), float(ends[1]))
            assert (float(low[row, group]), float(high[row, group])) == pytest.approx(best[1:], rel=1e-6)


def test_layers_are_judged_by_their_own_inputs() -> None:
    """One layer of the model, searched by hand on what it reads in the full-precision model."""
    model, data = tiny_model("opt"), text()
    layer = model.model.decoder.layers[1].fc2
    ((read,),) = inputs_of(layer, lambda: model(data.tokens))
    read = read.flatten(0, -2)
    values = layer.weight.detach().reshape(64, -1, 32)
    low, high = search_range(values, error_roots(read, 32), two_sided(10, 20), awq_lattice, 2)
    expected = published(values.clamp(low, high)).reshape(64, -1)
    ours = quantize("bitdistiller_clip", model).layers["model.decoder.layers.1.fc2"].dequantize()
    assert (ours != expected).float().mean() < 0.01  # near-ties may fall differently
    plain = published(values).reshape(64, -1)
    errors = [(read @ (q - layer.weight.detach()).T).square().mean() for q in (ours, plain)]
    assert errors[0] < errors[1]
