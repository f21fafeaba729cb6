"""AWQ against round to nearest and against searches by brute force in the original model."""

import copy
from typing import Any

import pytest
import torch

from baselines.awq import AWQ, channel_scale
from baselines.rtn import RTN
from r2q.models.targets import list_targets
from r2q.quantization.method import Recipe
from tests.baselines.calibrated import quantize, text
from tests.models.tiny import tiny_model


def rtn(weight: torch.Tensor, granularity: str = "g32") -> torch.Tensor:
    return RTN(Recipe("rtn", "rtn", granularity)).quantize_weight(weight).dequantize()


@pytest.mark.parametrize("granularity", ["g16", "channel"])
@pytest.mark.parametrize("case", ["llama", "opt", "mixtral"])
def test_exponent_zero_without_ranges_is_round_to_nearest(case: str, granularity: str) -> None:
    model = tiny_model(case)
    result = quantize("awq", model, granularity, exponents=1, clip=False)
    for target in list_targets(model):
        assert result.layers[target.name].in_scale is None
        assert torch.equal(result.layers[target.name].dequantize(), rtn(target.weight.detach(), granularity))


def outliers(case: str) -> Any:
    """A model some of whose channels are much larger: where activations and weights have something to balance."""
    model = tiny_model(case)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter[::7] *= 12
            elif "up_proj" in name or "fc1" in name:
                parameter[::9] *= 8
    return model


@pytest.mark.parametrize(
    ("case", "module", "layers"),
    [
        ("llama", "model.layers.0.self_attn", ["q_proj", "k_proj", "v_proj"]),
        ("llama", "model.layers.0.mlp", ["gate_proj", "up_proj"]),
        ("llama", "model.layers.1.mlp.down_proj", [""]),
        ("opt", "model.decoder.layers.0.fc1", [""]),
        ("mixtral", "model.layers.0.mlp.experts", ["gate_up_proj"]),
        ("mixtral", "model.layers.1.mlp.experts", ["down_proj"]),
    ],
)
def test_the_exponent_is_the_best_of_all_tried(case: str, module: str, layers: list[str]) -> None:
    """Every exponent put into the original model: the squared error of the module's output there."""
    model, data = outliers(case), text()
    if case == "mixtral":
        model.config._experts_implementation = "eager"
    calls: list[Any] = []
    reads: list[torch.Tensor] = []
    part = model.get_submodule(module)
    part.register_forward_hook(lambda m, args, kwargs, out: calls.append((args, kwargs, out)), with_kwargs=True)
    names = [f"{module}.{layer}".rstrip(".") for layer in layers]
    stacked = case == "mixtral"
    if stacked and layers == ["down_proj"]:
        reads = inputs_of_down(model, part, data.tokens)
    elif not stacked:
        model.get_submodule(names[0]).register_forward_pre_hook(lambda m, args: reads.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        model(data.tokens, use_cache=False)
        args, kwargs, output = calls[0]
        if stacked and layers == ["gate_up_proj"]:
            reads = [args[0][token] for token in args[1].new_tensor(range(len(args[1]))).repeat_interleave(2)]
            reads = [torch.stack(reads)]
        wanted = output[0] if isinstance(output, tuple) else output
        activation = torch.cat(reads).abs().mean(0)
        errors = []
        for step in range(20):
            s = channel_scale(activation, step / 20).float()
            changed = copy.deepcopy(part)
            for layer in layers:
                owner = changed if stacked else changed.get_submodule(layer)
                weight = getattr(owner, layer if stacked else "weight")
                weight.data = rtn(weight.data * s) / s
            got = changed.forward(*args, **kwargs)
            errors.append(float(((got[0] if isinstance(got, tuple) else got) - wanted).square().sum()))
    result = quantize("awq", model, clip=False)
    chosen = result.notes["layers"][names[0]]["exponent"]
    assert errors[round(chosen * 20)] == pytest.approx(min(errors), rel=1e-4)
    assert min(errors) < errors[0]  # so that a scale is worth having
    s = channel_scale(activation, chosen)
    for name in names:
        torch.testing.assert_close(result.layers[name].in_scale.float(), s.float(), rtol=2e-3, atol=0)


def inputs_of_down(model: Any, experts: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """What the experts' second matrices read, worked out from the first ones."""
    seen: list[torch.Tensor] = []

    def after(module: Any, args: tuple[Any, ...], _: Any) -> None:
        hidden, chosen, _weights = args
        for token, picks in zip(hidden, chosen, strict=True):
            for expert in picks:
                gate, up = (module.gate_up_proj[expert] @ token).chunk(2)
                seen.append(torch.nn.functional.silu(gate) * up)

    handle = experts.register_forward_hook(after)
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return [torch.stack(seen)]


def test_the_range_search_is_brute_force() -> None:
    generator = torch.Generator().manual_seed(3)
    values, x = torch.randn(6, 2, 16, generator=generator), torch.randn(40, 32, generator=generator)
    ours = AWQ(Recipe("awq", "awq", "g16")).clip(values, x)
    for row in range(6):
        for group in range(2):
            w, part = values[row, group], x[:, 16 * group : 16 * group + 16]
            bounds = [float(w.abs().max()) * (1 - i / 20) for i in range(10)]
            errors = [(part @ (rtn(w.clamp(-b, b).view(1, 16), "channel")[0] - w)).square().mean() for b in bounds]
            best = bounds[int(torch.stack(errors).argmin())]
            torch.testing.assert_close(ours[row, group], w.clamp(-best, best))


def test_the_scale_is_centred_and_has_a_floor() -> None:
    s = channel_scale(torch.tensor([0.0, 1.0, 4.0]), 0.5).float()
    assert (s / s[1]).tolist() == pytest.approx([1e-4, 1, 2], rel=1e-3)
    assert float(s.max() * s.min()) == pytest.approx(1, rel=2e-3)
