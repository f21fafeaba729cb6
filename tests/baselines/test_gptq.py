"""GPTQ against optimal brain quantization by brute force, the reference's algorithm, and its own lattices."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import baselines.gptq
from baselines._error_feedback import BLOCK, blocks_of, columns_of, factorize, quantize_rows, runs_of
from baselines.rtn import RTN
from r2q.kernels.feedback import Ladder
from r2q.models.blocks import walk
from r2q.models.calibration import Calibration
from r2q.models.moments import output_error, second_moments
from r2q.models.targets import list_targets
from r2q.quantization.grid import AffineGrid, BinaryGrid, Grid
from r2q.quantization.method import Quantized, Recipe, WeightMethod, make_method
from r2q.quantization.residual import R2Q, residual_codes
from tests.baselines.calibrated import same
from tests.models.tiny import CASES, needs_gpu, tiny_model

DAMPING = 0.01
LATTICES: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn": ("rtn", {}),
    "rtn-clip": ("rtn", {"clip": "mse"}),
    "r2q": ("r2q", {}),
    "r2q-alternating": ("r2q", {"refine": "alternating"}),
    "r2q-optimal": ("r2q", {"refine": "optimal"}),
    "llm_qat": ("llm_qat", {}),
    "hqq": ("hqq", {}),
}


def lattice(name: str, granularity: str = "g32", bits: int = 2) -> WeightMethod:
    method, options = LATTICES[name]
    found = make_method(Recipe("own", method, granularity, bits, options=options))
    assert isinstance(found, WeightMethod)
    return found


def problem(rows: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight ``[rows, width]`` and a Hessian of correlated inputs, in float64: rounding then makes no ties."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    inputs = torch.randn(3 * width, width, generator=generator, dtype=torch.float64) @ (mix + torch.eye(width))
    return weight, 2 / len(inputs) * inputs.t() @ inputs


def decode(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    return grid.decode(codes.reshape(*grid.shape, -1)).reshape(codes.shape)


def brute_force(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    own: WeightMethod,
    size: int | None,
    static: bool = False,
    order: list[int] | None = None,
) -> torch.Tensor:
    """Optimal brain quantization, one column after the other: the inverse Hessian of the columns that are left is
    computed anew for each, and all of them move at once. No factorization, no blocks."""
    width = weight.shape[1]
    order = order or list(range(width))
    hessian = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(width, dtype=hessian.dtype)
    weight, result = weight.clone(), torch.zeros_like(weight, dtype=torch.float32)
    grids: dict[int, Grid] = {}
    if size is None:
        grids[0] = own.fit_groups(weight.reshape(1, 1, -1).float())
    elif static or size == width:
        for start in range(0, width, size):
            grids[start] = own.fit_groups(weight[:, None, start : start + size].float())
    for step, i in enumerate(order):
        start = 0 if size is None else i - i % size
        if start not in grids:
            grids[start] = own.fit_groups(weight[:, None, start : start + size].float())  # type: ignore[operator]
        grid = grids[start]
        column = weight[:, i].reshape(1, 1, -1) if size is None else weight[:, i].reshape(-1, 1, 1)
        level = grid.decode(own.encode_groups(column, grid)).flatten()
        left = order[step:]
        inverse = torch.linalg.inv(hessian[left][:, left])
        error = (weight[:, i] - level) / inverse[0, 0]
        weight[:, left] -= error[:, None] * inverse[0]
        result[:, i] = level
    return result


@pytest.mark.parametrize("name", LATTICES)
@pytest.mark.parametrize(
    ("granularity", "width", "size"),
    [("g32", 160, 32), ("g48", 144, 48), ("g144", 288, 144), ("channel", 136, 136), ("tensor", 40, None)],
)
def test_it_is_optimal_brain_quantization(name: str, granularity: str, width: int, size: int | None) -> None:
    weight, hessian = problem(6, width)
    own = lattice(name, granularity)
    found = decode(*quantize_rows(weight, factorize(hessian, DAMPING), own, size))
    assert torch.equal(found, brute_force(weight, hessian, own, size))


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("name", [name for name in LATTICES if name != "r2q-optimal"])  # which is for two bits
def test_more_bits_are_coded_as_the_lattice_codes_them(name: str, bits: int) -> None:
    """R2Q's successive signs, which from three bits on are not always the nearest level, among them."""
    weight, hessian = problem(6, 96)
    own = lattice(name, bits=bits)
    found = decode(*quantize_rows(weight, factorize(hessian, DAMPING), own, 32))
    assert torch.equal(found, brute_force(weight, hessian, own, 32))


def test_signs_cut_where_they_change_even_outside_of_their_interval() -> None:
    """Scales in no order, so that some cuts are outside, and values on every cut."""
    alpha = torch.tensor([[[1.0, 0.5, 0.25]], [[0.5, 1.0, 0.25]], [[0.25, 0.5, 2.0]], [[0.0, 0.0, 0.0]]])
    grid, values = BinaryGrid(alpha.half()), torch.arange(-40, 41).div(8).expand(4, 1, -1)
    rule = columns_of(lattice("r2q", bits=3), grid)
    assert isinstance(rule, Ladder)
    found = torch.stack([rule.column(column, 0)[0] for column in values[:, 0].t()], -1)
    assert torch.equal(found.to(torch.uint8), residual_codes(values, alpha)[:, 0])


@pytest.mark.parametrize("name", ["rtn", "r2q"])
@pytest.mark.parametrize("act_order", [False, True])
def test_static_groups_and_order(name: str, act_order: bool) -> None:
    weight, hessian = problem(6, 160)
    own = lattice(name)
    order = hessian.diagonal().argsort(descending=True).tolist() if act_order else None
    assert order != list(range(160))
    found = decode(*quantize_rows(weight, factorize(hessian, DAMPING, act_order), own, 32, static=True))
    assert torch.equal(found, brute_force(weight, hessian, own, 32, True, order))
    dynamic = decode(*quantize_rows(weight, factorize(hessian, DAMPING), own, 32))
    assert not torch.equal(found, dynamic)


def reference(weight: torch.Tensor, hessian: torch.Tensor, own: WeightMethod, size: int) -> torch.Tensor:
    """``fasterquant`` of the GPTQ repository, line by line, with the lattice in place of its quantizer."""
    w, h = weight.clone(), hessian.clone()
    columns = w.shape[1]
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    q_all = torch.zeros_like(w)
    diag = torch.arange(columns)
    h[diag, diag] += DAMPING * torch.mean(torch.diag(h))
    hinv = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for i1 in range(0, columns, 128):
        i2 = min(i1 + 128, columns)
        w1, hinv1 = w[:, i1:i2].clone(), hinv[i1:i2, i1:i2]
        q1, err1 = torch.zeros_like(w1), torch.zeros_like(w1)
        for i in range(i2 - i1):
            if (i1 + i) % size == 0:
                grid = own.fit_groups(w[:, None, (i1 + i) : (i1 + i + size)].float())
            q = grid.decode(own.encode_groups(w1[:, i].reshape(-1, 1, 1), grid)).flatten()
            q1[:, i] = q
            err = (w1[:, i] - q) / hinv1[i, i]
            w1[:, i:] -= err.unsqueeze(1).matmul(hinv1[i, i:].unsqueeze(0))
            err1[:, i] = err
        q_all[:, i1:i2] = q1
        w[:, i2:] -= err1.matmul(hinv[i1:i2, i2:])
    return q_all.float()


@pytest.mark.parametrize(("size", "width", "differs"), [(32, 288, True), (96, 288, True), (128, 256, False)])
def test_compat_reference_is_the_repository_with_its_stale_scales(size: int, width: int, differs: bool) -> None:
    weight, hessian = problem(6, width)
    own = lattice("rtn", f"g{size}")
    factor = factorize(hessian, DAMPING)
    stale = decode(*quantize_rows(weight, factor, own, size, stale=True))
    assert torch.equal(stale, reference(weight, hessian, own, size))
    fresh = decode(*quantize_rows(weight, factor, own, size))
    assert torch.equal(stale, fresh) != differs


def test_blocks_hold_whole_groups() -> None:
    assert blocks_of(256, 48)[:2] == [(0, 96), (96, 192)]
    assert blocks_of(600, 200) == [(0, 128), (128, 200), (200, 328), (328, 400), (400, 528), (528, 600)]
    assert blocks_of(300, None) == [(0, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, 300)]
    assert runs_of(128, 256, 96) == [(128, 192), (192, 256)]


def test_a_singular_hessian_is_damped_until_it_is_not() -> None:
    x = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    hessian = x.t() @ x
    factor = factorize(hessian, 1e-9)
    assert factor.steps == [1e-9, 0.01]
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(96)
    assert torch.allclose(factor.upper.t() @ factor.upper @ damped, torch.eye(96), atol=1e-3)
    assert torch.equal(factor.upper, factor.upper.triu())
    indefinite = torch.eye(8) - 0.15 * torch.ones(8, 8)  # smallest eigenvalue -0.2, mean diagonal 0.85
    assert factorize(indefinite, 0.01).steps == [0.01, 0.03, 0.1, 0.3]


@pytest.mark.parametrize("name", LATTICES)
def test_inputs_that_are_all_zero_leave_a_weight_of_zeros(name: str) -> None:
    """As in the repository, column by column: H_ii = 1 and W = 0 where H_ii is 0."""
    weight, _ = problem(5, 64)
    left = torch.full((5, 64), 7.0)
    factor = factorize(torch.zeros(64, 64), DAMPING)
    codes, grid = quantize_rows(weight.float(), factor, lattice(name, "g32"), 32, left=left)
    wanted = brute_force(torch.zeros(5, 64, dtype=torch.float64), torch.eye(64).double(), lattice(name, "g32"), 32)
    assert torch.equal(decode(codes, grid), wanted)
    assert not wanted.any()
    assert not left.any()
    assert factor.steps == [DAMPING]
    assert factor.dead.all()


def text(seed: int = 0, windows: int = 16) -> Calibration:
    tokens = torch.randint(3, 96, (windows + 2, 48), generator=torch.Generator().manual_seed(seed))
    return Calibration(tokens[:windows], tokens[windows:], {"sha256": str(seed)}, minimum_tokens=64)


def quantize(model: Any, data: Calibration, granularity: str = "g32", **options: Any) -> Quantized:
    method = make_method(Recipe("gptq", "gptq", granularity, options=options))
    return method.quantize(model, list_targets(model), data)


@pytest.mark.parametrize("case", CASES)
def test_output_errors_on_calibration_text_are_below_those_of_the_lattice(case: str) -> None:
    """Every layer of every kind of model; inputs come from quantized blocks, for both the same ones."""
    model, data = tiny_model(case), text()
    name = "r2q" if case in ("llama", "opt-projected", "mixtral") else "rtn"
    result = quantize(model, data, quantizer=name)
    own = lattice(name)
    targets = list_targets(model)
    assert set(result.layers) == {target.name for target in targets}
    for block in walk(model, targets, data):
        moments, seen = second_moments(block)
        for group in block.groups:
            for target in group:
                tokens = seen[target.name].tokens
                plain = own.quantize_weight(target.weight.detach(), target.name).dequantize()
                moment = moments[group[0].name]
                error = output_error(moment, target.weight, result.layers[target.name].dequantize(), tokens)
                assert error < output_error(moment, target.weight, plain, tokens)
                assert error == pytest.approx(result.notes["layers"][target.name]["calibration_error"], rel=1e-4)
        for target in block.targets:
            block.set_weight(target.name, result.layers[target.name].dequantize())


def test_only_the_text_moves_the_result() -> None:
    model = tiny_model("llama")
    first = quantize(model, text())
    assert same(first, quantize(model, text()))
    assert same(first, quantize(model, replace(text(), offload=True)))
    assert not same(first, quantize(model, text(seed=1)))


@needs_gpu
def test_offloading_on_a_gpu_changes_no_bit() -> None:
    model, data = tiny_model("llama"), replace(text(), device=torch.device("cuda"))
    assert same(quantize(model, data), quantize(model, replace(data, offload=True)))


def test_true_sequential_shows_later_layers_what_earlier_ones_became() -> None:
    model, data = tiny_model("llama"), text()
    plain, sequential = quantize(model, data), quantize(model, data, true_sequential=True)
    names = list(plain.layers)
    equal = {n: torch.equal(plain.layers[n].dequantize(), sequential.layers[n].dequantize()) for n in names[:7]}
    first = {f"model.layers.0.self_attn.{name}_proj" for name in "qkv"}
    assert {name for name, same in equal.items() if same} == first


def test_unreached_columns_are_counted_and_set_to_zero() -> None:
    model = tiny_model("llama")
    model.model.layers[1].input_layernorm.weight.data[[5, 40]] = 0
    result = quantize(model, text())
    dead = {name: notes["dead_columns"] for name, notes in result.notes["layers"].items() if notes["dead_columns"]}
    assert dead == {f"model.layers.1.self_attn.{name}_proj": 2 for name in "qkv"}
    weight = result.layers["model.layers.1.self_attn.k_proj"].dequantize()
    assert not weight[:, [5, 40]].any()
    assert weight[:, 6].any()


@pytest.mark.parametrize(
    ("case", "closed", "layer"),
    [
        ("opt", "model.decoder.layers.0.fc1.bias", "model.decoder.layers.0.fc2"),  # no ReLU is ever open
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"),  # one expert
    ],
)
def test_a_layer_behind_a_dead_one_is_zeros_and_the_model_computes_the_same(case: str, closed: str, layer: str) -> None:
    model, data = tiny_model(case), text()
    weight = model.get_parameter(closed).data
    dead = weight[1] if weight.dim() == 3 else weight
    dead.fill_(-1e4 if weight.dim() == 1 else 0)
    with torch.no_grad():
        before = model(data.tokens).logits
        result = quantize(model, data)
        found = result.layers[layer].dequantize()
        own = model.get_parameter(layer if found.dim() == 3 else f"{layer}.weight").data
        zeros, own = (found[1], own[1]) if found.dim() == 3 else (found, own)
        assert not zeros.any()
        assert result.notes["layers"][layer]["dead_columns"] == zeros.shape[-1]
        own.copy_(zeros)
        assert torch.equal(model(data.tokens).logits, before)


def test_an_expert_that_no_token_reaches_is_refused() -> None:
    data = text()
    data = replace(data, tokens=data.tokens[:1, :2], minimum_tokens=0)
    with pytest.raises(ValueError, match=r"experts\.gate_up_proj: no calibration token reaches expert \d"):
        quantize(tiny_model("mixtral"), data)
    assert quantize(tiny_model("mixtral"), replace(data, minimum_tokens=1)).layers


def test_a_hopeless_hessian_raises_with_the_layers_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(block: Any, groups: Any = None) -> Any:
        moments, seen = second_moments(block, groups)
        if block.index == 1:
            moments["model.layers.1.mlp.down_proj"][0, 1] += 1e6
            moments["model.layers.1.mlp.down_proj"][1, 0] += 1e6
        return moments, seen

    monkeypatch.setattr(baselines.gptq, "second_moments", spoiled)
    said = r"layer model\.layers\.1\.mlp\.down_proj: its Hessian is not positive definite"
    with pytest.raises(ValueError, match=said):
        quantize(tiny_model("llama"), text())


def test_damping_is_recorded_layer_by_layer() -> None:
    notes = quantize(tiny_model("llama"), text(windows=1), damping=1e-12).notes["layers"]  # 48 tokens, 64 columns
    assert notes["model.layers.0.self_attn.q_proj"]["damping_steps"][:2] == [1e-12, 0.01]
    assert notes["model.layers.0.self_attn.q_proj"]["damping"] == 0.01
    assert notes["model.layers.0.self_attn.q_proj"]["calibration_tokens"] == 48


def test_experts_with_few_tokens_see_all_and_the_report_says_so() -> None:
    model, data = tiny_model("mixtral"), text()
    free = quantize(model, replace(data, minimum_tokens=0))
    name = "model.layers.0.mlp.experts.down_proj"
    counts = free.notes["layers"][name]["calibration_tokens"]
    assert sum(counts) == 2 * data.tokens.numel()
    assert "shown_all_tokens" not in free.notes["layers"][name]
    fewest = counts.index(min(counts))
    ruled = quantize(model, replace(data, minimum_tokens=min(counts) + 1))
    notes = ruled.notes["layers"][name]
    assert notes["shown_all_tokens"] == [fewest]
    assert notes["calibration_tokens"] == counts
    for expert in range(4):
        one, other = (result.layers[name].dequantize()[expert] for result in (free, ruled))
        assert torch.equal(one, other) == (expert != fewest)


def test_an_assignment_of_ones_own_is_kept() -> None:
    """A subclass of R2Q that codes differently, or a grid that does, is asked for every code."""

    class Lowest(R2Q):
        def encode_groups(self, values: torch.Tensor, grid: Grid) -> torch.Tensor:
            return torch.zeros_like(values, dtype=torch.uint8)

    weight, hessian = problem(6, 64)
    codes, _ = quantize_rows(weight, factorize(hessian, DAMPING), Lowest(Recipe("own", "own", "g32")), 32)
    assert codes.max() == 0

    class Zeros(AffineGrid):
        def encode(self, values: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(values, dtype=torch.uint8)

    class Nowhere(RTN):
        def fit_groups(self, values: torch.Tensor) -> AffineGrid:
            return Zeros(**vars(super().fit_groups(values)))

    codes, _ = quantize_rows(weight, factorize(hessian, DAMPING), Nowhere(Recipe("own", "rtn", "g32")), 32)
    assert codes.max() == 0


@pytest.mark.parametrize("granularity", ["g32", "tensor"])
def test_a_lattice_that_codes_weights_together_is_refused(granularity: str) -> None:
    """Column by column, error diffusion inside of a group is plain rounding, and pairs are none."""

    class Diffusing(RTN):
        def encode_groups(self, values: torch.Tensor, grid: Grid) -> torch.Tensor:
            columns, left = [], torch.zeros_like(values[..., :1])
            for column in values.split(1, -1):
                columns.append(grid.encode(column + left))
                left = column + left - grid.decode(columns[-1])
            return torch.cat(columns, -1)

    class Pairs(RTN):
        def encode_groups(self, values: torch.Tensor, grid: Grid) -> torch.Tensor:
            first = grid.encode(values).reshape(*values.shape[:-1], -1, 2)[..., :1]
            return first.expand(*first.shape[:-1], 2).reshape(values.shape)

    weight, hessian = problem(6, 64)
    for kind in (Diffusing, Pairs):
        own = kind(Recipe("own", "own.Kind", granularity))
        with pytest.raises(ValueError, match=r"own\.Kind codes the weights of a group together"):
            quantize_rows(weight, factorize(hessian, DAMPING), own, 32 if granularity == "g32" else None)
