"""What an error says in one line, and whether it may be gone the next time."""


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


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from or while it was handled, is one of memory."""
    while error is not None:
        named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if named or (isinstance(error, RuntimeError) and NO_MEMORY in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def transient(error: BaseException | None, apart: tuple[type[Exception], ...] = ()) -> bool:
    """Whether an error may be gone the next time, all else equal: a file, library, memory or GPU that was not there.

    What it was raised from, or while it was handled, counts as well, but for errors of the kinds `apart`.
    """
    while error is not None:
        machine = isinstance(error, OSError | ImportError | MemoryError) or type(error).__name__ in MACHINE_ERRORS
        machine = machine or (isinstance(error, RuntimeError) and any(words in str(error) for words in MACHINE_WORDS))
        if machine and not isinstance(error, apart):
            return True
        error = error.__cause__ or error.__context__
    return False
