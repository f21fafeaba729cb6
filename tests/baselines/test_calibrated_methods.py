"""What all methods that look at calibration text have in common, on every kind of model."""

import re
from dataclasses import replace

import pytest
import torch
import transformers

from baselines._calibrated import error_roots, matrices, sample_inputs
from r2q.models.apply import apply
from r2q.models.blocks import walk
from r2q.models.targets import list_targets
from r2q.quantization.method import Recipe, make_method
from tests.baselines.calibrated import SHORT, quantize, same, text
from tests.models.tiny import inputs_of, tiny_model, tokens

MODELS = ["llama", "opt", "qwen2", "mixtral", "gpt-oss", "llama4"]


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("name", SHORT)
def test_every_kind_of_model(name: str, case: str) -> None:
    """All layers are quantized, the model stays as it was, the same text gives the same bits and other text others."""
    model = tiny_model(case)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    first = quantize(name, model, **SHORT[name])
    assert [*first.layers] == [target.name for target in list_targets(model)]
    assert first.notes["layers"].keys() == first.layers.keys()
    assert same(first, quantize(name, model, **SHORT[name]))
    assert not same(first, quantize(name, model, seed=1, **SHORT[name]))
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    expected = model(tokens()).logits
    method = make_method(Recipe(name, name, "g32", options=SHORT[name]))
    apply(method, model, list_targets(model), torch.device("cpu"), text())
    with torch.no_grad():
        logits = model(tokens()).logits
    assert 0 < (logits - expected).square().mean() < 2 * expected.square().mean()


@pytest.mark.parametrize("name", ["gptq", *SHORT])
def test_experts_with_few_tokens_are_quantized_as_the_rest(name: str) -> None:
    model, data = tiny_model("mixtral"), replace(text(), minimum_tokens=10**6)
    method = make_method(Recipe(name, name, "g32", options=SHORT.get(name, {})))
    layers, _ = apply(method, model, list_targets(model), torch.device("cpu"), data)
    shown = {layer["name"]: layer["shown_all_tokens"] for layer in layers if "shown_all_tokens" in layer}
    assert shown == (
        {f"model.layers.{i}.mlp.experts.{kind}_proj": [0, 1, 2, 3] for i in (0, 1) for kind in ("gate_up", "down")}
        if name == "gptq"
        else {}
    )


@pytest.mark.parametrize("name", ["gptq", *SHORT])
def test_experts_that_the_model_never_multiplies(name: str) -> None:
    """LongCat-Flash's identities, which its stack has rows for: GPTQ has no error to feed back and rounds them."""
    options = {"expert_ffn_hidden_size": 32, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2}
    options |= {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "head_dim": 16}
    options |= {"num_layers": 2, "num_attention_heads": 4, "v_head_dim": 16, "hidden_size": 64, "ffn_hidden_size": 64}
    torch.manual_seed(0)
    config = transformers.LongcatFlashConfig(vocab_size=272, **options)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    result = quantize(name, model, **SHORT.get(name, {}))
    target = next(target for target in list_targets(model) if target.name.endswith("gate_up_proj"))
    found = result.layers[target.name].dequantize()
    assert len(found) == 6
    if name == "gptq":
        plain = make_method(Recipe("rtn", "rtn", "g32")).quantize_weight(target.weight).dequantize()
        assert [torch.equal(found[e], plain[e]) for e in range(6)] == [False] * 4 + [True] * 2
    method = make_method(Recipe(name, name, "g32", options=SHORT.get(name, {})))
    if name in ("gptq", "awq", "bitdistiller_clip"):
        with pytest.raises(ValueError, match=r"gate_up_proj: .*no (calibration )?token reaches"):
            method.quantize(model, list_targets(model), replace(text(), minimum_tokens=0))


@pytest.mark.parametrize("name", SHORT)
def test_the_output_head_too(name: str) -> None:
    result = quantize(name, tiny_model("llama"), lm_head=True, **SHORT[name])
    assert [*result.layers][-1] == "lm_head"


@pytest.mark.parametrize("name", SHORT)
def test_whole_tensors_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs groups: g<size> or channel, not tensor"):
        quantize(name, tiny_model("llama"), "tensor")


@pytest.mark.parametrize("name", ["awq", "bitdistiller_clip", "omniquant_lwc"])  # efficientqat_block bounds its scales
@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_weights_beyond_the_largest_scale_are_refused_with_the_layer(name: str, case: str) -> None:
    model = tiny_model(case)
    target = list_targets(model)[-1]
    target.weight.data.flatten()[0] = 1e7
    with pytest.raises(ValueError, match=rf"layer {re.escape(target.name)}: weights exceed 65504"):
        quantize(name, model, **SHORT[name])


@pytest.mark.parametrize("name", ["awq", "bitdistiller_clip"])
@pytest.mark.parametrize(
    ("config", "fused"),
    [("FalconConfig", "query_key_value"), ("Phi3Config", "qkv_proj"), ("MptConfig", "Wqkv"), ("LlamaConfig", "k_proj")],
)
def test_queries_and_keys_keep_their_range_also_in_one_layer_with_values(name: str, config: str, fused: str) -> None:
    """Without scales, such a layer is then round to nearest in a range that was not searched."""
    options = {"vocab_size": 272, "num_hidden_layers": 1, "pad_token_id": 0}
    options |= (
        {"d_model": 64, "n_heads": 4, "n_layers": 1}
        if config == "MptConfig"
        else {"hidden_size": 64, "num_attention_heads": 4}
    )
    options |= {"num_key_value_heads": 4} if config in ("Phi3Config", "LlamaConfig") else {}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**options)).eval()
    found = quantize(name, model, **({"exponents": 1} if name == "awq" else {}))
    plain = make_method(Recipe("rtn", "rtn", "g32"))
    for target in list_targets(model):
        whole = plain.quantize_weight(target.weight).dequantize()
        kept = torch.allclose(found.layers[target.name].dequantize(), whole, atol=1e-6)
        assert kept == target.name.endswith((fused, *(("q_proj",) if fused == "k_proj" else ()))), target.name


def test_sampled_inputs_are_strided() -> None:
    """Every k-th token of all that a layer reads, across batches of any size."""
    model, data = tiny_model("llama"), text(windows=5)  # 80 tokens
    ((read,),) = inputs_of(model.model.layers[1].mlp.down_proj, lambda: model(data.tokens))
    for batch in (1, 2, 5):
        for block in walk(model, list_targets(model), data, windows_at_once=batch):
            if block.index == 1:
                found = sample_inputs(block, block.groups, 9)["model.layers.1.mlp.down_proj", None]
                torch.testing.assert_close(found, read.flatten(0, -2)[:: 80 // 9], rtol=1e-4, atol=1e-6)
                assert len(sample_inputs(block, block.groups, 1000)["model.layers.1.mlp.down_proj", None]) == 80


@pytest.mark.parametrize("tokens_", [5, 16, 50])
def test_roots_measure_the_output_of_a_group(tokens_: int) -> None:
    generator = torch.Generator().manual_seed(tokens_)
    x, d = torch.randn(tokens_, 48, generator=generator), torch.randn(48, generator=generator)
    roots = error_roots(x, 16)
    assert roots.shape == (3, min(tokens_, 16), 16)
    for group in range(3):
        part = slice(16 * group, 16 * group + 16)
        expected = (x[:, part] @ d[part]).square().mean()
        torch.testing.assert_close((roots[group] @ d[part]).square().sum(), expected)


@pytest.mark.parametrize("case", ["mixtral", "gpt-oss", "llama4"])
@pytest.mark.parametrize("name", ["awq", "bitdistiller_clip", "gptq"])
def test_an_expert_that_nothing_reaches_is_refused(name: str, case: str) -> None:
    """Whether its weights are never taken, or multiplied by zeros with those of all."""
    model, data = tiny_model(case), text()
    lonely = type(data)(data.tokens[:1, :2], data.held_out, {}, minimum_tokens=0)
    method = make_method(Recipe("x", name, "g32"))
    with pytest.raises(ValueError, match=r"experts\.gate_up_proj: no calibration token reaches expert \d"):
        method.quantize(model, list_targets(model), lonely)


def test_matrices_of_a_stack() -> None:
    stack = torch.randn(3, 4, 5)
    assert [expert for expert, _ in matrices(stack)] == [0, 1, 2]
    assert matrices(stack[0])[0][0] is None
