"""Processes shards on a Ray cluster: an existing one, or one started on this machine.

Ray places tasks, retries them and handles lost nodes. All nodes read and write the same paths as this process, so
corpus and artifacts must be on shared storage and this package must be installed on each node.
"""

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ivr_dagster.engines import ONE_CORE
from ivr_dagster.errors import InputError, WorkerLostError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items submitted per core before the oldest result is awaited.
SUBMITTED_PER_CORE = 2
# Retries of an item whose worker or node died. More would hide an item that kills every worker.
MAX_RETRIES = 5


def map_on_ray(function: Callable[[Item], Result], items: Sequence[Item], *, address: str = "") -> Iterator[Result]:
    """Yields results in the order of the items; raises the first error, in item order, and cancels running items.

    Args:
        function, items: must be picklable; each item uses one core.
        address: cluster address as in `ray.init` (`auto`, `ray://host:10001`, `host:6379`). If empty, a cluster is
            started on this machine and stopped afterwards. An existing connection of this process is reused.

    Raises:
        InputError: Ray is not installed, or no cluster answers at the address.
        WorkerLostError: the worker of an item died on every attempt.
    """
    if not items:
        return
    ray = _import_ray()
    was_connected = ray.is_initialized()
    if not was_connected:
        _connect(ray, address)
    try:
        submit = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD")(_run_item).remote
        max_pending = SUBMITTED_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
        pending: deque[Any] = deque()
        for item in items:
            if len(pending) >= max_pending:
                yield _result(ray, pending.popleft())
            pending.append(submit(pickle.dumps((function, item))))
        while pending:
            yield _result(ray, pending.popleft())
    finally:
        if not was_connected:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "engine: ray was requested, but Ray is not installed",
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
            remedy="Start one with `ray start --head`, change the address, or leave it empty.",
        ) from error


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise WorkerLostError(str(error).splitlines()[0]) from error


def _run_item(payload: bytes) -> Any:
    """Runs one item on a worker. Unpickling imports libraries, so the core limit is set first."""
    os.environ |= ONE_CORE
    function, item = pickle.loads(payload)  # noqa: S301 (pickled by map_on_ray)
    return function(item)
