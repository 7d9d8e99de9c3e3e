"""What the processes of one launched training have in common: a folder that says what to do, and why it failed.

Each training has a folder of its own, below one that all machines see. Its processes write into it only when they fail;
how far they are, and what they come to, the first of them reports by itself.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ivr_dagster.core.training.launch import Launch
from ivr_dagster.core.training.sft import OutOfMemory, SftResult, Training, TrainingDiverged
from ivr_dagster.errors import InputError
from ivr_dagster.storage.atomic import atomic_write, remove
from ivr_dagster.storage.lock import ProcessLock

_REQUEST, _FAILURE, _LOCK = "request.json", "failure", ".lock"


class ProcessesFailed(RuntimeError):
    """A process of a training ended before its time, for no fault of the settings."""


class Killed(ProcessesFailed):
    """A process was ended by a signal."""


@dataclass(frozen=True)
class Request:
    """A training to be made by several processes.

    Attributes:
        name: another one in every launch, and the name of its folder.
        launch: on how many processes, as machine 0 sees it.
        training: what each of them is to do.
    """

    name: str
    launch: Launch
    training: Training


@dataclass(frozen=True)
class LaunchFolder:
    """The folder of one training; it is gone once that is over."""

    path: Path

    def write(self, request: Request) -> None:
        """Put the request there."""
        from pydantic import TypeAdapter

        with atomic_write(self.path / _REQUEST) as staged:
            staged.write_bytes(TypeAdapter(Request).dump_json(request))

    def read(self) -> Request | None:
        """The request, None once it is over."""
        from pydantic import TypeAdapter

        try:
            return TypeAdapter(Request).validate_json((self.path / _REQUEST).read_bytes())
        except FileNotFoundError:
            return None

    def tell(self, process: int, error: BaseException) -> None:
        """Note why a process, numbered from 0 over all machines, failed."""
        known = {"message": error.message, "where": error.where, "remedy": error.remedy} if isinstance(
            error, InputError
        ) else {"message": str(error)}  # fmt: skip
        if not self.path.is_dir():  # whoever would read it is gone
            return
        content = {"kind": type(error).__name__, **{name: value and str(value) for name, value in known.items()}}
        with atomic_write(self.path / f"{_FAILURE}-{process}.json") as staged:
            staged.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def failure(self) -> Exception | None:
        """Why it failed, None where no process told: a fault of the input before one of the run, a process that was
        killed before those that missed it."""
        kinds = [kind.__name__ for kind in (InputError, TrainingDiverged, OutOfMemory, Killed)]
        told = {file: json.loads(file.read_text(encoding="utf-8")) for file in self.path.glob(f"{_FAILURE}-*.json")}
        for kind in kinds:
            for _, each in sorted(told.items()):
                if each["kind"] == kind:
                    return _as_error(kind, each)
        others = [f"{each['kind']}: {each['message']}" for _, each in sorted(told.items())]
        return ProcessesFailed(others[0]) if others else None


@contextmanager
def launched_as(launched: Path, request: Request) -> Iterator[LaunchFolder]:
    """Have a request stand in a folder of its own while the block runs; those of steps that were killed are removed.

    Args:
        launched: the folder that they all lie in.
        request: what is to be done.
    """
    for folder in _requested(launched):
        if ProcessLock(folder.path / _LOCK).holder() is None:
            remove(folder.path)
    folder = LaunchFolder(launched / request.name)
    with ProcessLock(folder.path / _LOCK).hold("training"):
        try:
            folder.write(request)
            yield folder
        finally:
            remove(folder.path)


def requests(launched: Path) -> list[tuple[LaunchFolder, Request]]:
    """What is requested in the folders below one; of several at the same address only the last can be there."""
    found: dict[tuple[str, int], tuple[LaunchFolder, Request]] = {}
    for folder in _requested(launched):
        request = folder.read()
        if request is not None:
            found[request.launch.address, request.launch.port] = folder, request
    return list(found.values())


def _requested(launched: Path) -> list[LaunchFolder]:
    """Folders with a request, the oldest first."""
    times: dict[Path, int] = {}
    for file in launched.glob(f"*/{_REQUEST}"):
        with suppress(FileNotFoundError):
            times[file.parent] = file.stat().st_mtime_ns
    return [LaunchFolder(folder) for folder in sorted(times, key=times.__getitem__)]


def _as_error(kind: str, told: Mapping[str, str]) -> Exception:
    if kind == InputError.__name__:
        return InputError(told["message"], where=told["where"], remedy=told["remedy"])
    failures = {failure.__name__: failure for failure in (TrainingDiverged, OutOfMemory, Killed)}
    return failures[kind](told["message"])


def result_as_json(result: SftResult) -> str:
    """What a training came to, as text."""
    from pydantic import TypeAdapter

    return TypeAdapter(SftResult).dump_json(result).decode()


def result_from_json(text: str) -> SftResult:
    """And back."""
    from pydantic import TypeAdapter

    return TypeAdapter(SftResult).validate_json(text)
