"""Cached results of corpus shards: a shard is processed again only if its inputs changed.

This module knows where results are stored and which are missing or obsolete. Callers decide what a result contains and
what its key depends on.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ivr_dagster.errors import InputError
from ivr_dagster.storage.allocator import release_freed_memory
from ivr_dagster.storage.atomic import STAGED_SUFFIX, publish_first, remove, staging_path
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.file_identity import FileIdentity
from ivr_dagster.storage.lock import LockedError, ProcessLock

Task = TypeVar("Task")
Item = TypeVar("Item")
Result = TypeVar("Result")

# how long to wait for the lock, and for a worker's files to become visible on shared storage
TIMEOUT_SECONDS = 10.0
_LOCK, _SEAL = ".lock", "seal.json"


class Map(Protocol):
    """Applies a function to many items, in this process or in others, and yields the results in their order."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
        """Function and items must be picklable. An item's error is raised when its result is due."""
        ...


def result_key(*inputs: object) -> str:
    """The content hash of everything that a result depends on; the inputs must be JSON-serializable."""
    return content_hash(json.dumps(inputs))


@dataclass(frozen=True)
class ShardCache:
    """A folder with one subfolder per result, named by its key. It may be deleted at any time.

    A result is either complete or absent. Its files may be hard links; a seal records their identities, so that a
    modified result is computed again.
    """

    path: Path

    def result_folder(self, key: str) -> Path:
        """The folder of a result."""
        return self.path / key

    def has_result(self, key: str) -> bool:
        """Whether a result exists and is unmodified."""
        folder = self.result_folder(key)
        try:
            seal = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
            return all(FileIdentity.of(folder / name) == tuple(identity) for name, identity in seal.items())
        except (OSError, ValueError):
            return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the cache while the block runs, and delete files left by killed processes.

        Raises:
            InputError: another process holds the lock.
        """
        with ExitStack() as held:
            try:
                held.enter_context(ProcessLock(self.path / _LOCK).hold("another run", TIMEOUT_SECONDS))
            except LockedError as error:
                raise InputError(
                    f"this shard cache is {error}", where=self.path, remedy="Wait until it finishes, or stop it."
                ) from None
            for leftover in self.path.glob(f".*{STAGED_SUFFIX}"):
                remove(leftover)
            yield

    def complete(
        self,
        compute: Callable[[Task, Path], None],
        tasks: Mapping[str, Task],
        run: Map = map,
        on_result: Callable[[str], None] = lambda key: None,
    ) -> None:
        """Compute the missing results. Results finished before an error or interruption are kept.

        Args:
            compute: writes the result of a task into an empty folder; other processes must be able to import it.
            tasks: by key.
            run: applies `compute` to the tasks.
            on_result: called with the key of each result, first existing results, then new ones, both in task order.

        Raises:
            InputError: a worker's result is not visible on this machine.
        """
        existing = {key: self.has_result(key) for key in tasks}
        missing = [key for key in tasks if not existing[key]]
        for key in (key for key in tasks if existing[key]):
            on_result(key)
        for key in missing:  # may exist, but damaged
            self._delete(key)
        work = [(compute, tasks[key], self.result_folder(key)) for key in missing]
        for key, _ in zip(missing, run(_write_result, work) if work else (), strict=True):
            self._wait_for(key)
            on_result(key)

    def keep_only(self, keys: Collection[str]) -> None:
        """Delete all other results."""
        for folder in self.path.iterdir():
            if folder.name not in keys and not folder.name.startswith("."):
                self._delete(folder.name)

    def _delete(self, key: str) -> None:
        if self.result_folder(key).exists():
            # rename first, so that an interrupted deletion does not leave a partial result
            remove(self.result_folder(key).rename(staging_path(self.result_folder(key))))

    def _wait_for(self, key: str) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.has_result(key):
            if time.monotonic() > deadline:
                raise InputError(
                    "a worker wrote the result of a shard, but it is not visible on this machine",
                    where=self.result_folder(key),
                    remedy="Put corpus and artifacts on storage that all nodes share, at the same path.",
                )
            time.sleep(0.1)


def _write_result(work: tuple[Callable[[Task, Path], None], Task, Path]) -> None:
    compute, task, folder = work
    staged = staging_path(folder)
    try:
        staged.mkdir()
        compute(task, staged)
        files = [file for file in staged.rglob("*") if file.is_file()]
        seal = {file.relative_to(staged).as_posix(): FileIdentity.of(file) for file in files}
        (staged / _SEAL).write_text(json.dumps(seal), encoding="utf-8")
        publish_first(staged, folder)
    finally:
        remove(staged)
        release_freed_memory()  # one worker per core holds memory at the same time
