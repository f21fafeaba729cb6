"""Options of `baselines/gptq.py`."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from r2q.config import QuantizerOptions, group_size


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

    def problems(self, recipe: Any, config: Any) -> list[str]:
        """Orders of fitting that the granularity leaves without effect, beside what the quantizer says."""
        found, size = super().problems(recipe, config), group_size(recipe.granularity)
        if self.static_groups and size is None:
            found.append(f"static_groups: counts with groups alone, and granularity is {recipe.granularity}")
        if self.compat == "reference" and (self.static_groups or size is None or size % 128 == 0):
            found.append("compat: reference counts where groups start inside of 128 columns, without static_groups")
        return found
