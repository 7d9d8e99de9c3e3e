"""Results of shards of the corpus, kept by what they were made of: a shard that stays as it was is not read again.

What belongs here: where they lie, which of them are missing and have to be made, and which are no longer of use. What
they hold, and what goes into a key, is the business of those who make them.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ivr_dagster.core.atomic import remove, replacing, sweep

Task = TypeVar("Task")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Map(Protocol):
    """Applies a function to each of many items, here or in other processes; results come in the items' order."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
        """Both must be picklable; an error of the function is raised where its result would come."""
        ...


def result_key(*ingredients: object) -> str:
    """A 128-bit hash of what a result is made of: anything that JSON can write."""
    return hashlib.blake2b(json.dumps(ingredients).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ShardResults:
    """A folder of results, each a folder by its key that is complete or absent; it may be deleted at any time."""

    path: Path

    def place(self, key: str) -> Path:
        """Where a result lies."""
        return self.path / key

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
        """
        self.path.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        missing = [key for key in tasks if not self.place(key).is_dir()]
        for key in tasks.keys() - missing:
            on_result(key)
        work = [(make, tasks[key], self.place(key)) for key in missing]
        for key, _ in zip(missing, run(_write_result, work), strict=True):
            on_result(key)

    def keep_only(self, keys: Collection[str]) -> None:
        """Delete all other results."""
        for place in self.path.iterdir():
            if place.name not in keys and not place.name.startswith("."):
                remove(place)


def _write_result(work: tuple[Callable[[Task, Path], None], Task, Path]) -> None:
    make, task, place = work
    with replacing(place) as staged:
        staged.mkdir()
        make(task, staged)
