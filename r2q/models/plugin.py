"""The transformers plug-in: ``AutoModelForCausalLM.from_pretrained(folder)`` reads a packed folder.

transformers knows quantizers by the ``quant_method`` in config.json; importing this module adds ``r2q``. Without it,
plain ``from_pretrained`` only warns and fills the packed layers with random numbers, so import r2q first.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from r2q.models.packed import make_dense, replace_empty
from r2q.models.targets import named_target

QUANT_METHOD = "r2q"
FORMAT_VERSION = 1


class R2QConfig(QuantizationConfigMixin):
    """``quantization_config`` of a packed folder.

    Args:
        format_version: of the layout on disk; newer ones are refused.
        recipe: the recipe that made it.
        layers: ``{layer name: spec}``, see ``r2q.models.packed.layer_spec``.
        sha256: ``{file name: digest}`` of the weight files.

    Raises:
        ValueError: the folder was written by a newer version.
    """

    def __init__(
        self,
        format_version: int = FORMAT_VERSION,
        recipe: dict[str, Any] | None = None,
        layers: dict[str, dict[str, Any]] | None = None,
        sha256: dict[str, str] | None = None,
        **_: Any,
    ) -> None:
        if format_version > FORMAT_VERSION:
            raise ValueError(
                f"this checkpoint has format version {format_version}; this r2q reads up to {FORMAT_VERSION}: update it"
            )
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]
        self.format_version = format_version
        self.recipe = recipe or {}
        self.layers = layers or {}
        self.sha256 = sha256 or {}


class R2QQuantizer(HfQuantizer):
    """Builds empty packed layers before the weights are read; everything else is plain buffers."""

    requires_calibration = True  # transformers then refuses to quantize while loading

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        config = self.quantization_config
        check_files(kwargs.get("checkpoint_files") or [], config.sha256)
        for name, spec in config.layers.items():
            replace_empty(model, named_target(model, name), spec)
            owner = model.get_submodule(name.rpartition(".")[0])
            if not owner._non_persistent_buffers_set:  # all it holds is read; to initialize it takes plain weights
                owner._is_hf_initialized = True

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        return make_dense(model)

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def check_files(files: list[str], digests: dict[str, str]) -> None:
    """Compare weight files with the digests in config.json.

    Raises:
        ValueError: a file is damaged or truncated.
    """
    for file in map(Path, files):
        if file.name in digests and file_sha256(file) != digests[file.name]:
            raise ValueError(f"{file} is damaged: its SHA-256 is not the one in config.json")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:  # importing this module is what registers it
    register_quantization_config(QUANT_METHOD)(R2QConfig)
    register_quantizer(QUANT_METHOD)(R2QQuantizer)
