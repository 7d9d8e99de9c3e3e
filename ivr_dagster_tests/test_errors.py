"""Messages about a machine that lacks space, memory or permissions."""

import errno
import os
import sqlite3

import pytest

from ivr_dagster.errors import InputError, describe_shortage


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001
        return caught


@pytest.mark.parametrize(
    ("error", "says"),
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
def test_shortage_is_described_with_its_remedy(error: BaseException, says: str) -> None:
    told = describe_shortage(error)
    assert told is not None
    assert told.startswith(says)
    assert told.endswith(".")
    assert "\n" not in told
    wrapped = raised(RuntimeError("a step failed"), raised(ValueError("this"), error))
    assert describe_shortage(wrapped) == told


@pytest.mark.parametrize(
    "error", [ValueError("no such key"), FileNotFoundError(2, "No such file", "/x"), InputError("x")]
)
def test_other_errors_are_not_shortages(error: BaseException) -> None:
    assert describe_shortage(error) is None
