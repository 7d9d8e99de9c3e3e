"""The errors that carry a message for the person at the terminal or in the Dagster UI.

Everything that is the fault of the request or the input is an :class:`InputError`; the command line turns it
into one line on standard error and exit code 2. Anything else that goes wrong is a bug or a failed run (exit code 1).
"""

import errno
import os
import reprlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

_AGAIN = "what is done stays, the same command goes on from there"
# what a machine runs short of or does not allow, and what to do about it
_SHORTAGES: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space is left on the disk", f"Free some; {_AGAIN}."),
    errno.EDQUOT: ("the disk quota is used up", f"Free some space; {_AGAIN}."),
    errno.EFBIG: ("a file may not grow so large", f"Raise the limit (ulimit -f); {_AGAIN}."),
    errno.EROFS: ("the file system is read-only", "Have it mounted for writing, or name another --artifacts-dir."),
    errno.EACCES: ("permission is denied", "Give this user the right to it, or name another folder."),
    errno.EPERM: ("permission is denied", "Give this user the right to it, or name another folder."),
    errno.EMFILE: ("too many files are open", f"Raise the limit (ulimit -n); {_AGAIN}."),
    errno.ENOMEM: (
        "there is not enough memory",
        f"Stop other programs, raise the limit (ulimit -v, the container's), or take a larger machine; {_AGAIN}.",
    ),
    errno.EIO: (
        "the disk cannot be read or written, or there is too little memory for it",
        f"Look which; {_AGAIN}. `ivr status --verify` reads all artifacts.",
    ),
}
# how libraries that are no Python tell of the same
_SAID: dict[str, int] = {
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


# a disk with less is full, whatever is said of it
_FULL_BYTES = 1 << 20


class InputError(Exception):
    """The request or the input is at fault: what was asked, what was found, where, and how to mend it.

    Args:
        message: what was asked and what was found, one sentence without a full stop at its end.
        where: the file, `file:line` or setting at fault.
        remedy: what the person can do about it.
    """

    def __init__(self, message: str, *, where: str | Path | None = None, remedy: str | None = None) -> None:
        self.message, self.where, self.remedy = message, where, remedy
        text = f"{where}: {message}" if where else message
        ends = text.endswith(("?", "."))
        super().__init__(f"{text}{' ' if ends else '. '}{remedy}" if remedy else text)

    def __reduce__(self) -> tuple[object, ...]:
        # worker processes hand exceptions back by pickle, which knows nothing of keyword arguments
        return _rebuild, (type(self), self.message, self.where, self.remedy)


class WorkerLost(Exception):
    """A process that worked on a part of the corpus died, again and again where it was tried again."""

    def __init__(self, how: str) -> None:
        super().__init__(
            f"a process that worked on a shard of the corpus ended ({how}), most often for want of memory. Split the "
            "largest files, or let fewer work at once (taskset, or fewer cores in the Ray cluster); what is done stays."
        )


def _rebuild(kind: type[InputError], message: str, where: str | Path | None, remedy: str | None) -> InputError:
    return kind(message, where=where, remedy=remedy)


def describe_shortage(error: BaseException, folder: Path | None = None) -> str | None:
    """What the machine ran short of or did not allow, where that is what an error comes from: a sentence with a remedy.

    None where it comes from something else.

    Args:
        error: with its causes.
        folder: what was worked on: libraries that do not say where they failed did so there, and often not why.
    """
    for each in _with_causes(error):
        number, place = getattr(each, "errno", None), ""
        if isinstance(each, MemoryError):
            number = errno.ENOMEM
        elif isinstance(each, OSError) and number in _SHORTAGES:
            place = str(each.filename or "")
        else:
            number = _said(each)
            if number is not None and folder is not None and folder.is_dir():
                number = _what_it_is(number, folder)
                place = "" if number == errno.ENOMEM else str(folder)
        if number in _SHORTAGES:
            what, remedy = _SHORTAGES[number]
            return f"{place}: {what}. {remedy}" if place else f"{what} ({_first_line(each)}). {remedy}"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error comes from too little memory, whatever was made of it."""
    return any(
        isinstance(each, MemoryError)
        or (not isinstance(each, InputError) and _said(each) == errno.ENOMEM)
        or getattr(each, "errno", None) == errno.ENOMEM
        for each in _with_causes(error)
    )


def _what_it_is(number: int, folder: Path) -> int:
    if number in (errno.EIO, errno.EACCES, errno.EROFS) and shutil.disk_usage(folder).free < _FULL_BYTES:
        return errno.ENOSPC
    if number == errno.EROFS and not os.statvfs(folder).f_flag & os.ST_RDONLY:
        return errno.EACCES
    return number


def _said(error: BaseException) -> int | None:
    said = str(error).lower()
    return next((known for text, known in _SAID.items() if text in said), None)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# more would not be read, and the first ones are what is mended first
MOST_TOLD = 20
_LONGEST_NUMBER_BITS = 128
# of a library's message, which can list all models there are
_MOST_CHARACTERS = 200


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, 120, 120
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 8

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out numbers of thousands of digits
        return repr(x) if x.bit_length() <= _LONGEST_NUMBER_BITS else f"a whole number of {x.bit_length():,} bits"


_SHORT = _ShortRepr()


def short_repr(value: object) -> str:
    """A value as Python writes it, on one line, shortened where it is long or deep."""
    return " ".join(_SHORT.repr(value).split("\n"))


def short_message(error: BaseException) -> str:
    """A library's message on one line, cut where it becomes long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS].rsplit(" ", 1)[0] + " …"


def combine_errors(faults: Sequence[InputError]) -> InputError:
    """Several faults of a kind as one error that names all their places, `MOST_TOLD` at most; one is left as it is."""
    if len(faults) == 1:
        return faults[0]
    places = {str(fault.where) for fault in faults}
    where = faults[0].where if len(places) == 1 else None
    told = [fault.message if where else f"{fault.where}: {fault.message}" for fault in faults[:MOST_TOLD]]
    more = [f"and {len(faults) - MOST_TOLD} more"] if len(faults) > MOST_TOLD else []
    remedies = dict.fromkeys(fault.remedy for fault in faults if fault.remedy)
    return InputError("; ".join(told + more), where=where, remedy=". ".join(remedies) or None)
