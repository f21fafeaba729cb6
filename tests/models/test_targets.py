"""Which weights are quantized, in every supported class."""

import contextlib
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from r2q.models.rehearsal import has_plain_logits
from r2q.models.targets import decoder_blocks, list_targets
from r2q.training.losses import SplitModel
from tests.models.tiny import CASES, LINEARS, tiny_model


@pytest.mark.parametrize("case", CASES)
def test_every_linear_of_the_blocks_and_nothing_else(case: str) -> None:
    model = tiny_model(case)
    targets = list_targets(model)
    assert len(targets) == LINEARS[case]
    assert {t.block for t in targets} == {0, 1}
    quantized = {t.weight.data_ptr() for t in targets}
    kept = {p.data_ptr() for p in model.parameters()} - quantized
    assert model.get_input_embeddings().weight.data_ptr() in kept
    assert model.get_output_embeddings().weight.data_ptr() in kept
    prefix, blocks = decoder_blocks(model)
    for name, weight in blocks.named_parameters():
        router = name.split(".")[-2] in ("gate", "router", "shared_expert_gate")
        if weight.dim() > 1 and not router and not name.endswith("_bias"):
            assert weight.data_ptr() in quantized, f"{prefix}.{name}"


def test_experts_are_one_stack() -> None:
    stacks = [t for t in list_targets(tiny_model("mixtral")) if t.is_stack]
    assert [tuple(t.weight.shape) for t in stacks[:2]] == [(4, 256, 64), (4, 64, 128)]


def test_an_untied_head_on_request() -> None:
    assert list_targets(tiny_model("llama"), lm_head=True)[-1].name == "lm_head"


def test_a_tied_head_is_refused() -> None:
    with pytest.raises(ValueError, match="untied output head"):
        list_targets(tiny_model("opt"), lm_head=True)


def test_a_model_without_decoder_blocks_is_refused() -> None:
    class Config:
        num_hidden_layers = 3
        quantization_config = None

        def get_text_config(self, decoder: bool) -> "Config":
            return self

    model = nn.Sequential(nn.Linear(2, 2))
    model.config = Config()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="expected one list of 3 decoder blocks, found 0"):
        list_targets(model)


def test_a_model_that_does_not_count_its_blocks_is_refused_in_one_sentence() -> None:
    """Such as BLT, whose configuration has several decoders; transformers' own error would be a traceback."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.BltConfig())
    with pytest.raises(ValueError, match=r"BltForCausalLM: config\.json has no num_hidden_layers"):
        list_targets(model)


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (transformers.BartConfig(encoder_layers=2, decoder_layers=3, is_decoder=True), "model.decoder.layers"),
        (transformers.WhisperConfig(encoder_layers=2, decoder_layers=3), "model.decoder.layers"),
        (
            transformers.Gemma3Config(
                text_config={"num_hidden_layers": 3, "layer_types": None}, vision_config={"num_hidden_layers": 3}
            ),
            "model.language_model.layers",
        ),
        (transformers.LongcatFlashConfig(num_layers=3, n_routed_experts=2), "model.layers"),  # two attentions a block
        (transformers.ModernBertDecoderConfig(num_hidden_layers=3, layer_types=None), "model.layers"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_blocks_are_found_where_their_count_is_anothers_too(config: Any, where: str) -> None:
    """That of an encoder, of pictures, or of attentions; ModernBERT's own word for its decoder is its output layer."""
    with torch.device("meta"):
        name, blocks = decoder_blocks(transformers.AutoModelForCausalLM.from_config(config))
    assert (name, len(blocks)) == (where, 3)


SMALL = {
    "vocab_size": 272,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
}


def small(config: str, **options: object) -> Any:
    """A model of a class that nobody tried."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**SMALL | options)).eval()


ATTENTION = {f"self_attn.{x}_proj" for x in "qkvo"}
MLP = {f"mlp.{x}_proj" for x in ("gate", "up", "down")}
STACKS = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
SHARED = {f"mlp.shared_expert.{x}_proj" for x in ("gate", "up", "down")}
DELTA = {f"linear_attn.{x}" for x in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


@pytest.mark.parametrize(
    ("config", "options", "wanted"),
    [
        (
            "HunYuanMoEV1Config",
            {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
            ATTENTION | STACKS | {f"mlp.shared_mlp.{x}_proj" for x in ("gate", "up", "down")},
        ),
        (
            "Qwen3_5TextConfig",
            {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
            ATTENTION | MLP | DELTA,
        ),
        ("Qwen2MoeConfig", MOE | {"shared_expert_intermediate_size": 64}, ATTENTION | STACKS | SHARED),
        (
            "GraniteMoeConfig",
            {"num_local_experts": 8, "num_experts_per_tok": 2},
            ATTENTION | {f"block_sparse_moe.experts.{x}" for x in ("gate_up_proj", "down_proj")},
        ),
        ("MambaConfig", {"num_heads": 4}, {f"mixer.{x}_proj" for x in ("in", "x", "out")}),  # dt_proj is a raw matrix
        (
            "Phi3Config",
            {"pad_token_id": 0},
            {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"},
        ),
    ],
)
def test_linear_maps_whatever_they_are_called(config: str, options: dict[str, Any], wanted: set[str]) -> None:
    model = small(config, **options)
    prefix, _ = decoder_blocks(model)
    found = [target.name for target in list_targets(model)]
    assert {name.removeprefix(prefix).split(".", 2)[2] for name in found} == wanted
    with torch.device("meta"):
        hollow = transformers.AutoModelForCausalLM.from_config(model.config)
    assert [target.name for target in list_targets(hollow)] == found


@pytest.mark.parametrize("config", ["GPT2Config", "DbrxConfig"])
def test_matrices_used_otherwise_are_refused(config: str) -> None:
    options: dict[str, Any] = {"d_model": 64, "n_heads": 4, "n_layers": 2}
    options |= {"ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4}}
    options |= {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0, "kv_n_heads": 2}}
    with pytest.raises(ValueError, match=r"cannot be quantized \(\S+ \[.*\] goes into \w+\); allowed are nn.Linear"):
        list_targets(small(config, **options if config == "DbrxConfig" else {}))


@pytest.mark.parametrize("case", ["gpt-oss", "llama4"])
def test_stacks_the_other_way_round_are_turned(case: str) -> None:
    """Square ones too, of which no shape says which way they are."""
    model = tiny_model(case, intermediate_size=64)
    stacks = [target for target in list_targets(model) if target.is_stack]
    assert [tuple(target.weight.shape) for target in stacks] == [(4, 128, 64), (4, 64, 64)] * 2
    assert all(torch.equal(target.weight, target.held.transpose(1, 2)) for target in stacks)


def test_mixers_of_a_few_streams_stay_as_they_are() -> None:
    """AltUp's coefficients read four numbers, which no group is as small as."""
    options = {"head_dim": 16, "hidden_size_per_layer_input": 32, "laurel_rank": 32, "num_kv_shared_layers": 0}
    options |= {"vocab_size_per_layer_input": 272, "activation_sparsity_pattern": [0.0, 0.0]}
    options |= {"layer_types": ["sliding_attention", "full_attention"]}
    names = {target.name for target in list_targets(small("Gemma3nTextConfig", **options))}
    assert {f"model.layers.{i}.altup.modality_router" for i in (0, 1)} <= names
    assert not any(name.endswith("_coefs") for name in names)


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        ("LlamaConfig", True), ("OPTConfig", True), ("Gemma3TextConfig", True), ("Llama4TextConfig", True),
        ("Gemma2Config", False), ("Cohere2Config", False), ("GraniteConfig", False), ("MiniCPM3Config", False),
    ],
)  # fmt: skip
def test_scaled_and_capped_logits_are_known_before_any_weight_is_read(config: str, plain: bool) -> None:
    """Training, which multiplies by the head itself, refuses the same models."""
    options: dict[str, Any] = {"head_dim": 16} if config.startswith("Gemma") else {"pad_token_id": 0}
    options |= {"word_embed_proj_dim": 32} if config == "OPTConfig" else {}
    options |= {"logits_scaling": 8.0} if config == "GraniteConfig" else {}
    options |= {"num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32} if config == "MiniCPM3Config" else {}
    model = small(config, **options)
    with torch.device("meta"):
        hollow = transformers.AutoModelForCausalLM.from_config(model.config)
    assert has_plain_logits(hollow) == has_plain_logits(model) == plain
    with contextlib.nullcontext() if plain else pytest.raises(ValueError, match="its logits are not"):
        SplitModel(model)


def test_names_lead_to_the_weights() -> None:
    model = tiny_model("qwen2")
    parameters = dict(model.named_parameters())
    for target in list_targets(model):
        assert torch.equal(parameters[f"{target.name}.weight"], target.weight)


class Expert(nn.Module):
    """Of a kind that was there before stacks were."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


class Experts(nn.Module):
    """Modules of their own, whose best two a router of one or two matrices chooses; what they read may be narrower."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind, inner = kind, width // 2 if kind == "narrow" else width
        experts = [Expert(inner) for _ in range(4)]
        self.experts = nn.ModuleDict({f"e{i}": e for i, e in enumerate(experts)}) if kind == "dict" else None
        self.experts = nn.ModuleList(experts) if self.experts is None else self.experts
        self.choose = nn.Linear(width, 4, bias=False)
        if kind == "two":
            self.choose = nn.Sequential(nn.Linear(width, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False))
        if kind == "narrow":
            self.enter, self.leave = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.flatten(0, -2)
        weights, chosen = self.choose(x).softmax(-1).topk(2, -1)
        x = self.enter(x) if self.kind == "narrow" else x
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts.values() if self.kind == "dict" else self.experts):
            token, place = torch.where(chosen == number)
            weight = weights[token, place, None]
            out[token] += expert(x[token] * weight) if self.kind == "before" else expert(x[token]) * weight
        return (self.leave(out) if self.kind == "narrow" else out).reshape(hidden.shape)


@pytest.mark.parametrize("kind", ["list", "dict", "two", "narrow", "before"])
def test_whatever_only_chooses_experts_stays_as_it_is(kind: str) -> None:
    model = small("LlamaConfig")
    torch.manual_seed(0)
    for block in model.model.layers:
        block.mlp = Experts(64, kind)
    found = {target.name.split(".", 3)[3] for target in list_targets(model)}
    names = [f"e{i}" for i in range(4)] if kind == "dict" else range(4)
    experts = {f"mlp.experts.{name}.{part}" for name in names for part in ("up", "down")}
    assert found == ATTENTION | experts | ({"mlp.enter", "mlp.leave"} if kind == "narrow" else set())


class Stack(nn.Module):
    """Square experts that every token goes through, one way round, the other, or both."""

    def __init__(self, ways: str) -> None:
        super().__init__()
        self.ways, self.stack = ways, nn.Parameter(torch.randn(4, 64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for e in range(4):
            for way in self.ways:
                x = nn.functional.linear(x, self.stack[e]) if way == "o" else torch.matmul(x, self.stack[e])
        return x


@pytest.mark.parametrize("ways", ["o", "i", "oi", "io"])
def test_a_stack_that_is_multiplied_both_ways_round_is_refused(ways: str) -> None:
    """No groups would run along the inputs of both products."""
    model = small("LlamaConfig")
    for block in model.model.layers:
        block.mlp = Stack(ways)
    with (
        contextlib.nullcontext()
        if len(ways) == 1
        else pytest.raises(ValueError, match=r"mlp\.stack \[4, 64, 64\] goes")
    ):
        found = {target.name: target.transposed for target in list_targets(model) if target.is_stack}
        assert found == {f"model.layers.{i}.mlp.stack": ways == "i" for i in (0, 1)}
