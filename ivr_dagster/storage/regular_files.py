"""Opening files that must be regular: reading a pipe may block, and a device may have no end."""

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
    """Open a regular file for reading bytes; never blocks.

    Raises:
        OSError: it cannot be opened or is not a regular file; `strerror` says why.
    """
    try:
        file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115
    except ValueError as error:  # a NUL in the name
        raise OSError(0, str(error)) from error
    if kind := kind_of(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, f"it is {kind}, not a file")
    return file


def kind_of(mode: int) -> str:
    """What a path is, by its `st_mode`, for a message; empty for a regular file."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
