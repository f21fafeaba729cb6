"""Options of `baselines/gptq.py`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from r2q.config import QuantizerOptions


class Options(QuantizerOptions):
    """Options of GPTQ; the quantizer is RTN in the repository."""

    damping: float = Field(default=0.01, gt=0, le=1)  # first share of the mean diagonal that is added to the diagonal
    act_order: bool = False  # columns with large activations first; implies static groups
    static_groups: bool = False  # levels of all groups are fitted before the first column is rounded
    true_sequential: bool = False  # inside a block, layers see inputs from the layers before them already quantized
    # ``reference`` fits groups of fewer than 128 columns from stale weights, as the repository does
    compat: Literal["none", "reference"] = "none"

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.compat == "reference" and self.act_order and not self.static_groups:
            raise ValueError(
                "compat: act_order without static_groups, where the repository groups inputs as ordered, is not made"
            )
        return self
