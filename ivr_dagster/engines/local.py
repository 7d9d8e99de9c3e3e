"""Processes shards on this machine, with one process per core."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ivr_dagster.engines import ONE_CORE
from ivr_dagster.errors import WorkerLostError
from ivr_dagster.storage.parent import end_with

Item = TypeVar("Item")
Result = TypeVar("Result")

# Starting the processes takes about one second per core; `python -m benchmarks` times the sample, which stays below.
MIN_POOL_SECONDS = 3.0


def map_local(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yields results in the order of the items.

    Processes items here until the rest is estimated to take longer than starting a process pool. The first error, in
    item order, is raised after the running items have ended, so nothing is written after it. Items not yet started are
    canceled.
    """
    started = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield function(item)
        remaining = len(items) - done
        seconds_left = (time.monotonic() - started) / done * remaining
        if seconds_left > MIN_POOL_SECONDS and remaining > 1 and available_cores() > 1:
            yield from _map_in_processes(function, items[done:])
            return


def _map_in_processes(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    # A forked process would not have the library threads that are running here.
    context = multiprocessing.get_context("spawn")
    processes = min(available_cores(), len(items))
    with ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool as error:
            raise WorkerLostError("killed, or out of memory") from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def available_cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(parent: int) -> None:
    """Limits the worker to one core, leaves Ctrl-C to the parent, and ends the worker when the parent is killed."""
    os.environ |= ONE_CORE
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
