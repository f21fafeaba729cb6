"""What the units of one process share: a task's documents and prompts, built once.

lm-eval builds the prompts of every task again for every model, compiles each Jinja template anew for each document, and
draws other few-shot examples the second time unless it is seeded again. Here each task is built once with its seed, and
every evaluation gets its own fresh copy, so a unit's numbers are those of a process of its own (tested).
"""

import functools
import inspect
import json
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

from r2q.files import sha256


@dataclass
class Frozen:
    """A task that gives the same documents and prompts to every evaluation."""

    evaluated: list[Any]  # the documents that are evaluated
    hash: str  # of settings, documents and prompts
    documents: str  # hash of documents and prompts alone
    # filled by each evaluation: the values of each document, in order, under one filter after the other
    seen: list[dict[str, Any]]


def freeze(task: Any, items: int | None, fewshot_seed: int) -> Frozen:
    """Build a task's prompts now, and hand out copies from then on.

    Args:
        task: an lm-eval task; its `build_all_requests` and document methods are replaced.
        items: only the first so many documents; None = all.
        fewshot_seed: seeds the drawing of few-shot examples, as `lm_eval.simple_evaluate` does.
    """
    cache_templates()
    task.set_fewshot_seed(seed=fewshot_seed)
    docs = list(task.eval_docs)
    evaluated = docs if items is None else docs[:items]
    current = {"docs": docs}
    for name in ("test_docs", "validation_docs"):
        if getattr(task, f"has_{name}")():
            setattr(task, name, lambda: current["docs"])
            break  # lm-eval evaluates on the test split when there is one
    with quiet():
        task.build_all_requests(limit=None, samples=range(len(evaluated)) if len(evaluated) < len(docs) else None)
    prompts = [plain(instance.arguments) for instance in task.instances]
    digest = sha256(
        json.dumps(plain(task.dump_config()), sort_keys=True), json.dumps(plain(evaluated)), json.dumps(prompts)
    )
    packed = pickle.dumps((docs, task.instances))

    def hand_out(**_: Any) -> None:
        current["docs"], task._instances = pickle.loads(packed)

    task.build_all_requests = hand_out
    documents = sha256(json.dumps(plain(evaluated)), json.dumps(prompts))
    _let_overflow(task)
    return Frozen(evaluated, digest, documents, _record(task))


def weighted_perplexity(items: Any) -> float:
    """lm-eval's, of log-likelihoods and words; infinite where that is no float: of a text without blanks, one word."""
    from lm_eval.api import metrics

    try:
        return metrics.weighted_perplexity(items)
    except OverflowError:
        return math.inf


def _let_overflow(task: Any) -> None:
    """Let a perplexity that is too large be no number by itself, and leave the task its others."""
    from lm_eval.api import metrics

    given = task.aggregation
    task.aggregation = lambda: {
        name: weighted_perplexity if rule is metrics.weighted_perplexity else rule for name, rule in given().items()
    }


def _record(task: Any) -> list[dict[str, Any]]:
    """Keep what `process_results` gives for each document, which lm-eval only shows aggregated."""
    seen: list[dict[str, Any]] = []
    original = task.process_results
    build = task.build_all_requests

    def process_results(doc: Any, results: Any) -> Any:
        values = original(doc, results)
        seen.append(values)
        return values

    def start(**options: Any) -> None:
        seen.clear()
        build(**options)

    task.process_results, task.build_all_requests = process_results, start
    return seen


def plain(value: Any) -> Any:
    """JSON data of anything in a task's settings or a result, without memory addresses."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        values = [plain(v) for v in value]
        return sorted(values, key=json.dumps) if isinstance(value, set | frozenset) else values
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if callable(value):
        return _source(value)
    text = str(value)
    return type(value).__qualname__ if " at 0x" in text else text


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (TypeError, OSError):
        return getattr(function, "__qualname__", type(function).__qualname__)


@functools.cache
def cache_templates() -> None:
    """Compile each of lm-eval's Jinja templates once per process, not once per document (0.6 ms each)."""
    from lm_eval import utils

    build = utils.env.from_string

    @functools.lru_cache(maxsize=4096)
    def from_string(source: Any) -> Any:
        template = build(source)
        template.globals = dict(template.globals)  # a ChainMap of the same, which every rendering would look through
        return template

    utils.env.from_string = from_string


@functools.cache
def hide_bars() -> None:
    """Switch off lm-eval's progress bars in this process: a verb prints its own lines."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    hidden = functools.partial(huggingface.tqdm, disable=True)
    for module in (model, task, huggingface):
        module.tqdm = hidden  # type: ignore[attr-defined]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval's progress bars and its printing; what a verb says, it says itself."""
    hide_bars()
    with redirect_stdout(StringIO()):
        yield
