"""The errors that carry a message for the person at the terminal or in the Dagster UI.

Everything that is the fault of the request or the input is an :class:`InputError`; the command line turns it
into one line on standard error and exit code 2. Anything else that goes wrong is a bug or a failed run (exit code 1).
"""

from pathlib import Path


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
        super().__init__(f"{text}. {remedy}" if remedy else text)

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
