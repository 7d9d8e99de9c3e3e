"""Runs execute one at a time per artifacts folder, each in its own process.

A process per step would cost seconds that most steps do not take, and two runs would share the cores that one can fill.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import dagster as dg

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.pipeline import ASSETS
from ivr_dagster.storage.atomic import recover, remove_leftovers
from ivr_dagster.storage.lock import LockedError

SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_MESSAGES = 60.0


@contextmanager
def hold_artifacts(paths: ArtifactPaths, task: str) -> Iterator[None]:
    """Hold the lock of an artifacts folder while the block runs; first repair what a killed run left there.

    Args:
        paths: the artifacts.
        task: what holds the lock, for others who find it held.

    Raises:
        LockedError: another process holds it.
    """
    with paths.lock.hold(task):
        for path in (paths[name] for name in ASSETS if name not in paths.replaced):
            recover(path)
            for folder in (path.parent, path):
                remove_leftovers(folder)
        yield


class _SerialExecutor(dg.Executor):
    """An executor that waits for the lock of the artifacts folder before it runs any step."""

    def __init__(self, inner: dg.Executor, paths: ArtifactPaths) -> None:
        self._inner, self._paths = inner, paths

    @property
    def retries(self) -> Any:
        """Whether steps are retried."""
        return self._inner.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        """Dagster's events; while another process holds the lock, the run waits and logs who does."""
        run = plan_context.dagster_run
        layer = plan_context.job.get_definition().asset_layer
        graph = layer.asset_graph
        keys = run.asset_selection or layer.executable_asset_keys
        if not run.asset_check_selection and not any(
            graph.has(key) and graph.get(key).is_materializable for key in keys
        ):
            yield from self._inner.execute(plan_context, execution_plan)  # observations read no artifacts
            return
        with ExitStack() as held:
            self._wait_for_artifacts(held, f"run {run.run_id[:8]}", plan_context.log)
            yield from self._inner.execute(plan_context, execution_plan)

    def _wait_for_artifacts(self, held: ExitStack, task: str, log: Any) -> None:
        logged = float("-inf")
        while True:
            try:
                held.enter_context(hold_artifacts(self._paths, task))
                return
            except LockedError as error:
                holder = error.holder
            if time.monotonic() - logged > SECONDS_BETWEEN_MESSAGES:
                log.info(f"Waiting: the artifacts folder is in use by {holder}")
                logged = time.monotonic()
            with dg.raise_execution_interrupts():
                time.sleep(SECONDS_BETWEEN_TRIES)


def executor_of(paths: ArtifactPaths) -> dg.ExecutorDefinition:
    """The executor of an artifacts folder's runs."""
    in_process: Any = dg.in_process_executor

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        return _SerialExecutor(in_process.executor_creation_fn(context), paths)

    return dg.ExecutorDefinition("in_process", config_schema=in_process.config_schema, executor_creation_fn=create)
