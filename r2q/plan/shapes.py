"""How large a model is, from its config.json alone: no weights are read, and no torch.

Shapes of models that configs here name stand in `catalogue.json`, as fields of their config.json, so that a run can be
estimated without the hub.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from r2q.config import ConfigError, Model
from r2q.failures import one_line
from r2q.models.source import made_folder

CATALOGUE = Path(__file__).with_name("catalogue.json")
GATED = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")  # families with a gated MLP or experts of such


@dataclass(frozen=True)
class Shape:
    """What a model is made of."""

    layers: int  # decoder blocks
    width: int  # of the hidden states
    inner: int  # features inside of the MLP that a token goes through, of all its experts together
    vocabulary: int  # tokens
    total: int  # all parameters
    quantized: int  # weights of the blocks' linear layers, experts included; routers are none
    active: int  # those of them that a token is multiplied with
    attention: int  # query features, all heads together
    keys: int  # key features, of the heads that are kept for later tokens
    widest: int  # the most input features that a linear layer has
    moments: int  # numbers in the second moments of all inputs of a block's linear layers, of each expert's too
    bytes_each: int = 2  # bytes of a parameter in the checkpoint

    @property
    def block(self) -> int:
        """Weights of a block's linear layers."""
        return self.quantized // self.layers


def count(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes; raises ValueError for other families, or where a field is missing."""
    family = config.get("model_type")
    if family not in (*GATED, "opt"):
        raise ValueError(f"models of type {family} are not counted here, only {', '.join((*GATED, 'opt'))}")
    try:
        return Shape(
            layers=config["num_hidden_layers"],
            width=config["hidden_size"],
            vocabulary=config["vocab_size"],
            bytes_each=4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2,
            **(_opt(config) if family == "opt" else _gated(config)),
        )
    except KeyError as error:
        raise ValueError(f"config.json has no {error.args[0]}") from None


def _gated(config: Mapping[str, Any]) -> dict[str, int]:
    """The other fields of a `Shape`, of a family with a gated MLP."""
    family, width, layers = config["model_type"], config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    shared = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or (128 if family == "qwen3" else width // heads)  # as transformers does
    queries, keys = heads * head, shared * head
    biases = queries + 2 * keys if family == "qwen2" or config.get("attention_bias") else 0
    biases += width if config.get("attention_bias") else 0
    biases += 2 * config["intermediate_size"] + width if config.get("mlp_bias") else 0
    norms = 2 * width + (2 * head if family.startswith("qwen3") else 0)
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    chosen = config["num_experts_per_tok"] if experts > 1 else 1
    inner = config["moe_intermediate_size"] if family == "qwen3_moe" else config["intermediate_size"]
    attention, expert = 2 * width * (queries + keys), 3 * width * inner
    mixtures = _mixtures(config) if family == "qwen3_moe" else layers
    dense = (layers - mixtures) * 3 * width * config["intermediate_size"] if mixtures < layers else 0
    router = width * experts if experts > 1 else 0
    embeddings = config["vocab_size"] * width * (1 if config.get("tie_word_embeddings", False) else 2)
    quantized, active = (layers * attention + mixtures * number * expert + dense for number in (experts, chosen))
    total = quantized + mixtures * router + layers * (norms + biases) + width + embeddings
    moments = width**2 + queries**2 + experts * (width**2 + inner**2)
    return {"inner": chosen * inner, "total": total, "quantized": quantized, "active": active,
            "attention": queries, "keys": keys, "widest": max(width, queries, inner), "moments": moments}  # fmt: skip


def _mixtures(config: Mapping[str, Any]) -> int:
    """Blocks of a Qwen3-MoE whose MLP is a mixture of experts; of the others it is a dense one."""
    dense, step = config.get("mlp_only_layers") or [], config.get("decoder_sparse_step") or 1
    return sum(block not in dense and (block + 1) % step == 0 for block in range(config["num_hidden_layers"]))


def _opt(config: Mapping[str, Any]) -> dict[str, int]:
    width, inner, layers = config["hidden_size"], config["ffn_dim"], config["num_hidden_layers"]
    outer = config.get("word_embed_proj_dim") or width
    quantized = 4 * width * width + 2 * width * inner
    rest = 4 * width + inner + width + 4 * width  # biases, two norms
    around = config["vocab_size"] * outer + (config["max_position_embeddings"] + 2) * width
    around += 2 * width if config.get("do_layer_norm_before", True) else 0
    around += 2 * width * outer if outer != width else 0
    around += 0 if config.get("tie_word_embeddings", True) else config["vocab_size"] * outer
    total = layers * (quantized + rest) + around
    return {"inner": inner, "total": total, "quantized": layers * quantized, "active": layers * quantized,
            "attention": width, "keys": width, "widest": inner, "moments": 3 * width**2 + inner**2}  # fmt: skip


def shape_of(name: str, entry: Model, ask_hub: bool) -> Shape:
    """The shape of a model of a config.

    With `ask_hub` the hub may be asked for a config.json that is neither in the catalogue nor in its cache.

    Raises:
        ConfigError: one sentence: the size cannot be known, and why.
    """
    try:
        shape = count(_config(entry, ask_hub))
        return replace(shape, bytes_each=4) if entry.is_gguf and entry.dtype in ("auto", "float32") else shape
    except (ValueError, OSError) as error:  # errors of the hub are OSErrors
        what = f"models.{name}.path: the size of {entry.path}"
        raise ConfigError(f"{what} cannot be known here: {one_line(error)}") from None


def _config(entry: Model, ask_hub: bool) -> dict[str, Any]:
    """A model's config.json: of its folder, the catalogue, the hub's cache, or the hub."""
    folder = Path(entry.path) if entry.is_folder else made_folder(entry)
    if entry.kind != "hub" and (folder / "config.json").is_file():
        return json.loads((folder / "config.json").read_bytes())
    if entry.path in catalogue():
        return catalogue()[entry.path]
    if entry.kind != "hub":
        made = "; `python -m r2q source` makes its folder" if entry.is_gguf else ""
        raise FileNotFoundError(f"there is no {folder / 'config.json'}{made}")
    from huggingface_hub import hf_hub_download

    file = hf_hub_download(entry.path, "config.json", revision=entry.revision, local_files_only=not ask_hub)
    return json.loads(Path(file).read_bytes())


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Fields of config.json by a model's path."""
    return json.loads(CATALOGUE.read_bytes())["models"]
