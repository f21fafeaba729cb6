"""A GGUF file as an ordinary Hugging Face folder: weights dequantized by transformers, tokenizer from the file."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from r2q.failures import one_line

MAGIC = b"GGUF"
ONE_FILE = "100TB"  # weights are written as one model.safetensors
OF_TENSORS = {  # settings of a header that are seen in its tensors, or move no number
    "attention.head_count_kv", "attention.key_length", "attention.key_length_swa", "attention.value_length",
    "attention.value_length_swa", "block_count", "context_length", "embedding_length",
    "embedding_length_per_layer_input", "expert_count", "expert_feed_forward_length", "expert_shared_count",
    "expert_shared_feed_forward_length", "feed_forward_length", "leading_dense_block_count", "shortconv.l_cache",
    "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank", "tensor_data_layout",
    "use_parallel_residual", "vocab_size",
}  # fmt: skip
EPSILON = "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"
NAMES = {  # what configurations call the others
    "attention.head_count": ("num_attention_heads",),
    "attention.layer_norm_epsilon": EPSILON,
    "attention.layer_norm_rms_epsilon": EPSILON,
    "attention.scale": ("attention_multiplier",),
    "attention.shared_kv_layers": ("num_kv_shared_layers",),
    "attention.sliding_window": ("sliding_window",),
    "embedding_scale": ("embedding_multiplier",),
    "expert_gating_func": ("scoring_func",),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "residual_scale": ("residual_multiplier",),
}
GATES = {"softmax": 1, "sigmoid": 2}  # of experts, as llama.cpp counts them


def dequantize(file: Path, folder: Path, dtype: str = "auto") -> dict[str, Any]:
    """Write the model of a GGUF file to `folder`, in which nothing is quantized any more.

    Args:
        file: the .gguf file.
        folder: where config.json, model.safetensors and the tokenizer go.
        dtype: number type of the weights; auto = float32, or the file's where it holds plain 16-bit numbers.

    Returns:
        source_format, tensor_types and architecture, see `r2q.models.source.make_folder`.

    Raises:
        ValueError: it is not a GGUF file, is damaged or in parts, or holds what transformers cannot read.
    """
    if find_spec("gguf") is None:
        raise ValueError("reading it needs the library gguf, which is not installed here: pip install gguf")
    types, vocabulary, settings = read_header(file)

    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    transformers.utils.logging.disable_progress_bar()
    given = {} if dtype == "auto" else {"dtype": dtype}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model, info = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            **given,
        )
    except Exception as error:  # a file's content reaches parsers that raise what they like
        version = transformers.__version__
        raise ValueError(f"transformers {version} cannot read this GGUF file: {one_line(error)}") from None
    wrong = [f"{kind.replace('_', ' ')} {', '.join(sorted(map(str, info[kind]))[:3])}" for kind in info if info[kind]]
    if wrong:
        raise ValueError(f"its tensors are not those of {type(model).__name__}: {'; '.join(wrong)}")
    there, taken = (sum(sizes) for sizes in ((t[3] for t in types), _numbers(model)))
    if there != taken:  # transformers passes over what it does not know, such as biases
        raise ValueError(f"it holds {there} numbers, but {type(model).__name__} takes {taken}: another model than that")
    check_settings(settings, model.config)
    model.config.__dict__.pop("quantization_config", None)  # nothing is quantized any more
    model.config.__dict__.pop("_name_or_path", None)
    model.hf_quantizer = None
    model.save_pretrained(folder, max_shard_size=ONE_FILE)
    tokenizer.save_pretrained(folder)
    _drop_added_tokens(folder / "tokenizer.json", vocabulary)
    return {
        "source_format": source_format(types),
        "tensor_types": _parameters(types),
        "architecture": type(model).__name__,
    }


def read_header(file: Path) -> tuple[list[tuple[str, str, int, int]], int, dict[str, Any]]:
    """(name, type, dimensions, parameters) of every tensor of a GGUF file, the number of its tokens, and its settings.

    The settings are those of the model, called without its architecture: `rope.freq_base`.

    Raises:
        ValueError: it is not a GGUF file, is cut off, is one part of several, or scales its positions.
    """
    from gguf import GGUFReader

    with file.open("rb") as stream:
        start = stream.read(len(MAGIC))
    if start != MAGIC:
        raise ValueError(f"is not a GGUF file: it starts with {start!r}")
    try:
        reader = GGUFReader(file)
        parts = reader.get_field("split.count")
        count = 1 if parts is None else int(parts.contents())
        tokens = reader.get_field("tokenizer.ggml.tokens")
        tensors = [(t.name, t.tensor_type.name, len(t.shape), int(t.n_elements)) for t in reader.tensors]
        scaled = [name for name, field in reader.fields.items() if _scales(name, field.contents)]
        architecture = reader.get_field("general.architecture")
        prefix = "" if architecture is None else f"{architecture.contents()}."
        own = {name: field for name, field in reader.fields.items() if prefix and name.startswith(prefix)}
        settings = {name.removeprefix(prefix): field.contents() for name, field in own.items()}
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise ValueError(f"is a damaged or truncated GGUF file ({one_line(error)})") from None
    if count > 1:
        raise ValueError(f"is one of {count} parts of a GGUF file; join them first (llama-gguf-split --merge)")
    scaled += [name for name, *_ in tensors if name.startswith("rope_")]  # rope_freqs.weight, of Llama 3.1 and later
    if scaled:
        raise ValueError(
            f"is a GGUF file whose position encoding is scaled ({', '.join(scaled)}), which transformers leaves out; "
            "take the model's own folder in place of it"
        )
    if tokens is None:
        raise ValueError("is a GGUF file without a tokenizer")
    return tensors, len(tokens.data), settings


def check_settings(settings: dict[str, Any], config: Any) -> None:
    """Refuse a model that computes otherwise than its GGUF file says, because transformers passes over settings.

    Args:
        settings: of the header, see `read_header`; what is 0 or false there is not asked for.
        config: what transformers made of them.

    Raises:
        ValueError: a setting has another value in `config`, or no place there.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    ropes = [rope for rope in ropes.values() if isinstance(rope, dict)] or [ropes]  # one for each type of layer, or one
    for name, value in settings.items():
        if not value or name.startswith("rope.scaling.") or (name == "attention.causal" and value is True):
            continue
        if name.startswith("rope.freq_base"):
            there = [rope.get("rope_theta") for rope in ropes]
        elif name.startswith("rope.dimension_count"):
            there = [width for rope in ropes for width in _rotated(config, rope)]
        elif name == "attention.sliding_window_pattern":
            there = [[kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]]
        elif name == "attention.key_length" and hasattr(config, "query_pre_attn_scalar"):
            there = [config.query_pre_attn_scalar]  # Gemma's scores are scaled by it; only those of 27B by another
        elif name in OF_TENSORS:
            continue
        else:
            there = [getattr(config, attribute, None) for attribute in NAMES.get(name, (name,))]
            there = [GATES.get(known, known) if isinstance(known, str) else known for known in there]
        there = [known for known in there if known is not None]
        if not any(known == value or _near(known, value) for known in there):
            says = f"where transformers has {there[0]}" if there else "which transformers leaves out"
            raise ValueError(
                f"is a GGUF file with {name} = {value}, {says} ({type(config).__name__}); take the model's own folder "
                "in place of it"
            )


def _rotated(config: Any, rope: dict[str, Any]) -> list[int]:
    """Features of a head that are rotated by position, by the widths that heads of a model may have."""
    layers = getattr(config, "per_layer_config", None) or [config]
    heads = {getattr(part, "head_dim", None) or part.hidden_size // part.num_attention_heads for part in layers}
    share = 1 if rope.get("rope_type") == "proportional" else rope.get("partial_rotary_factor", 1)  # Gemma 4's is all
    return [round(head * share) for head in heads]


def _near(one: Any, other: Any) -> bool:
    """Whether two numbers are the same but for the rounding of one to float32."""
    return all(isinstance(x, int | float) for x in (one, other)) and math.isclose(one, other, rel_tol=1e-6)


def _numbers(model: Any) -> Iterable[int]:
    """Numbers in each of a model's tensors, tied ones once."""
    return {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values()


def _scales(name: str, value: Callable[[], Any]) -> bool:
    """Whether a key of a header says that positions are scaled: linearly, by YaRN, ..."""
    kind = name.endswith(".rope.scaling.type") and value() != "none"
    return kind or (name.endswith((".rope.scaling.factor", ".rope.scale_linear")) and value() != 1)


def source_format(types: list[tuple[str, str, int, int]]) -> str:
    """`gguf ` and the types of the blocks' matrices, those with most parameters first."""
    return f"gguf {', '.join(_parameters([t for t in types if t[2] > 1 and t[0].startswith('blk.')]))}"


def _parameters(types: list[tuple[str, str, int, int]]) -> dict[str, int]:
    """Parameters of each type, the most first."""
    totals: Counter[str] = Counter()
    for _, kind, _, parameters in types:
        totals[kind] += parameters
    return dict(totals.most_common())


def _drop_added_tokens(file: Path, vocabulary: int) -> None:
    """Take out of a tokenizer what transformers put in (its unknown token) where the GGUF file has none."""
    content = json.loads(file.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < vocabulary]
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2))
