"""Everything of a unit that is measured on texts: token perplexities, and the distance to full precision."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from r2q.config import Config
from r2q.evaluation.attempt import NO_NUMBER, attempt, reason
from r2q.evaluation.fidelity import Reference, distance
from r2q.evaluation.per_item import item_entry
from r2q.evaluation.perplexity import token_perplexity
from r2q.evaluation.scores import failed_text, fidelity_scores, perplexity_score
from r2q.files import sha256

Parts = tuple[list[dict[str, Any]], dict[str, Any]]  # entries of `scores`; by `metric,filter`, what every window gave


class Measurement(NamedTuple):
    """What one text gave."""

    rows: list[dict[str, Any]]  # entries of `scores`, failed ones where it could not be measured
    items: dict[str, Any]  # by `metric,filter`, what every window gave
    seconds: float  # in the model
    error: Exception | None  # why it could not be measured


def measure(
    model: Any, config: Config, ids: Mapping[str, Sequence[int]], teacher: Reference | None
) -> dict[str, Measurement]:
    """All texts of a config by name, `ids` being the tokens of each: what fails in one leaves the others alone."""
    size, measured = config.limits.batch_size, {}
    for name, text in config.perplexity.items():
        work = partial(_perplexity, model, name, text, ids[name], size)
        metric, where = f"token_ppl_{text.window}", f"perplexity.{name}.path: {text.path}"
        measured[name] = _measurement(work, name, metric, where)
    if teacher is not None:
        measured["fidelity"] = _measurement(partial(_fidelity, model, teacher, size), "fidelity", "kl", "fidelity")
    return measured


def _perplexity(model: Any, name: str, text: Any, ids: Sequence[int], size: int) -> Parts:
    result = token_perplexity(model, ids, text.window, text.windows, size)
    row = perplexity_score(name, text.window, result)
    asked = sha256(str(text.window), " ".join(map(str, ids[: result.windows * text.window])))
    return [row], {f"{row['metric']},none": item_entry(result.losses, asked)}


def _fidelity(model: Any, teacher: Reference, size: int) -> Parts:
    result = distance(model, teacher, size)
    asked = sha256(str(teacher.tokens.shape[1]), teacher.tokens.numpy().tobytes())
    parts = {"kl,none": result.kl, "top1_agreement,none": result.agreement}
    return fidelity_scores(result, teacher), {name: item_entry(values, asked) for name, values in parts.items()}


def _measurement(work: Callable[[], Parts], name: str, metric: str, where: str) -> Measurement:
    """What a text gives, or a failed row."""
    found, error, seconds = attempt(work, ValueError, *NO_NUMBER)  # ValueError: of too short a text
    rows, items = found if error is None else ([failed_text(name, metric, f"{where}: {reason(error)}")], {})
    return Measurement(rows, items, seconds, error)
