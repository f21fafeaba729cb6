"""What an error says in one line, and whether it may be gone the next time."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from tenacity import RetryCallState

P = ParamSpec("P")
T = TypeVar("T")


def one_line(error: object) -> str:
    """The text of an error as a reason: one line, never empty, of letters that every file and terminal can have."""
    line = " ".join(str(error).split())
    return (
        "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
        or type(error).__name__
    )


MACHINE_ERRORS = (  # errors of torch; the last two of a compiler
    "OutOfMemoryError", "AcceleratorError", "DistBackendError", "ProcessExitedException", "InductorError",
    "BackendCompilerFailed",
)  # fmt: skip
NO_MEMORY = "can't allocate memory"  # of the main memory, in a plain RuntimeError of torch
# What else torch says in one; the last of a file that it could not write, as on a full disk.
MACHINE_WORDS = (NO_MEMORY, "CUDA error", "fail at inline_container.cc")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, or while it was handled, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, or a cause of it, is one of memory."""
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"
        or (isinstance(cause, RuntimeError) and NO_MEMORY in str(cause))
        for cause in causes(error)
    )


def transient(error: BaseException, apart: tuple[type[Exception], ...] = ()) -> bool:
    """Whether an error may be gone the next time, all else equal: a file, library, memory or GPU that was not there.

    Its causes count as well, but for errors of the kinds `apart`.
    """
    for cause in causes(error):
        machine = isinstance(cause, OSError | ImportError | MemoryError) or type(cause).__name__ in MACHINE_ERRORS
        machine = machine or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in MACHINE_WORDS))
        if machine and not isinstance(cause, apart):
            return True
    return False


def busy(error: BaseException | None) -> int | None:
    """The status of an answer of a server that says to come back later, in an error or a cause of it."""
    answers = (getattr(getattr(cause, "response", None), "status_code", None) for cause in causes(error))
    return next((status for status in answers if isinstance(status, int) and (status == 429 or status >= 500)), None)


def patient(ask: Callable[P, T]) -> Callable[P, T]:
    """`ask`, which asks the hub something, asked again for half a minute while the hub is busy.

    Its library asks some questions again by itself, such as lists of files and downloads; then that is all.
    """

    @wraps(ask)
    def asked(*arguments: P.args, **options: P.kwargs) -> T:
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential

        again = Retrying(
            retry=retry_if_exception(lambda error: busy(error) is not None), wait=wait_exponential(max=8),
            stop=stop_after_attempt(6) | stop_after_delay(20), before_sleep=_say_again, reraise=True,
        )  # fmt: skip
        return again(ask, *arguments, **options)

    return asked


def _say_again(state: "RetryCallState") -> None:
    assert state.outcome is not None
    print(f"the hub is busy (HTTP {busy(state.outcome.exception())}): asked again", flush=True)
