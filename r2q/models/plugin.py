"""The transformers plug-in: ``AutoModelForCausalLM.from_pretrained(folder)`` reads a packed folder.

transformers knows quantizers by the ``quant_method`` in config.json; importing this module adds ``r2q``. Without it,
plain ``from_pretrained`` only warns and fills the packed layers with random numbers, so import r2q first.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from r2q.kept import apply_umask, file_sha256, write_json
from r2q.models.joined import join
from r2q.models.packed import PackedLinear, PackedWeight, make_dense, replace_empty
from r2q.models.targets import named_target
from r2q.quantization.grid import SCALE_DTYPE

QUANT_METHOD = "r2q"
FORMAT_VERSION = 1


class R2QConfig(QuantizationConfigMixin):
    """``quantization_config`` of a packed folder.

    Raises:
        ValueError: the folder was written by a newer version, or its version is no number.
    """

    def __init__(
        self,
        format_version: int = FORMAT_VERSION,  # of the layout on disk; newer ones are refused
        recipe: dict[str, Any] | None = None,  # the recipe that made it
        layers: dict[str, dict[str, Any]] | None = None,  # ``{layer name: spec}``, see ``r2q.models.packed.layer_spec``
        sha256: dict[str, str] | None = None,  # ``{file name: digest}`` of the files of the folder, see :func:`seal`
        **_: Any,
    ) -> None:
        if type(format_version) is not int:
            raise ValueError(f"format_version in config.json is {format_version!r}, not a whole number")
        if format_version > FORMAT_VERSION:
            raise ValueError(
                f"this checkpoint has format version {format_version}; this r2q reads up to {FORMAT_VERSION}: update it"
            )
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]
        self.format_version = format_version
        self.recipe = recipe or {}
        self.layers = layers or {}
        self.sha256 = sha256 or {}

    def to_dict(self) -> dict[str, Any]:
        """What a save writes: hashes belong to files, not to the model, and :func:`seal` makes them anew."""
        return {name: value for name, value in super().to_dict().items() if name != "sha256"}


class R2QQuantizer(HfQuantizer):
    """Builds empty packed layers before the weights are read; everything else is plain buffers."""

    requires_calibration = True  # transformers then refuses to quantize while loading

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        config = self.quantization_config
        files = list(map(Path, kwargs.get("checkpoint_files") or []))
        beside = [file.with_name(name) for file in files[:1] for name in config.sha256]
        check_files({*files, *filter(Path.is_file, beside)}, config.sha256)
        for name, spec in names_in(model, config.layers).items():
            replace_empty(model, named_target(model, name), spec)
            owner = model.get_submodule(name.rpartition(".")[0])
            if not owner._non_persistent_buffers_set:  # all it holds is read; to initialize it takes plain weights
                owner._is_hf_initialized = True

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        filled = "_is_hf_initialized"  # transformers marks the tensors that it read
        packed = [(name, module) for name, module in model.named_modules() if isinstance(module, PackedWeight)]
        stored = {f"{name}.{key}": x for name, module in packed for key, x in module.named_buffers(recurse=False)}
        missing = [name for name, tensor in stored.items() if not getattr(tensor, filled, False)]
        if missing:
            raise ValueError(f"{type(model).__name__}: missing keys: {', '.join(missing[:3])}")
        for _, module in packed:  # some models want all tensors of a layer, or of a name, in float32
            for key, tensor in module.named_buffers(recurse=False):
                setattr(module, key, tensor.to(SCALE_DTYPE) if tensor.is_floating_point() else tensor)
        for mixer in model.modules():
            # Jamba's and Falcon Mamba's, when told that they are quantized, take a detour that rounds once more around
            # this layer; as its weight is used otherwise, it never is
            if isinstance(getattr(mixer, "dt_proj", None), nn.Linear):
                vars(mixer.config).pop("_is_quantized", None)
        for method in (_save_pretrained, _resize_token_embeddings):  # bound methods would not pickle
            setattr(model, method.__name__.removeprefix("_"), partial(method, model))
        return join(model)

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        return make_dense(model)

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def names_in(model: Any, layers: dict[str, Any]) -> dict[str, Any]:
    """Packed layers by their names in ``model``: one without a head (AutoModel) is what the prefix stands for.

    A model with another head (AutoModelForSequenceClassification) goes without that of the checkpoint.
    """
    prefix = f"{model.base_model_prefix}."
    inside = {name: spec for name, spec in layers.items() if name.startswith(prefix)}
    if not inside:
        return layers
    if not hasattr(model, model.base_model_prefix):
        return {name.removeprefix(prefix): spec for name, spec in inside.items()}
    return {name: spec for name, spec in layers.items() if name in inside or hasattr(model, name.partition(".")[0])}


def _save_pretrained(model: Any, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
    """transformers' ``save_pretrained`` of the layers that are still packed, and the hashes of what it wrote."""
    layers = {name: part.spec for name, part in model.named_modules() if isinstance(part, PackedWeight)}
    if quantization := getattr(model.config, "quantization_config", None):
        bare = model.base_model_prefix and not hasattr(model, model.base_model_prefix)  # without a head: see names_in
        prefix = f"{model.base_model_prefix}." if bare else ""
        quantization.layers = {prefix + name: spec for name, spec in layers.items()}
    if layers:  # names are the model's own, as docs/format.md says
        kwargs.setdefault("save_original_format", False)
    type(model).save_pretrained(model, save_directory, *args, **kwargs)
    folder = Path(save_directory)
    weights = [file.name for file in folder.glob("model*.safetensors*")]
    for name in weights:
        apply_umask(folder / name)
    seal(folder, [*weights, "config.json", "generation_config.json"])


def _resize_token_embeddings(model: Any, *args: Any, **kwargs: Any) -> Any:
    """transformers' ``resize_token_embeddings``, which makes the head of its old weight: a packed one is decoded."""
    if isinstance(head := model.get_output_embeddings(), PackedLinear):
        model.set_output_embeddings(head.dense())
    return type(model).resize_token_embeddings(model, *args, **kwargs)


def seal(folder: Path, names: list[str]) -> None:
    """Write the SHA-256 of files into config.json, that of config.json itself included, where it is a packed model's.

    Its own is that of its content without the hashes, as JSON with sorted keys, so that its layout does not matter.
    """
    config = json.loads((folder / "config.json").read_text())
    if config.get("quantization_config", {}).get("quant_method") != QUANT_METHOD:
        return
    config["quantization_config"]["sha256"] = {
        name: config_sha256(config) if name == "config.json" else file_sha256(folder / name)
        for name in sorted(names)
        if (folder / name).is_file()
    }
    write_json(folder / "config.json", config)


def config_sha256(config: dict[str, Any]) -> str:
    """SHA-256 of a config.json without the hashes in it."""
    quantization = {k: v for k, v in config["quantization_config"].items() if k != "sha256"}
    text = json.dumps(config | {"quantization_config": quantization}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_files(files: Iterable[Path], digests: dict[str, str]) -> None:
    """Compare files with the digests in config.json; raises ValueError where a file is damaged or truncated."""
    for file in sorted(files):
        if file.name not in digests:
            continue
        digest = config_sha256(json.loads(file.read_text())) if file.name == "config.json" else file_sha256(file)
        if digest != digests[file.name]:
            raise ValueError(f"{file} is damaged: its SHA-256 is not the one in config.json")


if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:  # importing this module is what registers it
    register_quantization_config(QUANT_METHOD)(R2QConfig)
    register_quantizer(QUANT_METHOD)(R2QQuantizer)
