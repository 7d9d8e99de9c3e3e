"""Errors with a message for the user at the terminal or in the Dagster UI.

An invalid request or input raises :class:`InputError`: the command line prints one line and exits with 2. Any other
error is a bug or a failed run and exits with 1.
"""

import errno
import os
import reprlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_RESUME = "run the same command again to resume"
# what a machine runs out of or does not allow, and how to fix it
_SHORTAGES: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space is left on the disk", f"Free some space, then {_RESUME}."),
    errno.EDQUOT: ("the disk quota is exceeded", f"Free some space, then {_RESUME}."),
    errno.EFBIG: ("the file size limit is exceeded", f"Raise the limit (ulimit -f), then {_RESUME}."),
    errno.EROFS: ("the file system is read-only", "Mount it for writing, or choose another --artifacts-dir."),
    errno.EACCES: ("permission is denied", "Grant this user access, or choose another folder."),
    errno.EPERM: ("permission is denied", "Grant this user access, or choose another folder."),
    errno.EMFILE: ("too many files are open", f"Raise the limit (ulimit -n), then {_RESUME}."),
    errno.ENOMEM: (
        "there is not enough memory",
        "Stop other programs, raise the limit (ulimit -v, or the container's), or use a larger machine, "
        f"then {_RESUME}.",
    ),
    errno.EIO: (
        "the disk cannot be read or written, or there is too little memory for it",
        f"Check both, then {_RESUME}. `ivr status --verify` reads all artifacts.",
    ),
}
# how native libraries describe the same
_LIBRARY_MESSAGES: dict[str, int] = {
    "no space left on device": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
    "read-only file system": errno.EROFS,
    "readonly database": errno.EROFS,
    "permission denied": errno.EACCES,
    "unable to open database file": errno.EACCES,
    "too many open files": errno.EMFILE,
    "cannot allocate memory": errno.ENOMEM,
    "can't allocate memory": errno.ENOMEM,
    "not enough memory": errno.ENOMEM,
    "out of memory": errno.ENOMEM,
    "malloc of size": errno.ENOMEM,
    "realloc of size": errno.ENOMEM,
    "can't start new thread": errno.ENOMEM,
    "failed to launch worker thread": errno.ENOMEM,
    "disk i/o error": errno.EIO,
}
# a disk with less free space counts as full, whatever a library reports
_FULL_BYTES = 1 << 20


class InputError(Exception):
    """The request or the input is invalid.

    Args:
        message: what was requested and what was found, without a final full stop.
        where: the file, `file:line` or setting.
        remedy: how to fix it.
    """

    def __init__(self, message: str, *, where: str | Path | None = None, remedy: str | None = None) -> None:
        self.message, self.where, self.remedy = message, where, remedy
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text}. {remedy}" if remedy else text)

    def __reduce__(self) -> tuple[object, ...]:
        # worker processes return exceptions by pickle, which does not support keyword arguments
        return _rebuild, (type(self), self.message, self.where, self.remedy)


def _rebuild(kind: type[InputError], message: str, where: str | Path | None, remedy: str | None) -> InputError:
    return kind(message, where=where, remedy=remedy)


class WorkerLostError(Exception):
    """A process that worked on a part of the corpus died, also when retried."""

    def __init__(self, how: str) -> None:
        super().__init__(
            f"a process that worked on a shard of the corpus ended ({how}), most often because memory ran out. Split "
            f"the largest files, or use fewer workers (taskset, or fewer cores in the Ray cluster), then {_RESUME}."
        )


def describe_shortage(error: BaseException, folder: Path | None = None) -> str | None:
    """What the machine ran out of or did not allow, and how to fix it; None if that is not why the error occurred.

    Args:
        error: the error, with its causes.
        folder: where the command worked: some libraries report neither where they failed nor exactly why.
    """
    for each in _with_causes(error):
        number, place = getattr(each, "errno", None), ""
        if isinstance(each, MemoryError):
            number = errno.ENOMEM
        elif isinstance(each, OSError) and number in _SHORTAGES:
            place = str(each.filename or "")
        else:
            number = _number_in_message(each)
            if number is not None and folder is not None and folder.is_dir():
                number = _check_folder(number, folder)
                place = "" if number == errno.ENOMEM else str(folder)
        if number in _SHORTAGES:
            what, remedy = _SHORTAGES[number]
            return f"{place}: {what}. {remedy}" if place else f"{what} ({_first_line(each)}). {remedy}"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error was caused by too little memory."""
    return any(
        isinstance(each, MemoryError)
        or (not isinstance(each, InputError) and _number_in_message(each) == errno.ENOMEM)
        or getattr(each, "errno", None) == errno.ENOMEM
        for each in _with_causes(error)
    )


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a panic of a library in Rust as a RuntimeError, or as a MemoryError if it could not start its threads.

    A panic is no `Exception`, so nobody expects it.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise (MemoryError if "ThreadPoolBuildError" in str(error) else RuntimeError)(str(error)) from error


def _check_folder(number: int, folder: Path) -> int:
    """The likely cause of an error that a library reported while it worked in `folder`."""
    if number in (errno.EIO, errno.EACCES, errno.EROFS) and shutil.disk_usage(folder).free < _FULL_BYTES:
        return errno.ENOSPC
    if number == errno.EROFS and not os.statvfs(folder).f_flag & os.ST_RDONLY:
        return errno.EACCES
    return number


def _number_in_message(error: BaseException) -> int | None:
    message = str(error).lower()
    return next((number for text, number in _LIBRARY_MESSAGES.items() if text in message), None)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# how many errors one message lists
MAX_ERRORS = 20
_LONGEST_NUMBER_BITS = 128
# of a library's message, which may list all known models
_MAX_CHARACTERS = 200


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, 120, 120
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 8

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to format numbers of thousands of digits
        return repr(x) if x.bit_length() <= _LONGEST_NUMBER_BITS else f"an integer of {x.bit_length():,} bits"


_SHORT = _ShortRepr()


def short_repr(value: object) -> str:
    """The `repr` of a value on one line, shortened if it is long or deep."""
    return " ".join(_SHORT.repr(value).split("\n"))


def short_message(error: BaseException) -> str:
    """A library's message on one line, truncated if it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS].rsplit(" ", 1)[0] + " …"


def combine_errors(errors: Sequence[InputError]) -> InputError:
    """One error that lists up to `MAX_ERRORS` errors with their places; a single one is returned unchanged."""
    if len(errors) == 1:
        return errors[0]
    same_place = len({str(error.where) for error in errors}) == 1
    where = errors[0].where if same_place else None
    messages = [error.message if where else f"{error.where}: {error.message}" for error in errors[:MAX_ERRORS]]
    more = [f"and {len(errors) - MAX_ERRORS} more"] if len(errors) > MAX_ERRORS else []
    remedies = dict.fromkeys(error.remedy for error in errors if error.remedy)
    return InputError("; ".join(messages + more), where=where, remedy=". ".join(remedies) or None)
