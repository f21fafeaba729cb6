"""Options that name another method: what every training frame and GPTQ share."""

from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from r2q.config.base import ConfigError, MethodOptions
from r2q.config.methods import method_info
from r2q.config.problems import describe


class QuantizerOptions(MethodOptions):
    """Options of a method that goes with any method of one weight."""

    quantizer: str = "rtn"  # any method that is a function of one weight: rtn, r2q, llm_qat, ...
    quantizer_options: dict[str, Any] = Field(default_factory=dict, validate_default=True)  # that method's own options

    @field_validator("quantizer")
    @classmethod
    def _check_quantizer(cls, name: str) -> str:
        try:
            info = method_info(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if not info.weight_method:
            raise ValueError(f"{name} is no function of one weight, so it cannot run inside another method")
        if info.own_step:  # what another method computes with would not be what is stored
            raise ValueError(f"{name} has a {info.own_step} of its own, which is never asked inside another method")
        return name

    @field_validator("quantizer_options")
    @classmethod
    def _fill(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """The quantizer's options with all that is not given, so that a result's key holds all of them."""
        if "quantizer" not in info.data:  # it is wrong itself
            return given
        options = method_info(info.data["quantizer"]).options
        try:
            return options.read(given).model_dump(mode="json")
        except ValidationError as error:
            lines = "; quantizer_options.".join(describe(error, options))
            raise ValueError(f"{lines} (of {info.data['quantizer']})") from None

    def problems(self, recipe: Any, config: Any) -> list[str]:
        """Those of the quantizer's options."""
        inner = method_info(self.quantizer).options.read(self.quantizer_options)
        problems = inner.problems(recipe, config)
        return [line if line.startswith(("granularity", "bits")) else f"quantizer_options.{line}" for line in problems]
