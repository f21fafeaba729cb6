"""A GGUF file as an ordinary Hugging Face folder: weights dequantized by transformers, tokenizer from the file."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from r2q.failures import one_line

MAGIC = b"GGUF"
ONE_FILE = "100TB"  # weights are written as one model.safetensors


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
    types, vocabulary = read_header(file)

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


def read_header(file: Path) -> tuple[list[tuple[str, str, int, int]], int]:
    """(name, type, dimensions, parameters) of every tensor of a GGUF file, and the number of its tokens.

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
    return tensors, len(tokens.data)


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
