"""That somebody is at work on a folder, told by a lock that ends with its holder, however that ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def present(file: Path) -> Iterator[None]:
    """Be seen by :func:`anybody` while the block runs; several may be present at once.

    Args:
        file: stands for the folder; it is made where it is not there, and stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def anybody(file: Path) -> bool:
    """Whether somebody is present, in whichever process."""
    try:
        handle = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)


@contextmanager
def alone(file: Path, seconds: float) -> Iterator[bool]:
    """Whether this process is the only one that asked for it, from now until the block ends; others are waited for.

    Args:
        file: as for :func:`present`, and another one.
        seconds: how long to wait.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield _locked(handle, time.monotonic() + seconds)
    finally:
        os.close(handle)


def _locked(handle: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        else:
            return True
