"""What is said of an error, and which ones are tried again."""

import pytest
import torch

from r2q.failures import one_line, transient


def test_a_reason_has_no_letter_that_a_file_cannot_have() -> None:
    reason = one_line(FileNotFoundError(f"no\n {chr(0xDCFF)}\x00{chr(27)}[31mß"))
    assert reason == "no \ufffd\ufffd\ufffd[31mß"
    assert reason.encode()


def test_which_failures_may_pass() -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch names it."""

    def raised(inner: Exception) -> ValueError:
        try:
            try:
                raise inner
            except Exception:
                raise ValueError("cannot load") from None
        except ValueError as error:
            return error

    assert transient(OutOfMemoryError())
    assert transient(raised(FileNotFoundError("shard 2")))
    assert transient(raised(ImportError("no library")))
    assert not transient(raised(KeyError("weight")))
    assert not transient(ArithmeticError("not finite"))
    assert transient(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"))
    assert not transient(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError) as full:
        torch.save({"weights": torch.zeros(1 << 12)}, "/dev/full")
    assert transient(full.value)
    assert not transient(raised(FileNotFoundError("shard 2")), apart=(FileNotFoundError,))
    assert transient(raised(OSError(28, "no space left")), apart=(FileNotFoundError,))
