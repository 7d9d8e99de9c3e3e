"""Results of shards of the corpus, kept by what they were made of: a shard that stays as it was is not read again.

What belongs here: where they lie, which of them are missing and have to be made, and which are no longer of use. What
they hold, and what goes into a key, is the business of those who make them.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ivr_dagster.errors import InputError
from ivr_dagster.storage.allocator import give_back_freed_memory
from ivr_dagster.storage.atomic import STAGED_SUFFIX, publish_first, remove, staging_path
from ivr_dagster.storage.lock import LockedError, ProcessLock

Task = TypeVar("Task")
Item = TypeVar("Item")
Result = TypeVar("Result")

# how long another run is waited for, and until what a worker wrote is to be seen here
PATIENCE_SECONDS = 10.0
_LOCK, _SEAL = ".lock", "seal.json"


class Map(Protocol):
    """Applies a function to each of many items, here or in other processes; results come in the items' order."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
        """Both must be picklable; an error of the function is raised where its result would come."""
        ...


def result_key(*ingredients: object) -> str:
    """A 128-bit hash of what a result is made of: anything that JSON can write."""
    return hashlib.blake2b(json.dumps(ingredients).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ShardCache:
    """A folder of results, each a folder by its key that is complete or absent; it may be deleted at any time.

    Files of a result may be hard-linked from elsewhere, never written again: what was, or was deleted in part, is not
    taken for a result any more.
    """

    path: Path

    def place(self, key: str) -> Path:
        """Where a result lies."""
        return self.path / key

    def holds(self, key: str) -> bool:
        """Whether a result is there as it was made."""
        place = self.place(key)
        try:
            seal = json.loads((place / _SEAL).read_text(encoding="utf-8"))
            return all(_stamp(place / name) == stamp for name, stamp in seal.items())
        except (OSError, ValueError):
            return False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have no other run change or delete results while the block runs; what killed runs left is swept.

        Raises:
            InputError: another run is at it.
        """
        with ExitStack() as held:
            try:
                held.enter_context(ProcessLock(self.path / _LOCK).hold("another run", PATIENCE_SECONDS))
            except LockedError as error:
                raise InputError(
                    f"this shard cache is {error}", where=self.path, remedy="Wait until it finishes, or stop it."
                ) from None
            for leftover in self.path.glob(f".*{STAGED_SUFFIX}"):
                remove(leftover)
            yield

    def complete(
        self,
        make: Callable[[Task, Path], None],
        tasks: Mapping[str, Task],
        run: Map = map,
        on_result: Callable[[str], None] = lambda key: None,
    ) -> None:
        """Have `make` write those results that are not there yet, each into an empty folder of its own.

        What is done stays done when the work is stopped or fails in another place.

        Args:
            make: writes the result of a task into a folder; a function of a module, which processes find by its name.
            tasks: by key.
            run: what runs them.
            on_result: called with each key, in the order of the tasks, those that were there first.

        Raises:
            InputError: what a worker wrote is not to be seen here.
        """
        missing = [key for key in tasks if not self.holds(key)]
        made_now = set(missing)
        for key in tasks:
            if key not in made_now:
                on_result(key)
        for key in missing:  # damaged ones
            self._forget(key)
        work = [(make, tasks[key], self.place(key)) for key in missing]
        for key, _ in zip(missing, run(_write_result, work) if work else (), strict=True):
            self._wait_for(key)
            on_result(key)

    def keep_only(self, keys: Collection[str]) -> None:
        """Delete all other results."""
        for place in self.path.iterdir():
            if place.name not in keys and not place.name.startswith("."):
                self._forget(place.name)

    def _forget(self, key: str) -> None:
        if self.place(key).exists():
            # renamed first: a result that is half deleted must not pass for one
            remove(self.place(key).rename(staging_path(self.place(key))))

    def _wait_for(self, key: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS  # shared storage may show it a little later
        while not self.holds(key):
            if time.monotonic() > deadline:
                raise InputError(
                    "a worker wrote the result of a shard and it is not to be seen here",
                    where=self.place(key),
                    remedy="Put corpus and artifacts on storage that all nodes share, at the same path.",
                )
            time.sleep(0.1)


def _write_result(work: tuple[Callable[[Task, Path], None], Task, Path]) -> None:
    make, task, place = work
    staged = staging_path(place)
    try:
        staged.mkdir()
        make(task, staged)
        seal = {file.relative_to(staged).as_posix(): _stamp(file) for file in staged.rglob("*") if file.is_file()}
        (staged / _SEAL).write_text(json.dumps(seal), encoding="utf-8")
        publish_first(staged, place)
    finally:
        remove(staged)
        give_back_freed_memory()  # as many processes as there are cores do this side by side


def _stamp(file: Path) -> list[int]:
    """What changes when a file is written again, here or under another name of it."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]
