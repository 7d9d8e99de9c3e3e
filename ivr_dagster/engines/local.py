"""Shards worked on by processes of this machine, one for each core."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ivr_dagster.engines import ONE_CORE
from ivr_dagster.errors import WorkerLost
from ivr_dagster.storage.parent import end_with

Item = TypeVar("Item")
Result = TypeVar("Result")

# to start processes takes about one, on each core
WORTH_PROCESSES_SECONDS = 3.0


def map_local(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Results in the items' order; the first error, in that order, is raised, and what has not begun is given up.

    What is under way then is waited for: nothing is written behind the back of whoever is told of the error. Items
    are worked on here until it can be told that the rest takes longer than it takes to start processes; these do the
    rest, one for each core.
    """
    started, done = time.monotonic(), 0
    while done < len(items):
        yield function(items[done])
        done += 1
        left = (time.monotonic() - started) / done * (len(items) - done)
        if left > WORTH_PROCESSES_SECONDS and available_cores() > 1 < len(items) - done:
            break
    if done < len(items):
        yield from _map_in_processes(function, items[done:])


def _map_in_processes(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    # threads of libraries that are at work here would not live on in a fork
    context = multiprocessing.get_context("spawn")
    processes = min(available_cores(), len(items))
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(os.getpid(),)) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool as error:
            raise WorkerLost("killed, or out of memory") from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(parent: int) -> None:
    """A worker has one core, leaves stopping to its parent, and ends with it, kill -9 too."""
    os.environ |= ONE_CORE
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
