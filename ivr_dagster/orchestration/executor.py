"""How a run's steps are executed: in its own process, once nobody else is at work on the same artifacts.

A run is a process; one more for each step costs seconds that most steps don't take, and two steps at a time would share
the cores that one of them can fill.
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.errors import raise_execution_interrupts

from ivr_dagster.pipeline import ASSETS, ArtifactPaths
from ivr_dagster.storage.atomic import recover, sweep
from ivr_dagster.storage.locks import Busy, holding, refuse

SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_LINES = 60.0


@contextmanager
def at_work(
    places: ArtifactPaths,
    graph: Any,
    makes: Collection[str],
    who: str,
    *,
    reads: Collection[str] = (),
    wait: Callable[[Busy], None] = refuse,
) -> Iterator[None]:
    """Make assets while the block runs: nobody else reads or writes them, or writes what they are made of.

    What a killed run left of them is put right first.

    Args:
        places: where artifacts lie.
        graph: Dagster's asset graph.
        makes: assets to be made.
        who: what others are told.
        reads: assets that are read, beside those that others are made of.
        wait: as of :func:`~ivr_dagster.storage.locks.holding`.

    Raises:
        Busy: somebody else is at work on them, and `wait` is not given.
    """
    parents = {parent.to_user_string() for name in makes for parent in graph.get(dg.AssetKey(name)).parent_keys}
    known = {*parents, *reads} & ASSETS.keys()
    with holding(places.locks, writes=makes, reads=known, who=who, wait=wait):
        for place in (places[name] for name in makes):
            recover(place)
            for folder in (place.parent, place):
                sweep(folder)
        yield


class _OneAtATime(dg.Executor):
    """An executor behind the locks of the artifacts that a run reads and writes."""

    def __init__(self, inner: dg.Executor, places: ArtifactPaths) -> None:
        self._inner, self._places = inner, places

    @property
    def retries(self) -> Any:
        """Whether steps are tried again."""
        return self._inner.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        """Dagster's events; the run waits, and says so, while somebody else is at work."""
        layer, run = plan_context.job.get_definition().asset_layer, plan_context.dagster_run
        graph = layer.asset_graph
        keys = run.asset_selection or layer.executable_asset_keys
        makes = {key.to_user_string() for key in keys if graph.has(key) and graph.get(key).is_materializable}
        checked = {check.asset_key.to_user_string() for check in run.asset_check_selection or ()}
        said = float("-inf")

        def wait(busy: Busy) -> None:
            nonlocal said
            if time.monotonic() - said > SECONDS_BETWEEN_LINES:
                plan_context.log.info(f"waits: {busy}")
                said = time.monotonic()
            with raise_execution_interrupts():
                time.sleep(SECONDS_BETWEEN_TRIES)

        who = f"run {run.run_id[:8]}"
        with at_work(self._places, graph, makes & ASSETS.keys(), who, reads=checked, wait=wait):
            yield from self._inner.execute(plan_context, execution_plan)


def executor_of(places: ArtifactPaths) -> dg.ExecutorDefinition:
    """The executor of an artifacts folder's runs."""

    within: Any = dg.in_process_executor

    def in_process(context: dg.InitExecutorContext) -> dg.Executor:
        return _OneAtATime(within.executor_creation_fn(context), places)

    return dg.ExecutorDefinition("in_process", config_schema=within.config_schema, executor_creation_fn=in_process)
