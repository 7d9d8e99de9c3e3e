"""Artifacts that somebody reads or writes, told by locks that end with their holder, however that ends.

One writer or any number of readers at a time. Whoever wants several locks takes all of them or none, so that two who
wait for each other cannot be.
"""

import fcntl
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

# of what a holder says of itself
LONGEST_NOTE = 200


class Busy(Exception):
    """Somebody else is at work on an artifact.

    Attributes:
        name: the artifact's.
        holder: what the holder says of itself; the last one of several readers.
    """

    def __init__(self, name: str, holder: str) -> None:
        self.name, self.holder = name, holder
        super().__init__(f"{holder} is at work on {name}")


def refuse(busy: Busy) -> None:
    """Not wait for somebody else."""
    raise busy


@contextmanager
def holding(
    folder: Path,
    *,
    writes: Collection[str],
    reads: Collection[str] = (),
    who: str,
    wait: Callable[[Busy], None] = refuse,
) -> Iterator[None]:
    """Have artifacts to oneself while the block runs, or with other readers alone.

    Args:
        folder: of the locks, a file each; it is made where it is not there.
        writes: names of those to be written.
        reads: names of those to be read.
        who: what to tell others, who find them held.
        wait: called where one is held; raises, or returns when it is to be tried again. Raises :class:`Busy` if not
            given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        with ExitStack() as taken:
            try:
                for name in sorted({*writes, *reads}):
                    taken.callback(os.close, _take(folder, name, who, alone=name in writes))
            except Busy as busy:
                found = busy
            else:
                yield
                return
        wait(found)


def _take(folder: Path, name: str, who: str, *, alone: bool) -> int:
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        note = who.encode()[:LONGEST_NOTE]
        os.pwrite(handle, note, 0)
        os.truncate(handle, len(note))
    except BlockingIOError:
        holder = os.pread(handle, LONGEST_NOTE, 0).decode(errors="replace")
        os.close(handle)
        raise Busy(name, holder or "somebody") from None
    except BaseException:
        os.close(handle)
        raise
    return handle
