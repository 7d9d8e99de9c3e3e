"""Cached results of corpus shards: a shard whose ingredients did not change is not processed again.

What belongs here: where results are, which are missing, and which are obsolete. Callers decide what a result holds and
what goes into its key.
"""

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
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.file_identity import FileIdentity
from ivr_dagster.storage.lock import LockedError, ProcessLock

Task = TypeVar("Task")
Item = TypeVar("Item")
Result = TypeVar("Result")

# how long to wait for the lock, and for shared storage to show what a worker wrote
PATIENCE_SECONDS = 10.0
_LOCK, _SEAL = ".lock", "seal.json"


class Map(Protocol):
    """Applies a function to many items, here or in other processes, and yields the results in the items' order."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
        """Function and items must be picklable. An error is raised in place of its result."""
        ...


def result_key(*ingredients: object) -> str:
    """The content hash of what a result is made of: anything that JSON can represent."""
    return content_hash(json.dumps(ingredients))


@dataclass(frozen=True)
class ShardCache:
    """A folder with one folder per result, named by its key and complete or absent. It may be deleted at any time.

    Files of a result may be hard links. A seal holds their identities, so that a modified result is made again.
    """

    path: Path

    def place(self, key: str) -> Path:
        """The folder of a result."""
        return self.path / key

    def holds(self, key: str) -> bool:
        """Whether a result exists and is unmodified."""
        place = self.place(key)
        try:
            seal = json.loads((place / _SEAL).read_text(encoding="utf-8"))
            return all(FileIdentity.of(place / name) == tuple(identity) for name, identity in seal.items())
        except (OSError, ValueError):
            return False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from changing results while the block runs, and delete what killed ones left.

        Raises:
            InputError: another process uses the cache.
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
        """Make the missing results. Those finished before an error or interruption are kept.

        Args:
            make: writes the result of a task into an empty folder; a function that other processes can import.
            tasks: by key.
            run: applies `make` to the tasks.
            on_result: called with each key in the order of the tasks, those that existed first.

        Raises:
            InputError: a result that a worker wrote does not appear here.
        """
        existing = {key: self.holds(key) for key in tasks}
        missing = [key for key in tasks if not existing[key]]
        for key in (key for key in tasks if existing[key]):
            on_result(key)
        for key in missing:  # damaged ones
            self._delete(key)
        work = [(make, tasks[key], self.place(key)) for key in missing]
        for key, _ in zip(missing, run(_write_result, work) if work else (), strict=True):
            self._wait_for(key)
            on_result(key)

    def keep_only(self, keys: Collection[str]) -> None:
        """Delete all other results."""
        for place in self.path.iterdir():
            if place.name not in keys and not place.name.startswith("."):
                self._delete(place.name)

    def _delete(self, key: str) -> None:
        if self.place(key).exists():
            # renamed first: a partly deleted result must not count as one
            remove(self.place(key).rename(staging_path(self.place(key))))

    def _wait_for(self, key: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.holds(key):
            if time.monotonic() > deadline:
                raise InputError(
                    "a worker wrote the result of a shard, but it does not appear here",
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
        files = [file for file in staged.rglob("*") if file.is_file()]
        seal = {file.relative_to(staged).as_posix(): FileIdentity.of(file) for file in files}
        (staged / _SEAL).write_text(json.dumps(seal), encoding="utf-8")
        publish_first(staged, place)
    finally:
        remove(staged)
        give_back_freed_memory()  # one process per core does this at the same time
