"""Tiny random models of every supported class, as folders in Hugging Face layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from r2q.models.packed import replace
from r2q.models.targets import list_targets
from r2q.quantization.method import Recipe, WeightMethod, make_method

COMMON = {
    "vocab_size": 272,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
GQA = {"intermediate_size": 128, "num_key_value_heads": 2}
TURNED = {"head_dim": 16, "num_local_experts": 4}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GQA),
    "llama-tied": ("LlamaConfig", GQA | {"tie_word_embeddings": True}),
    "opt": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "opt-projected": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "qwen2": ("Qwen2Config", GQA),
    "qwen3-tied": ("Qwen3Config", GQA | {"head_dim": 16, "tie_word_embeddings": True}),
    "mixtral": ("MixtralConfig", GQA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2-moe": ("Qwen2MoeConfig", GQA | EXPERTS | {"shared_expert_intermediate_size": 64}),
    "qwen3-moe": ("Qwen3MoeConfig", GQA | EXPERTS | {"head_dim": 16}),
    "gpt-oss": ("GptOssConfig", GQA | TURNED | ROPE | {"num_experts_per_tok": 2}),
    "llama4": ("Llama4TextConfig", GQA | TURNED | {"interleave_moe_layer_step": 1}),
}
LINEARS = {  # weights to quantize in two blocks: attention 4; MLP 3 (OPT 2); expert stacks 2; shared expert 3
    "llama": 14,
    "llama-tied": 14,
    "opt": 12,
    "opt-projected": 12,
    "qwen2": 14,
    "qwen3-tied": 14,
    "mixtral": 12,
    "qwen2-moe": 18,
    "qwen3-moe": 12,
    "gpt-oss": 12,
    "llama4": 18,
}


def tiny_model(case: str, dtype: torch.dtype = torch.float32, seed: int = 0, **settings: Any) -> Any:
    """A random model; weights are large enough for logits to differ."""
    name, options = CASES[case]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**COMMON | options | settings)
    return transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()


def packed_model(case: str, method: str = "r2q", granularity: str = "g32") -> Any:
    """The same model with packed layers."""
    model = tiny_model(case)
    made = make_method(Recipe(method, method, granularity))
    assert isinstance(made, WeightMethod)
    for target in list_targets(model):
        replace(model, target, made.quantize_weight(target.weight))
    return model


def tiny_folder(case: str, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """The same model as a folder."""
    tiny_model(case, dtype, seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def inputs_of(module: torch.nn.Module, run: Callable[[], Any]) -> list[tuple[torch.Tensor, ...]]:
    """What a module is given in each of its calls while `run` runs."""
    given: list[tuple[torch.Tensor, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, args: given.append(tuple(x.detach().clone() for x in args)))
    run()
    handle.remove()
    return given


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a byte: a byte-level BPE without merges, after three special tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def tokens() -> torch.Tensor:
    """Token ids ``[2, 16]``."""
    return torch.randint(3, 96, (2, 16), generator=torch.Generator().manual_seed(0))
