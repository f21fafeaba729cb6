"""Options that name another method: what every training frame and GPTQ share."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError, model_validator

from r2q.config.base import ConfigError, MethodOptions
from r2q.config.methods import method_info
from r2q.config.problems import describe


class QuantizerOptions(MethodOptions):
    """Options of a method that goes with any method of one weight.

    Attributes:
        quantizer: any method that is a function of one weight: rtn, r2q, llm_qat, ...
        quantizer_options: that method's own options.
    """

    quantizer: str = "rtn"
    quantizer_options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_quantizer(cls, values: Any) -> Any:
        """Check the quantizer and fill in its options, so that a result's key holds all of them."""
        if not isinstance(values, dict):
            return values
        name = values.get("quantizer", cls.model_fields["quantizer"].default)
        given = values.get("quantizer_options", {})
        if not isinstance(name, str) or not isinstance(given, dict):
            return values
        try:
            info = method_info(name)
        except ConfigError as error:
            raise ValueError(f"quantizer: {error}") from None
        if not info.weight_method:
            raise ValueError(f"quantizer: {name} is no function of one weight, so it cannot run inside another method")
        try:
            filled = info.options.model_validate(given).model_dump(mode="json")
        except ValidationError as error:
            lines = describe(error, info.options)
            raise ValueError("; ".join(f"quantizer_options.{line}" for line in lines) + f" (of {name})") from None
        return values | {"quantizer_options": filled}

    def problems(self, recipe: Any, config: Any) -> list[str]:
        """Those of the quantizer's options."""
        inner = method_info(self.quantizer).options.model_validate(self.quantizer_options)
        problems = inner.problems(recipe, config)
        return [line if line.startswith(("granularity", "bits")) else f"quantizer_options.{line}" for line in problems]
