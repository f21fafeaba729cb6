"""Options of `baselines/gptq.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from r2q.config import QuantizerOptions


class Options(QuantizerOptions):
    """Options of GPTQ.

    Attributes:
        quantizer, quantizer_options: whose levels are used; RTN's in the repository.
        damping: first share of the mean diagonal that is added to the diagonal.
        act_order: columns with large activations first; implies static groups.
        static_groups: levels of all groups are fitted before the first column is rounded.
        true_sequential: inside a block, layers see inputs from the layers before them already quantized.
        compat: ``reference`` fits groups of fewer than 128 columns from stale weights, as the repository does.
    """

    damping: float = Field(default=0.01, gt=0, le=1)
    act_order: bool = False
    static_groups: bool = False
    true_sequential: bool = False
    compat: Literal["none", "reference"] = "none"

    @model_validator(mode="after")
    def _check_order(self) -> Options:
        if self.compat == "reference" and self.act_order and not self.static_groups:
            raise ValueError(
                "compat: act_order without static_groups, where the repository groups inputs as ordered, is not made"
            )
        return self
