"""Opening what has to be a regular file: nobody may write into a pipe, and a device may have no end."""

import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: Path) -> BufferedReader:
    """A regular file to read bytes from, without waiting where it is none.

    Raises:
        OSError: it cannot be opened, or is no regular file; `strerror` says why.
    """
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115
    except ValueError as error:  # a NUL in the name
        raise OSError(0, str(error)) from error
    if kind := kind_of(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, f"it is {kind}, not a file")
    return file


def kind_of(mode: int) -> str:
    """What a path is by its `st_mode`, for a message; empty for a regular file."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
