"""The walk through blocks against ordinary forward passes of the whole model."""

from typing import Any

import pytest
import torch

from r2q.models import blocks
from r2q.models.apply import apply
from r2q.models.blocks import Block, compute_dtype, walk
from r2q.models.calibration import Calibration
from r2q.models.capture import hidden_of
from r2q.models.moments import output_errors, second_moments
from r2q.models.targets import decoder_blocks, has_tied_head, list_targets
from r2q.quantization.method import Recipe, make_method
from tests.models.test_targets import small
from tests.models.tiny import CASES, inputs_of, tiny_model

SHARING = {"head_dim": 16, "global_head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
FACTS = {"source": "random", "seed": "0", "first_token": "3", "sha256": "0"}


def text(minimum_tokens: int = 0, **options: Any) -> Calibration:
    tokens = torch.randint(3, 96, (9, 16), generator=torch.Generator().manual_seed(1))
    return Calibration(tokens[:7], tokens[7:], FACTS, minimum_tokens=minimum_tokens, **options)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.TOKENS_AT_ONCE, "cpu", 48)  # three windows at once, the last batch smaller


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_blocks_see_what_they_see_in_the_model(case: str, attention: str) -> None:
    model, data = tiny_model(case), text()
    model.set_attn_implementation(attention if model._supports_sdpa else "eager")  # GPT-OSS has no other
    model.config._experts_implementation = "eager"
    with_head = not has_tied_head(model)
    targets = list_targets(model, with_head)
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        target.owner.register_forward_pre_hook(
            lambda _, args, name=target.name: seen.setdefault(name, []).append(args[0].flatten(0, -2))
        )
        for target in targets
        if not target.is_stack
    ]
    with torch.no_grad():
        whole = model(data.tokens, output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    visited = []
    for block in walk(model, targets, data):
        visited.append(block.index)
        found: dict[str, list[torch.Tensor]] = {}
        counts = block.observe(lambda name, expert, x: found.setdefault(name, []).append(x))  # noqa: B023
        for group in block.groups:
            for target in group:
                if not target.is_stack:
                    shown = torch.cat(found[group[0].name])
                    assert torch.allclose(shown, seen[target.name][0], atol=1e-6)
                    assert counts[target.name].tokens == data.tokens.numel()
        if block.index >= 0:
            assert torch.allclose(torch.cat(block.inputs), whole.hidden_states[block.index], atol=1e-6)
        else:
            assert torch.allclose(torch.cat([block.run(x) for x in block.inputs]), whole.logits, atol=1e-5)
    assert visited == [0, 1, *([-1] if with_head else [])]


def test_groups_are_layers_that_read_the_same() -> None:
    wanted = {
        "llama": ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"],
        "opt-projected": ["q_proj k_proj v_proj", "out_proj", "fc1", "fc2"],
        "mixtral": ["q_proj k_proj v_proj", "o_proj", "gate_up_proj", "down_proj"],
        "qwen2-moe": ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj", "gate_up_proj", "down_proj"],
    }
    for case, names in wanted.items():
        model = tiny_model(case)
        for block in walk(model, list_targets(model), text()):
            assert [" ".join(t.name.rsplit(".", 1)[-1] for t in group) for group in block.groups] == names


def test_a_changed_weight_moves_what_comes_after_and_nothing_else() -> None:
    model, data = tiny_model("llama"), text()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    targets = list_targets(model)
    name = "model.layers.0.mlp.down_proj"
    changed = None
    for block in walk(model, targets, data):
        if block.index == 0:
            block.set_weight(name, torch.zeros(64, 128))
        else:
            changed = torch.cat(block.inputs)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    with torch.no_grad():
        wanted = model(data.tokens, output_hidden_states=True).hidden_states[1]
    assert torch.allclose(changed, wanted, atol=1e-6)  # type: ignore[arg-type]


def given_to_experts(block: Block) -> list[tuple[torch.Tensor, ...]]:
    """Hidden states and chosen experts, with their weights, of each batch."""
    return inputs_of(block.module.mlp.experts, lambda: [block.run(hidden) for hidden in block.inputs])


def test_experts_see_the_tokens_routed_to_them() -> None:
    model = tiny_model("mixtral")
    targets = list_targets(model)
    block = next(walk(model, targets, text()))
    routed = given_to_experts(block)
    stack = next(t for t in targets if t.name == "model.layers.0.mlp.experts.gate_up_proj")
    found: dict[int, list[torch.Tensor]] = {}
    counts = block.observe(lambda name, expert, x: found.setdefault(expert, []).append(x), [[stack]])
    for expert in range(4):
        wanted = torch.cat([hidden[(chosen == expert).any(-1)] for hidden, chosen, _ in routed])
        rows = [sorted(x.tolist()) for x in (torch.cat(found[expert]), wanted)]  # experts take them in another order
        assert rows[0] == rows[1]
        assert counts[stack.name].tokens[expert] == len(wanted)


@pytest.mark.parametrize("case", ["gpt-oss", "llama4"])
def test_moments_of_experts_the_other_way_round(case: str) -> None:
    """In float64, by each model's own formula, over the tokens that its router sent to each expert."""
    model = tiny_model(case)
    experts = model.model.layers[0].get_submodule("mlp.experts" if case == "gpt-oss" else "feed_forward.experts")
    generator = torch.Generator().manual_seed(2)
    for parameter in experts.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    block = next(walk(model, list_targets(model), text()))
    moments, seen = second_moments(block, [group for group in block.groups if group[0].is_stack])
    given: list[tuple[torch.Tensor, ...]] = []
    experts.register_forward_pre_hook(lambda _, args: given.append(args))
    with torch.no_grad():
        model(text().tokens)
    (hidden, *choice), count = given[0], 4
    gate_up, down = (next(name for name in moments if name.endswith(f"{x}_proj")) for x in ("gate_up", "down"))
    for e in range(count):
        if case == "gpt-oss":
            x = hidden[(choice[0] == e).any(-1)].double()
            both = x @ experts.gate_up_proj[e].double() + experts.gate_up_proj_bias[e].double()
            gate, up = both[:, ::2].clamp(max=7), both[:, 1::2].clamp(-7, 7)
            middle = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        else:
            x = hidden.unflatten(0, (count, -1))[e].double()
            x = x[x.norm(dim=-1) > 0]
            gate, up = (x @ experts.gate_up_proj[e].double()).chunk(2, -1)
            middle = torch.nn.functional.silu(gate) * up
        assert 0 < len(x) < text().tokens.numel()
        assert seen[gate_up].tokens[e] == seen[down].tokens[e] == len(x)
        for name, read in ((gate_up, x), (down, middle)):
            torch.testing.assert_close(moments[name][e].double(), 2 / len(x) * read.t() @ read, rtol=1e-4, atol=1e-5)


def test_an_expert_with_few_tokens_is_shown_all() -> None:
    model = tiny_model("mixtral")
    targets = list_targets(model)
    free = next(walk(model, targets, text()))
    stacks = [group for group in free.groups if group[0].is_stack]
    tokens = free.observe(lambda *_: None, stacks)["model.layers.0.mlp.experts.down_proj"].tokens
    few = [e for e in range(4) if tokens[e] < 56]
    assert 0 < len(few) < 4
    ruled = next(walk(model, targets, text(minimum_tokens=56)))
    moments, seen = second_moments(ruled, [g for g in ruled.groups if g[0].is_stack])
    routed, _ = second_moments(free, stacks)
    gate, down = (f"model.layers.0.mlp.experts.{name}_proj" for name in ("gate_up", "down"))
    assert seen[down].shown_all == few
    assert seen[down].tokens == tokens
    x = torch.cat([hidden for hidden, *_ in given_to_experts(free)])  # every token of the block
    weight = model.model.layers[0].mlp.experts.gate_up_proj.detach()
    for expert in range(4):
        if expert not in few:
            assert torch.equal(moments[gate][expert], routed[gate][expert])
            continue
        first, second = (x @ weight[expert].t()).chunk(2, -1)
        middle = torch.nn.functional.silu(first) * second
        assert len(x) == 112
        assert torch.allclose(moments[gate][expert], 2 / len(x) * x.t() @ x, atol=1e-6)
        assert torch.allclose(moments[down][expert], 2 / len(x) * middle.t() @ middle, atol=1e-6)


def test_few_tokens_are_said_where_experts_cannot_be_shown_others() -> None:
    model = small("JetMoeConfig", num_local_experts=4, kv_channels=16)
    targets = list_targets(model)
    assert [block.index for block in walk(model, targets, text())] == [0, 1]
    block = next(walk(model, targets, text(minimum_tokens=10_000)))
    with pytest.raises(ValueError, match=r"experts \[0, 1, 2, 3\] get fewer than calibration.minimum_tokens"):
        block.observe(lambda name, expert, x: None)


def test_blocks_that_are_given_hidden_states_by_name_are_refused() -> None:
    model = small("ReformerConfig", is_decoder=True, attn_layers=["local"] * 2, axial_pos_embds=False)
    with pytest.raises(ValueError, match=r"encoder\.layers\.0 is given its hidden states by name; methods that"):
        next(walk(model, [], text()))


def test_blocks_that_need_what_others_leave_are_refused_whatever_they_raise() -> None:
    heads = {"num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "index_topk": 8, "index_n_heads": 4}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    model = small("HYV4Config", pad_token_id=0, num_hidden_layers=4, **heads, **experts)
    said = r"model\.layers\.\d needs what earlier blocks leave behind \(ValueError: Shared DSA"
    with pytest.raises(ValueError, match=said):
        next(walk(model, [], text()))
    targets = list_targets(model)
    layers, notes = apply(make_method(Recipe("rtn", "rtn", "channel")), model, targets, torch.device("cpu"), text())
    assert len(layers) == len(targets) > 0  # no calibration text is needed for these
    assert not any("output_error" in layer for layer in layers)
    assert notes["output_errors"].startswith("not measured: HYV4ForCausalLM: model.layers.")


def test_half_precision_is_computed_in_a_type_that_does_not_overflow() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compute_dtype(torch.float16, cpu) == torch.float32
    assert compute_dtype(torch.float16, gpu) == torch.bfloat16
    assert compute_dtype(torch.bfloat16, gpu) == torch.bfloat16
    assert compute_dtype(torch.float32, gpu) == torch.float32
    model = tiny_model("opt", torch.float16)
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.weight *= 3e4
        model.model.decoder.layers[0].fc2.weight *= 3e4
    last = list(walk(model, list_targets(model), text()))[-1]
    assert last.inputs[0].abs().max() > 65504  # more than float16 holds
    assert torch.isfinite(last.inputs[0]).all()


def test_an_output_that_is_not_finite_names_the_block() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"model\.layers\.0: its output on calibration text is not finite"):
        list(walk(model, list_targets(model), text()))


@pytest.mark.parametrize("case", ["llama", "opt-projected", "mixtral"])
def test_output_errors_are_those_of_the_layers_outputs(case: str) -> None:
    """Against outputs computed one by one in the full-precision model, on the held-out windows."""
    model, data = tiny_model(case), text()
    targets = list_targets(model)
    method = make_method(Recipe("r2q-g32", "r2q", "g32"))
    layers = {t.name: method.quantize_weight(t.weight, t.name) for t in targets}  # type: ignore[attr-defined]
    found = output_errors(model, targets, layers, data)
    for block in walk(model, targets, data, data.held_out):
        outputs: dict[str, list[float]] = {}

        def visit(name: str, expert: int | None, x: torch.Tensor, sums: dict[str, list[float]] = outputs) -> None:
            target = next(t for t in targets if t.name == name)
            decoded = layers[name].dequantize()
            pair = (target.weight, decoded) if expert is None else (target.weight[expert], decoded[expert])
            right, wrong = (x.double() @ weight.double().t() for weight in pair)
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += float((wrong - right).square().sum())
            total[1] += float(right.square().sum())

        with torch.no_grad():
            block.observe(visit, [[target] for target in block.targets])
        for name, (error, power) in outputs.items():
            assert found[name] == pytest.approx(error / power, rel=1e-4)
    assert set(found) == {target.name for target in targets}


def test_every_method_gets_output_errors_when_there_is_text() -> None:
    found = {}
    for data in (None, text()):
        model = tiny_model("llama")
        method = make_method(Recipe("rtn-g32", "rtn", "g32"))
        layers, notes = apply(method, model, list_targets(model), torch.device("cpu"), data)
        found[data is None] = layers
        assert ("calibration" in notes) == (data is not None)
    assert all("output_error" not in layer for layer in found[True])
    assert all(0 < layer["output_error"] < 1 for layer in found[False])
    assert [layer["mse"] for layer in found[True]] == [layer["mse"] for layer in found[False]]
    with pytest.raises(ValueError, match="gptq needs calibration tokens"):
        apply(make_method(Recipe("x", "gptq", "g32")), tiny_model("llama"), [], torch.device("cpu"))


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("GraniteMoeConfig", {"num_local_experts": 8, "num_experts_per_tok": 2}),  # its forward has no use_cache
        ("Gemma4TextConfig", {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 272, "head_dim": 16}),
        ("Qwen3_5TextConfig", {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"] * 2}),
        ("HunYuanMoEV1Config", {"num_experts": 4, "moe_topk": 2, "head_dim": 16}),
        ("MistralConfig", {"sliding_window": 8}),
        ("Gemma3TextConfig", {"sliding_window": 8, "head_dim": 16}),
        (
            "Gemma4UnifiedTextConfig",
            SHARING | {"num_kv_shared_layers": 2},
        ),  # keys and values of another block, per text
        ("Llama4TextConfig", {"head_dim": 16, "num_local_experts": 4, "attention_chunk_size": 8}),
    ],
)
def test_the_walk_gives_what_the_model_gives(config: str, options: dict[str, Any], at_once: int) -> None:
    """Four windows, one or two at a time: no cache and nothing that depends on the text goes from batch to batch."""
    model = small(config, num_hidden_layers=4, **options)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 4 if weight.dim() > 1 else 1
    data = Calibration(text().tokens[:4], text().held_out, FACTS, minimum_tokens=0)
    *_, last = walk(model, list_targets(model), data, windows_at_once=at_once)
    wanted: list[torch.Tensor] = []
    model.set_experts_implementation("eager") if hasattr(model, "set_experts_implementation") else None
    decoder_blocks(model)[1][-1].register_forward_hook(lambda _, args, output: wanted.append(hidden_of(output)))
    with torch.no_grad():
        model(data.tokens, use_cache=False)
    found = torch.cat(last.inputs)
    assert float((found - wanted[0]).norm() / wanted[0].norm()) < 1e-5
