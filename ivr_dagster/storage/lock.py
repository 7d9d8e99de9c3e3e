"""A lock that one process holds at a time. The operating system releases it when the process ends, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# `ProcessLock.holder` takes a free lock for an instant; whoever tries at that instant must not fail
LEAST_WAIT_SECONDS = 0.5


class LockedError(Exception):
    """Another process holds the lock.

    Attributes:
        holder: what that process does, and its number.
    """

    def __init__(self, holder: str) -> None:
        self.holder = holder
        super().__init__(f"in use by {holder}")


class ProcessLock:
    """An exclusive lock on whatever a file stands for. A process that holds it may take it again.

    Args:
        file: the lock file; created if missing and never deleted. A file beside it names the holder.
    """

    def __init__(self, file: Path) -> None:
        self.file, self._note = file, file.with_name(f"{file.name}.holder")

    @contextmanager
    def hold(self, task: str, wait_seconds: float = LEAST_WAIT_SECONDS) -> Iterator[None]:
        """Hold the lock while the block runs.

        Args:
            task: what this process does, for others who find the lock held.
            wait_seconds: how long to wait for another holder.

        Raises:
            LockedError: another process still holds it.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.file, is_singleton=True, thread_local=False)
        nested = lock.is_locked
        try:
            lock.acquire(timeout=wait_seconds)
        except Timeout:
            raise LockedError(self._read_note()) from None
        try:
            if not nested:
                self._note.write_text(f"{task} (process {os.getpid()})", encoding="utf-8")
            yield
        finally:
            lock.release()

    def holder(self) -> str | None:
        """The task and process of whoever holds the lock, None if nobody does."""
        if not self.file.exists():
            return None
        try:
            with FileLock(self.file, blocking=False):
                return None
        except Timeout:
            return self._read_note()

    def _read_note(self) -> str:
        try:
            return self._note.read_text(encoding="utf-8", errors="replace") or "another process"
        except FileNotFoundError:
            return "another process"
