"""Reading models: full-precision ones to quantize, packed ones to evaluate. Nothing is ever filled in silently."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import logging

from r2q.config import nearest, some
from r2q.failures import one_line
from r2q.models.checks import read_config, say_untied, unknown_keys
from r2q.models.joined import join
from r2q.models.packed import make_dense
from r2q.models.plugin import QUANT_METHOD, R2QConfig
from r2q.models.targets import refuse_quantized


def load_full(path: str, dtype: str = "auto") -> Any:
    """A full-precision causal language model from a folder, on the CPU, in evaluation mode.

    Raises:
        ValueError: the model is already quantized, or its checkpoint lacks weights or has unknown ones.
    """
    refuse_quantized(read_config(path), path)
    return _load(path, dtype=dtype)


def load_packed(
    folder: str | Path, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu", dense: bool = False
) -> Any:
    """A model from a folder that ``quantize`` wrote: packed, plain for the full-precision recipe, or of another format.

    Args:
        folder: the packed folder.
        dtype: of what is not quantized and of the arithmetic; ``auto`` keeps the stored one.
        device: where the model goes.
        dense: decode every packed layer once, for repeated use; on a CPU, logits stay bit-identical.

    Raises:
        FileNotFoundError: there is no such folder, or it has no config.json.
        ValueError: a file is damaged, a key is missing or unexpected, the format is newer than this version, or it is
            another's and cannot be loaded here.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} is not a packed checkpoint: it has no config.json")
    try:
        quantization = json.loads((path / "config.json").read_text()).get("quantization_config")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path / 'config.json'} is damaged: not a JSON object ({error})") from None
    if quantization is not None:
        if not isinstance(quantization, dict):
            raise ValueError(f"{path / 'config.json'} is damaged: quantization_config is no JSON object")
        if quantization.get("quant_method") != QUANT_METHOD:
            return _load_foreign(str(path), quantization.get("quant_method"), dtype, device)
        for name in R2QConfig(**quantization).sha256:
            if not (path / name).is_file():
                raise ValueError(f"{path / name} is missing: config.json has its SHA-256")
    model = _load(str(path), dtype=dtype)
    if dense and quantization is not None:
        make_dense(model)
    return join(model.to(device))


def _load_foreign(path: str, method: str | None, dtype: str | torch.dtype, device: str | torch.device) -> Any:
    """A checkpoint that another library quantized, on the device from the start: some formats cannot be moved.

    Raises:
        ValueError: the library is missing, the format is unknown or not for this device, or weights are missing.
    """
    known = AUTO_QUANTIZATION_CONFIG_MAPPING.keys() | {"bitsandbytes"}
    if method not in known:  # transformers would ignore it, and read the weights as if they were plain
        raise ValueError(f"{path} has the format {method}, which transformers does not know{nearest(method, known)}")
    try:
        model, info = _pretrained(path, dtype=dtype, device_map={"": str(device)})
    except ImportError as error:
        raise ValueError(
            f"{path} has the format {method}, whose library is not installed here: {one_line(error)}"
        ) from None
    except (SafetensorError, ValueError, RuntimeError, NotImplementedError, OSError) as error:
        raise ValueError(f"{path} has the format {method} and cannot be loaded here: {one_line(error)}") from None
    _refuse_keys(f"{path} has the format {method};", info, ("missing_keys", "mismatched_keys"))
    return _as_loaded(model)


def _load(path: str, **options: Any) -> Any:
    try:
        model, info = _pretrained(path, **options)
    except SafetensorError as error:
        raise ValueError(f"{path}: a weight file is damaged or truncated ({error})") from None
    info |= {"unexpected_keys": unknown_keys(Path(path), info)}
    _refuse_keys(f"{path}:", info, ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return _as_loaded(model)


def _pretrained(path: str, **options: Any) -> Any:
    """The model, and what transformers says of its keys."""
    return AutoModelForCausalLM.from_pretrained(
        path, config=read_config(path), trust_remote_code=False, output_loading_info=True, **options
    )


def _as_loaded(model: Any) -> Any:
    """The model in evaluation mode, its config saying what transformers did about the head.

    A head that the config calls tied, and that is stored beside the embedding with other numbers, stays as it is
    stored; whoever ties the weights again later, as lm-eval does, would replace it.
    """
    head = getattr(model.get_output_embeddings(), "weight", None)
    if head is not None and head is not model.get_input_embeddings().weight:
        say_untied(model.config)
    return model.eval()


def _refuse_keys(what: str, info: dict[str, Any], kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        if info.get(kind):
            raise ValueError(f"{what} {kind.replace('_', ' ')}: {some(sorted(map(str, info[kind])))}")


def quiet() -> None:
    """Switch off transformers' progress bars in this process: a verb prints its own lines."""
    logging.disable_progress_bar()
