"""What is wrong with a model's folder, found before any work: from file names, headers, config and tokenizer.

Weights are held against the model as transformers itself would load them, on the meta device: names, shapes and
conversions are checked in milliseconds and no weight is read. Code that a checkpoint brings along is never run.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from r2q.config import some
from r2q.failures import one_line
from r2q.models.source import SMALL, VOCABULARY, WEIGHTS
from r2q.models.targets import decoder_blocks

POINTER = b"version https://git-lfs"
MASK = re.compile(r"attn(\.attention)?\.(bias|masked_bias|causal_mask)$")
INDICES = ("I64", "BOOL")  # that a model may look up its experts by, or mask with
PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
AFTER_PADDING = (  # families whose first token has the position that follows the padding token's id
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
EAGER = "eager"  # the implementation of attention that every model has everywhere
CHECKED = 16  # tokens that a model is tried on
TOLERANCE = 1e-3  # of the logits' spread: far above rounding, far below what another token moves


def read_config(path: str | Path) -> Any:
    """The configuration of a model in a folder, without what it asks of the machine.

    A checkpoint's wish for an implementation of attention or experts (flash_attention_2, a kernel of the hub) is left
    out: it moves no result but the last digits, and may not be there. transformers then takes its default. So is its
    wish for attention weights beside the logits, with which most implementations cannot be written.

    Raises:
        ValueError: there is no config.json, it is damaged, or the model needs code of its own.
    """
    try:
        if not Path(path, "config.json").is_file():
            raise ValueError("it is not there")
        content, _ = PretrainedConfig.get_config_dict(path)
        if "auto_map" in content and content.get("model_type") not in CONFIG_MAPPING:
            raise ValueError(
                f"its model_type {content.get('model_type')} needs code that the checkpoint brings along (auto_map in "
                "config.json), which is never run; only the models of transformers itself are accepted"
            )
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # a file's content reaches parsers that raise what they like
        raise ValueError(f"config.json of {path} cannot be used: {one_line(error)}") from None
    for part in filter(None, [config, *(getattr(config, name, None) for name in config.sub_configs)]):
        for wish in ("_attn_implementation", "_experts_implementation"):
            if getattr(part, wish, None) not in (None, EAGER):
                setattr(part, wish, None)
        part.output_attentions = False
    return config


def max_positions(config: Any) -> int | None:
    """Longest input of a model in tokens, from its config; None when the config does not say."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = "max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len", "max_target_positions"
    for name in names:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:  # XLNet's -1 means any number
            return value - text.pad_token_id - 1 if text.model_type in AFTER_PADDING else value
    return None


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights from, and no others that may lie beside them.

    Raises:
        ValueError: there are none, they are an adapter's, or a part is missing.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError("is an adapter (adapter_config.json), not a whole model; merge it into its base model first")
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        others = ", ".join(sorted(file.name for file in folder.glob("*.safetensors"))[:3])
        beside = f"; {others} is not what transformers reads" if others else ""
        raise ValueError(f"has no {WEIGHTS} and no {index.name} (other weight formats are not read){beside}")
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError):
        names = []
    if not names:
        raise ValueError(f"{index.name} is damaged: it has no JSON object weight_map with names of files")
    if missing:
        raise ValueError(f"lacks {some(missing)}, which {index.name} names")
    return [folder / name for name in names]


def small_files(folder: Path) -> list[Path]:
    """What a model and its tokenizer are read from besides weights."""
    return sorted({file for pattern in SMALL for file in folder.glob(pattern) if file.is_file()})


def read_files(folder: Path) -> list[Path]:
    """Config, weights and tokenizer: all that a model's numbers follow from; raises ValueError without weights."""
    return [*small_files(folder), *weight_files(folder)]


def check_files(folder: Path, config: Any) -> None:
    """Raises ValueError where a file is a git-lfs pointer, or a weight file is damaged or holds other than floats, or
    what a generation ends with is damaged, which transformers would pass over."""
    passed_over = _passed_over(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None))
    for file in read_files(folder):
        with file.open("rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                raise ValueError(f"{file.name} is a git-lfs pointer, not the file itself; run git lfs pull there")
    try:
        if (generation := folder / "generation_config.json").is_file():
            json.loads(generation.read_bytes())
    except ValueError as error:
        raise ValueError(f"generation_config.json is damaged ({error})") from None
    for file, name, kind, shape in stored_tensors(folder):
        if len(shape) > 1 and kind not in (*PLAIN, *INDICES) and not passed_over(name, shape):
            raise ValueError(
                f"{file.name} stores {name} as {kind}: only models with plain numbers ({', '.join(PLAIN)}) are full "
                "precision"
            )


def _passed_over(model: Any) -> Callable[[str, list[int]], bool]:
    """What transformers leaves in a checkpoint of a model (or class), by name and shape: masks and positions."""
    left = re.compile("|".join([*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), r"inv_freq$"]))
    return lambda name, shape: bool(left.search(name)) or _is_mask(name, shape)


def _is_mask(name: str, shape: list[int]) -> bool:
    """Whether a tensor is a causal mask, or what stands where it forbids, as older checkpoints hold them (GPT-J's)."""
    return bool(MASK.search(name)) and (shape[:2] == [1, 1] or not shape)


def unknown_keys(folder: Path, info: dict[str, Any]) -> list[str]:
    """Tensors of a checkpoint, by what transformers says of its keys, that the model has no place for, masks aside."""
    if not (unexpected := info.get("unexpected_keys")):
        return []
    masks = {name for _, name, _, shape in stored_tensors(folder) if _is_mask(name, shape)}
    return sorted(set(unexpected) - masks)


def stored_tensors(folder: Path) -> Iterator[tuple[Path, str, str, list[int]]]:
    """File, name, type and shape of every tensor, from the headers alone; raises ValueError where one is damaged."""
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt") as content:
                for name in content.keys():  # noqa: SIM118, it is no dict
                    part = content.get_slice(name)
                    yield file, name, part.get_dtype(), part.get_shape()
        except SafetensorError as error:
            raise ValueError(f"{file.name} is damaged or truncated ({error})") from None


def rounded(folder: Path, model: Any) -> list[str]:
    """Types of a checkpoint's tensors that reading it as ``model`` rounds, as config.json or its first tensor says."""
    passed_over = _passed_over(model)
    stored = {kind for _, name, kind, shape in stored_tensors(folder) if not passed_over(name, shape)}
    lost = {PLAIN[kind] for kind in stored & PLAIN.keys()} - {parameter.dtype for parameter in model.parameters()}
    names = {str(kind).removeprefix("torch.") for kind in lost if torch.promote_types(kind, model.dtype) != model.dtype}
    return sorted(names)


def meta_model(folder: Path, config: Any) -> Any:
    """The model on the meta device, after a loading that reads headers alone.

    Raises:
        ValueError: transformers has no such causal model, or the weights are not the model's: missing, unknown, or of
            another shape.
    """
    kind = f"no causal language model {type(config).__name__.removesuffix('Config')} can be built of it"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        text = config.get_text_config()
        part = f"; its text part, {text.model_type}, is one" if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING else ""
        raise ValueError(f"{kind}: transformers has none of the model_type {config.model_type}{part}")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below
            trust_remote_code=False,
        )
    except Exception as error:
        raise ValueError(f"{kind}: {one_line(error)}") from None
    name = type(model).__name__
    if info.get("mismatched_keys"):
        told = [
            f"{key} {list(stored)} instead of {list(needed)}" for key, stored, needed in sorted(info["mismatched_keys"])
        ]
        raise ValueError(f"has weights of another shape than config.json gives {name}: {some(told)}")
    if info.get("missing_keys"):
        raise ValueError(f"lacks weights that {name} needs: {some(sorted(info['missing_keys']))}")
    if unknown := unknown_keys(folder, info):
        inner = type(model.config) is not type(config)  # as Llama 4's language model is
        advice = f"; to leave them out, save the {name} that AutoModelForCausalLM reads" if inner else ""
        raise ValueError(f"has weights that {name} does not know: {some(unknown)}{advice}")
    if _ties_as_stored(folder, model.all_tied_weights_keys):
        model.tie_weights()  # transformers leaves alone what it cannot compare on the meta device
    else:
        say_untied(model.config)
    return model


def _ties_as_stored(folder: Path, tied: dict[str, str]) -> bool:
    """Whether weights that are tied are stored once, or with the same numbers; else transformers does not tie them."""
    files: dict[str, Path] = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as content:
            files |= dict.fromkeys(content.keys(), file)

    def numbers(name: str) -> torch.Tensor:
        with safe_open(files[name], "pt") as content:
            return content.get_tensor(name)

    return all(torch.equal(numbers(a), numbers(b)) for a, b in tied.items() if a in files and b in files)


def say_untied(config: Any) -> None:
    """Let a configuration say that the head is not the embedding."""
    for part in (config, config.get_text_config(decoder=True)):
        part.tie_word_embeddings = False


def read_tokenizer(path: str | Path) -> Any:
    """The tokenizer in a folder; raises ValueError where there is none, or none that can be read here."""
    files = sorted(file.name for pattern in VOCABULARY for file in Path(path).glob(pattern))
    if not files:
        raise ValueError(f"{path} has no tokenizer (tokenizer.json)")
    older = ", of which there is only the older form; save it as tokenizer.json where sentencepiece is installed"
    hint = older if all(name.endswith(".model") for name in files) else ""
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        names = f"{', '.join(files)}{hint}"
        raise ValueError(f"the tokenizer of {path} cannot be read from {names} ({one_line(error)})") from None


def check_tokenizer(tokenizer: Any, model: Any) -> None:
    """Raises ValueError where the tokenizer has ids that the model's embedding does not, or makes nothing of text."""
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= rows)
    if beyond:
        index, token = beyond[0]
        more = f" and {len(beyond) - 1} more tokens beyond" if len(beyond) > 1 else ""
        raise ValueError(
            f"the tokenizer has {token!r} with id {index}{more}, the model's embedding has the ids 0 to {rows - 1}"
        )
    if not tokenizer("a b", add_special_tokens=False)["input_ids"]:
        raise ValueError("the tokenizer makes no token of text: it is not a language model's")


def may_look_ahead(model: Any) -> bool:
    """Whether the model's own words do not say that every attention is causal, so that it has to be tried."""
    config = model.config.get_text_config(decoder=True)
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return True
    said = [module.is_causal for module in decoder_blocks(model)[1].modules() if hasattr(module, "is_causal")]
    return not said or not all(said)


@torch.no_grad()
def check_causal(model: Any) -> None:
    """Refuse a model in which a token moves what is predicted before it: it gives text no likelihood."""
    ids = torch.randint(
        model.get_input_embeddings().weight.shape[0], (2, CHECKED), generator=torch.Generator().manual_seed(0)
    )
    half = CHECKED // 2
    ids[1, :half] = ids[0, :half]
    logits = model(input_ids=ids, use_cache=False).logits[:, :half].float()  # [2, half, vocabulary]
    moved = (logits[0] - logits[1]).abs().max()
    if moved > TOLERANCE * logits.std():
        raise ValueError(
            f"{type(model).__name__} looks ahead: what it predicts changes with later tokens, so it gives text no "
            "likelihood; only causal models (for families that are both, is_decoder: true in config.json) are accepted"
        )
