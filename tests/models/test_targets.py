"""Which weights are quantized, in every supported class."""

import pytest
import torch
from torch import nn

from r2q.models.targets import decoder_blocks, list_targets
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
        router = name.split(".")[-2] in ("gate", "shared_expert_gate")
        if weight.dim() > 1 and not router:
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


def test_transposed_experts_are_refused() -> None:
    model = tiny_model("mixtral")
    model.model.layers[1].mlp.experts.is_transposed = True
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.experts\.\w+: experts stored as \[experts, in, out\]"):
        list_targets(model)


def test_names_lead_to_the_weights() -> None:
    model = tiny_model("qwen2")
    parameters = dict(model.named_parameters())
    for target in list_targets(model):
        assert torch.equal(parameters[f"{target.name}.weight"], target.weight)
