"""Layers with one input in one product: the same numbers, tensors and files; through torch.compile, too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from r2q.kernels.linear import MATMUL, linear
from r2q.models import packed
from r2q.models.joined import alike, join
from r2q.models.load import load_packed
from r2q.models.packed import PackedLinear
from r2q.models.save import save
from tests.models.tiny import needs_gpu, packed_model, tokens


@pytest.fixture(autouse=True)
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows of each product; every packed layer goes the way that it goes on a GPU."""
    rows: list[int] = []

    def counted(x: torch.Tensor, codes: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(codes))
        return linear(x, codes, *rest)

    monkeypatch.setattr(packed, "linear", counted)
    monkeypatch.setattr(PackedLinear, "forward", PackedLinear.multiply)
    with torch.no_grad():
        yield rows


@pytest.mark.parametrize("method", ["r2q", "rtn"])
@pytest.mark.parametrize(
    ("case", "rows"), [("llama", [128, 64, 256, 64]), ("qwen3-tied", [128, 64, 256, 64]), ("opt", [192, 64, 128, 64])]
)
def test_a_block_takes_four_products(case: str, rows: list[int], method: str, products: list[int]) -> None:
    model = packed_model(case, method)
    wanted, stored = model(tokens()).logits, {k: v.clone() for k, v in model.state_dict().items()}
    assert join(model, "cpu") is model
    products.clear()
    assert torch.allclose(model(tokens()).logits, wanted, atol=1e-5)
    assert products == 2 * rows
    state = model.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) for name in state)
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert all(layer.joined[0].kept is None for layer in layers if layer.joined)  # no result outlives its layers


def test_nothing_is_stored_twice() -> None:
    model = join(packed_model("llama"), "cpu")
    attention = model.model.layers[0].self_attn
    storage = {layer.codes.untyped_storage().data_ptr() for layer in (attention.q_proj, attention.k_proj)}
    assert storage == {attention.v_proj.joined[0].whole.codes.untyped_storage().data_ptr()}


def test_each_input_has_its_own_products() -> None:
    layer, apart = (model.model.layers[0].mlp for model in (join(packed_model("llama"), "cpu"), packed_model("llama")))
    x, y = torch.randn(2, 3, 64)

    def same(name: str, value: torch.Tensor) -> None:
        assert torch.allclose(getattr(layer, name)(value), getattr(apart, name)(value), atol=1e-6)

    for name, value in (("gate_proj", x), ("up_proj", y), ("gate_proj", y), ("gate_proj", x), ("up_proj", x)):
        same(name, value)
    for _ in range(3):  # a part is taken once: the same tensor with other numbers is another input
        same("gate_proj", x)
        x.neg_()


def test_many_vectors_go_one_layer_at_a_time(products: list[int]) -> None:
    mlp = join(packed_model("llama"), "cpu").model.layers[0].mlp
    mlp(torch.randn(MATMUL + 1, 64))
    assert products == [128, 128, 64]


def test_it_compiles_into_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "linear", linear)
    model = packed_model("llama")
    wanted, seen = model(tokens()).logits, []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        seen.extend(node for node in graph.graph.nodes if node.target is linear)
        return graph.forward

    found = torch.compile(join(model, "cpu"), fullgraph=True, backend=count)(tokens()).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    assert len(seen) == 8


@needs_gpu
def test_on_a_gpu_in_a_graph_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "linear", linear)
    mlp, x = packed_model("llama").model.layers[0].mlp.to("cuda", torch.bfloat16), torch.randn(3, 64).cuda().bfloat16()
    wanted = mlp(x)
    assert join(mlp).up_proj.joined
    eager = mlp(x)
    assert torch.allclose(eager, wanted, rtol=2e-2, atol=1e-2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = mlp(x)
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, eager)
    compiled = torch.compile(mlp, fullgraph=True, mode="reduce-overhead")
    for _ in range(3):
        assert torch.allclose(compiled(x), wanted, rtol=2e-2, atol=1e-2)


def test_a_joined_model_is_saved_and_moved_like_any_other(tmp_path: Path, products: list[int]) -> None:
    model = packed_model("llama")
    before = save(model, None, tmp_path / "apart", {})
    assert save(join(model, "cpu"), None, tmp_path / "joined", {}) == before
    wanted = model(tokens()).logits
    model.to(torch.float32)
    products.clear()
    assert torch.equal(model(tokens()).logits, wanted)
    assert len(products) == 14
    assert torch.equal(load_packed(tmp_path / "joined")(tokens()).logits, wanted)


def test_what_cannot_be_one_layer_stays_apart() -> None:
    def layers(case: str, **changed: Any) -> list[PackedLinear]:
        spec = {"grid": "affine", "bits": 2, "shape": [4, 64], "rows": 4, "groups": 2}
        spec |= {"float_zero": False, "in_scale": False}
        return [PackedLinear(spec), PackedLinear(spec | changed)]

    assert alike(layers("the same"))
    assert alike(layers("more rows", shape=[8, 64], rows=8))
    assert not alike(layers("half a byte of zero points", shape=[1, 64], rows=1))
    assert not alike(layers("levels of the whole weight", rows=1, groups=1))
    assert not alike(layers("groups", groups=1))
    assert not alike(layers("grid", grid="symmetric"))
    assert not alike(layers("width of a code", bits=3))
    assert not alike(layers("a factor", in_scale=True))
    here, there = layers("another device")
    there.codes = there.codes.to("meta")
    assert not alike([here, there])
    scaled = [PackedLinear(layers("")[0].spec | {"in_scale": True}) for _ in range(2)]
    scaled[0].in_scale.fill_(1)
    scaled[1].in_scale.fill_(1)
    assert alike(scaled)
    scaled[1].in_scale[5] = 2
    assert not alike(scaled)
