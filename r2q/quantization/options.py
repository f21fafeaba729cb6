"""Options of `r2q/quantization/residual.py`."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from r2q.config import MethodOptions


class Options(MethodOptions):
    """Options of R2Q."""

    counts_with: ClassVar = {"rounds": ("refine", "alternating")}
    # ``none`` is R2Q itself; ``refit`` one least-squares refit of the scales with new codes; ``alternating`` repeats
    # that (Xu et al. 2018); ``optimal`` the exhaustive two-bit optimum (an oracle)
    refine: Literal["none", "refit", "alternating", "optimal"] = "none"
    rounds: int = Field(default=15, ge=1, le=1000)  # refits of ``alternating``; 15 is LUT-GEMM's default

    def problems(self, recipe: Any, config: Any) -> list[str]:
        """The optimum is known at two bits only."""
        wrong = self.refine == "optimal" and recipe.bits != 2
        return [f"refine: optimal is for 2 bits, not {recipe.bits}"] if wrong else []
