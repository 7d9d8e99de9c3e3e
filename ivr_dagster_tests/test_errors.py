"""Messages for a full disk, missing permissions and missing memory."""

import errno
import os
import sqlite3

import pytest

from ivr_dagster.errors import InputError, describe_shortage, panics_as_errors


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b.csv"), "/a/b.csv: no space is left on the disk."),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/a"), "/a: permission is denied."),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/a"), "/a: the file system is read-only."),
        (OSError("[Errno 28] Error writing bytes to file. Detail: No space left on device"), "no space is left on the"),
        (sqlite3.OperationalError("database or disk is full"), "no space is left on the disk (database or disk is"),
        (MemoryError(), "there is not enough memory (MemoryError)."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "there is not enough"),
    ],
)  # fmt: skip
def test_shortage_is_described_in_one_line(error: BaseException, message: str) -> None:
    found = describe_shortage(error)
    assert found is not None
    assert found.startswith(message)
    assert found.endswith(".")
    assert "\n" not in found
    inner, outer = ValueError("inner"), RuntimeError("a step failed")
    inner.__cause__, outer.__cause__ = error, inner
    assert describe_shortage(outer) == found


@pytest.mark.parametrize(
    "error", [ValueError("no such key"), FileNotFoundError(2, "No such file", "/x"), InputError("x")]
)
def test_other_errors_are_not_shortages(error: BaseException) -> None:
    assert describe_shortage(error) is None


class PanicException(BaseException):
    """Named as the class of pyo3, which cannot be imported."""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("The global thread pool has not been initialized.: ThreadPoolBuildError { kind: IOError }", MemoryError),
        ("index out of bounds", RuntimeError),
    ],
)
def test_panic_is_raised_as_an_error(message: str, expected: type[Exception]) -> None:
    with pytest.raises(expected, match=message[:20]) as caught, panics_as_errors():
        raise PanicException(message)
    assert ("there is not enough memory" in str(describe_shortage(caught.value))) == (expected is MemoryError)
    with pytest.raises(KeyboardInterrupt), panics_as_errors():
        raise KeyboardInterrupt
