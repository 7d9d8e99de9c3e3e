"""Faults injected into a process: a kill, a full disk or a lack of memory at a file operation, and resource limits."""

import ctypes
import os
import re
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Limits:
    """Resource limits of a command.

    Attributes:
        permissions: file permissions apply even to root.
        memory: bytes of address space on top of what the process already uses.
        file_size: largest size of a file, bytes.
    """

    permissions: bool = False
    memory: int | None = None
    file_size: int | None = None

    def apply(self) -> None:
        """Limit this process."""
        if self.file_size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_size, self.file_size))
        if self.memory is not None:
            limit = psutil.Process().memory_info().vms + self.memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if self.permissions:
            _drop_permission_overrides()


def _drop_permission_overrides() -> None:
    """Drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, numbers 1 and 2 (capabilities(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for index in range(3):  # effective, permitted, inheritable
        sets[index] &= ~0b110
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


@dataclass(frozen=True)
class Kill:
    """Kill the command and its child processes at a file operation, named as by :func:`file_operation`."""

    event: str
    after: bool = False

    def trigger(self) -> None:
        """Called in the command, before the operation."""
        if self.after:
            # ends only this process, shortly after the operation; the test then kills its process group
            signal.setitimer(signal.ITIMER_REAL, 0.000_2)
        else:
            os.killpg(0, signal.SIGKILL)


@dataclass(frozen=True)
class FillDisk:
    """Fill the disk at a file operation.

    Attributes:
        event: the file operation.
        ballast: the file that fills the disk. If None, the size of files is limited to `free` instead.
        free: bytes left free.
    """

    event: str
    ballast: Path | None
    free: int = 0

    def trigger(self) -> None:
        """Called in the command, before the operation."""
        if self.ballast is None:
            Limits(file_size=self.free).apply()
            return
        file = os.open(self.ballast, os.O_WRONLY | os.O_CREAT)
        size, step = 0, 1 << 20
        while step >= 1 << 12:
            try:
                size += os.write(file, bytes(step))
            except OSError:
                step //= 2
        os.ftruncate(file, max(0, size - self.free))
        os.close(file)


@dataclass(frozen=True)
class LimitMemory:
    """Limit the memory that can still be allocated, in bytes, from a file operation on."""

    event: str
    memory: int

    def trigger(self) -> None:
        """Called in the command, before the operation."""
        Limits(memory=self.memory).apply()


Fault = Kill | FillDisk | LimitMemory


def file_operation(event: str, arguments: tuple[Any, ...], root: Path) -> str | None:
    """The name of a file operation below `root`, equal in all runs; None if nothing changes there."""
    if event == "open":
        path, _, flags = arguments
        if not isinstance(path, (str, bytes, os.PathLike)) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return None
        paths = [_absolute(path, -1)]
    elif event in ("os.rename", "os.link"):
        paths = [_absolute(path, folder) for path, folder in zip(arguments[:2], arguments[2:4], strict=True)]
    elif event in ("os.remove", "os.rmdir", "shutil.rmtree"):
        paths = [_absolute(arguments[0], arguments[1] if len(arguments) > 1 else None)]
    elif event == "os.mkdir":
        paths = [_absolute(arguments[0], arguments[2])]
    else:
        return None
    names = [os.path.relpath(path, root) for path in paths]
    for name in names:
        if name.startswith((".dagster", "..")) or (name.startswith(".ivr") and not name.endswith(".json")):
            return None
    # temporary names contain random numbers, TensorBoard's contain time and host
    names = [re.sub(r"tfevents.*", "tfevents", re.sub(r"\.\d+-[0-9a-f]{8}\.tmp", ".N.tmp", name)) for name in names]
    return f"{event} {' → '.join(names)}"


def _absolute(path: Any, folder: int | None) -> str:
    name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else f"/proc/self/fd/{path}"
    if not name.startswith("/"):
        parent = f"/proc/self/fd/{folder}" if folder is not None and folder >= 0 else "."
        name = os.path.join(os.path.realpath(parent), name)  # noqa: PTH118 (an audit hook does little)
    return name


def watch_operations(root: Path, fault: Fault | None, operations: Path | None) -> None:
    """Log this process's file operations below `root` to a file and trigger the fault at the first that matches."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    log = os.open(operations, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if operations else -1
    pending = [fault] if fault is not None else []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if (log < 0 and not pending) or (event != "open" and not event.startswith(("os.", "shutil."))):
            return
        name = file_operation(event, arguments, root)
        if name is None:
            return
        if log >= 0:
            os.write(log, f"{name}\n".encode())
        if pending and name == pending[0].event:
            pending.pop().trigger()  # removed first, because the fault may write files itself

    sys.addaudithook(hook)
