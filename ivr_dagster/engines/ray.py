"""Shards worked on by a Ray cluster: one that is there, or one that is started on this machine.

Stragglers, lost nodes and where an item goes are Ray's business. Nodes read and write the same paths as this process,
so corpus and artifacts lie where all of them see them, and this package is installed on each.
"""

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ivr_dagster.engines import ONE_CORE
from ivr_dagster.errors import InputError, WorkerLost

Item = TypeVar("Item")
Result = TypeVar("Result")

# for each core, items that are handed out before the oldest result is there
AHEAD = 2
# of an item whose worker or node died; more would hide an item that kills every worker
MOST_RETRIES = 5


def map_on_ray(function: Callable[[Item], Result], items: Sequence[Item], *, address: str = "") -> Iterator[Result]:
    """Results in the items' order; the first error, in that order, is raised, and what is under way is given up.

    Args:
        function, items: both are pickled; an item takes one core.
        address: of the cluster, as `ray.init` has it (`auto`, `ray://host:10001`, `host:6379`); empty for one on this
            machine that lives as long as the work. A cluster that this process is connected to already is taken as it
            is.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
        WorkerLost: an item's worker died each time.
    """
    if not items:
        return
    ray = _ray()
    connected = ray.is_initialized()
    if not connected:
        _connect(ray, address)
    try:
        work = ray.remote(num_cpus=1, max_retries=MOST_RETRIES, scheduling_strategy="SPREAD")(_work)
        most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        under_way: deque[Any] = deque()
        for item in items:
            if len(under_way) >= most:
                yield _result(ray, under_way.popleft())
            under_way.append(work.remote(pickle.dumps((function, item))))
        while under_way:
            yield _result(ray, under_way.popleft())
    finally:
        if not connected:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "work on a Ray cluster was asked for and Ray is not installed",
            where="engine",
            remedy="Install it with `pip install 'ivr-dagster[ray]'`, or set engine: local.",
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no Ray cluster answers at {address!r} ({str(error).splitlines()[0]})",
            where="ray_address",
            remedy="Start one with `ray start --head`, name another address, or leave it empty.",
        ) from error


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise WorkerLost(str(error).splitlines()[0]) from error


def _work(payload: bytes) -> Any:
    """One item, on a worker, which has one core: libraries are told before what is unpickled imports them."""
    os.environ |= ONE_CORE
    function, item = pickle.loads(payload)  # noqa: S301 (this process's own, by way of Ray)
    return function(item)
