"""No quantization: the upper control, a row like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from r2q.config import MethodOptions
from r2q.quantization.method import Method, Quantized, Weighted


class Options(MethodOptions):
    """None."""


class FullPrecision(Method):
    """Leaves every weight as it is."""

    Options = Options

    def quantize(self, model: torch.nn.Module, targets: Sequence[Weighted], data: Any) -> Quantized:
        return Quantized({})
