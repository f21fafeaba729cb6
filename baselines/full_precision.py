"""No quantization: the upper control, a row like any other."""

from collections.abc import Sequence
from typing import Any

import torch

from r2q.quantization.method import Method, Quantized, Weighted


class FullPrecision(Method):
    """Leaves every weight as it is."""

    control = True
    quantizes = False

    def quantize(self, model: torch.nn.Module, targets: Sequence[Weighted], data: Any) -> Quantized:
        return Quantized({})
