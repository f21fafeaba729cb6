"""Parts of an evaluation that may fail alone: a task, a text. What fails in one leaves the others' numbers alone."""

import gc
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from r2q.failures import one_line

NO_NUMBER = (ArithmeticError, torch.OutOfMemoryError)  # a model that is not finite, or too large


def attempt(work: Callable[[], Any], *expected: type[Exception]) -> tuple[Any, Exception | None, float]:
    """What `work` gives, or the error that it ends with, and its seconds; the traceback of errors but `expected` ones
    is printed."""
    found, lost, start = None, None, time.perf_counter()
    try:
        found = work()
    except Exception as error:
        if not isinstance(error, expected):
            traceback.print_exc()
        lost = error.with_traceback(None)  # which holds on to the model's tensors
        release()
    return found, lost, round(time.perf_counter() - start, 3)


def release() -> None:
    """Give back memory that is no longer needed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    """An error as one line."""
    text = one_line(error)
    return text if isinstance(error, ArithmeticError | ValueError) else f"{type(error).__name__}: {text}"
