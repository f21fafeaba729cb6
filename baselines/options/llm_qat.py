"""Options of `baselines/llm_qat.py`."""

from typing import Any, Literal

from r2q.config import MethodOptions


class Options(MethodOptions):
    """Options of the symmetric rule."""

    # ``mean`` is LLM-QAT's s = 2 mean |w|, ``max`` SEQ's start s = max |w|; at two bits only
    scale: Literal["mean", "max"] = "mean"

    def problems(self, recipe: Any, config: Any) -> list[str]:
        """SEQ's start is for two bits only."""
        wrong = self.scale == "max" and recipe.bits != 2
        return [f"scale: max is SEQ's start at 2 bits, not {recipe.bits}"] if wrong else []
