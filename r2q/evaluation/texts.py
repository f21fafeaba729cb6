"""Everything of a unit that is measured on texts: token perplexities, and the distance to full precision."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from r2q.config import Config
from r2q.evaluation.fidelity import Reference, distance
from r2q.evaluation.per_item import kept
from r2q.evaluation.perplexity import token_perplexity
from r2q.evaluation.scores import failed_text, fidelity_scores, perplexity_score
from r2q.files import sha256
from r2q.records import one_line

LOST = (ValueError, ArithmeticError, torch.OutOfMemoryError)  # too short a text, a number that is none, memory


@dataclass
class Measurement:
    """What one text gave.

    Attributes:
        rows: entries of `scores`, failed ones where it could not be measured.
        items: by `metric,filter`, what every window gave.
        seconds: in the model.
        error: why it could not be measured.
    """

    rows: list[dict[str, Any]]
    items: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: Exception | None = None


def measure(
    model: Any, config: Config, ids: Mapping[str, Sequence[int]], teacher: Reference | None
) -> dict[str, Measurement]:
    """All texts of a config by name, `ids` being the tokens of each: what fails in one leaves the others alone."""
    size, measured = config.limits.batch_size, {}
    for name, text in config.perplexity.items():

        def perplexity(name: str = name, text: Any = text) -> Measurement:
            result = token_perplexity(model, ids[name], text.window, text.windows, size)
            row = perplexity_score(name, text.window, result)
            scored = ids[name][: result.windows * text.window]
            asked = sha256(str(text.window), " ".join(map(str, scored)))
            return Measurement([row], {f"{row['metric']},none": kept(result.losses, asked)})

        measured[name] = _tried(perplexity, name, f"token_ppl_{text.window}", f"perplexity.{name}.path: {text.path}")
    if teacher is not None:

        def fidelity() -> Measurement:
            result = distance(model, teacher, size)
            asked = sha256(str(teacher.tokens.shape[1]), teacher.tokens.numpy().tobytes())
            parts = {"kl,none": result.kl, "top1_agreement,none": result.agreement}
            return Measurement(
                fidelity_scores(result, teacher), {name: kept(values, asked) for name, values in parts.items()}
            )

        measured["fidelity"] = _tried(fidelity, "fidelity", "kl", "fidelity")
    return measured


def _tried(run: Callable[[], Measurement], name: str, metric: str, where: str) -> Measurement:
    """The measurement with its time, or a failed row."""
    start = time.perf_counter()
    try:
        measurement = run()
    except Exception as error:
        if not isinstance(error, LOST):
            traceback.print_exc()
        error = error.with_traceback(None)  # which holds on to the model's tensors
        measurement = Measurement([failed_text(name, metric, f"{where}: {reason(error)}")], error=error)
    if measurement.error is not None:
        release()
    measurement.seconds = round(time.perf_counter() - start, 3)
    return measurement


def reason(error: Exception) -> str:
    """An error as one line."""
    text = one_line(error)
    return text if isinstance(error, ArithmeticError | ValueError) else f"{type(error).__name__}: {text}"


def release() -> None:
    """Give back memory that a failure has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
