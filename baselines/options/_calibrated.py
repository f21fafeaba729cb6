"""What the options of calibrated methods have in common."""

from typing import Any

from r2q.config import MethodOptions


class GroupedOptions(MethodOptions):
    """Options of a method whose error is told group by group: whole tensors are refused."""

    def problems(self, recipe: Any, config: Any) -> list[str]:
        """A whole tensor; batches of more windows than there are."""
        problems = []
        if recipe.granularity == "tensor":
            problems.append(f"granularity: method {recipe.method} needs groups: g<size> or channel, not tensor")
        batch = getattr(self, "batch", 1)
        windows = config.calibration.windows if config.calibration is not None else None
        if windows is not None and batch > windows:
            problems.append(f"batch: {batch} are more than the {windows} windows of calibration.windows")
        return problems
