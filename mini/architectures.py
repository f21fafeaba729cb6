"""The four mini models: one of each family, and a small Llama for the equal-memory control."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig, PreTrainedModel, Qwen3Config

MAX_TOKENS = 256  # longest window, in training and in evaluation (OPT learns this many positions)
EOT_ID, PAD_ID = 0, 1

# What a decoder weight takes at 2 bits with one 16-bit scale and a 2-bit zero per 64 weights: 2 + 18 / 64 bits.
QUANTIZED_BITS_PER_WEIGHT = 2.28


def config(name: str, vocabulary: int) -> PretrainedConfig:
    """The configuration of a mini model. Sizes of the three main models are multiples of 128, so g128 divides."""
    shared = {
        "vocab_size": vocabulary,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": EOT_ID,
        "eos_token_id": EOT_ID,
        "pad_token_id": PAD_ID,
        "num_attention_heads": 4,
    }
    llama_like = {"num_key_value_heads": 2, "num_hidden_layers": 5, "hidden_size": 128, "intermediate_size": 384}
    if name == "mini-llama":
        return LlamaConfig(**shared, **llama_like, tie_word_embeddings=False)
    if name == "mini-qwen":
        return Qwen3Config(**shared, **llama_like, head_dim=32, tie_word_embeddings=True)
    if name == "mini-opt":
        return OPTConfig(
            **shared,
            num_hidden_layers=5,
            hidden_size=128,
            word_embed_proj_dim=128,
            ffn_dim=512,
            dropout=0.0,
            tie_word_embeddings=True,
        )
    if name == "mini-llama-fp-small":
        small = {"num_key_value_heads": 2, "num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 256}
        return LlamaConfig(**shared, **small, tie_word_embeddings=True)
    raise ValueError(f"unknown mini model {name!r}")


def new_model(name: str, vocabulary: int, seed: int) -> PreTrainedModel:
    """A freshly initialized fp32 model; the same bits for the same seed."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config(name, vocabulary), dtype=torch.float32, trust_remote_code=False)


def equal_memory_bytes(model: PreTrainedModel) -> int:
    """Size of the model with its decoder-block Linear weights at 2 bits and everything else in bf16."""
    total = sum(parameter.numel() for parameter in model.parameters())  # tied weights count once
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in f".{name}"
    )
    return int(linear * QUANTIZED_BITS_PER_WEIGHT / 8) + (total - linear) * 2
