"""Runs of one artifacts folder wait for each other."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import dagster as dg
import pytest
from filelock import FileLock

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.orchestration import executor
from ivr_dagster.orchestration.executor import executor_of, hold_artifacts

ROOT = "IVR_TEST_ARTIFACTS"


@dg.asset(check_specs=[dg.AssetCheckSpec("check", asset="made")])
def made(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Log who holds the lock during a step."""
    context.log.info(f"holder: {ArtifactPaths(Path(os.environ[ROOT])).lock.holder()}")
    return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True)])


@dg.observable_source_asset
def source() -> dg.DataVersion:
    """Observed while others hold the lock."""
    return dg.DataVersion("1")


def make_job() -> dg.JobDefinition:
    """Materialize `made` behind the lock."""
    return job_of("made")


def observe_job() -> dg.JobDefinition:
    """Observe `source`."""
    return job_of("source")


def job_of(asset: str) -> dg.JobDefinition:
    job = dg.define_asset_job("job", [asset])
    serial = executor_of(ArtifactPaths(Path(os.environ[ROOT])))
    definitions = dg.Definitions([made, source], jobs=[job], executor=serial)
    return definitions.resolve_job_def("job")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts folder of all tests here: Dagster caches reconstructed jobs."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def one_instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def instance(
    folder: Path, one_instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance without runs."""
    monkeypatch.setenv(ROOT, str(folder))
    monkeypatch.setattr(executor, "SECONDS_BETWEEN_TRIES", 0.1)
    yield one_instance
    one_instance.wipe()


@pytest.fixture
def held(folder: Path) -> Iterator[FileLock]:
    """The lock of the artifacts folder, held by another run."""
    lock = FileLock(folder / ".ivr.lock", thread_local=False)
    (folder / ".ivr.lock.holder").write_text("ivr run (process 7)")
    with lock:
        yield lock


def logged(instance: dg.DagsterInstance, start: str = "") -> list[str]:
    """The messages of the instance's run that begin with `start`."""
    messages = [entry.user_message for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]
    return [message for message in messages if message.startswith(start)]


def when_waiting(instance: dg.DagsterInstance, action: Callable[[], None], *, messages: int = 1) -> None:
    """Call `action` in a thread, a few tries after the run has logged `messages` times that it waits."""

    def watch() -> None:
        while len(logged(instance, "Waiting")) < messages:
            time.sleep(0.05)
        time.sleep(5 * executor.SECONDS_BETWEEN_TRIES)
        action()

    Thread(target=watch, daemon=True).start()


@pytest.mark.parametrize(("seconds_between_messages", "messages"), [(0.2, 2), (60.0, 1)])
def test_run_waits_for_the_lock_and_logs_its_holder(
    instance: dg.DagsterInstance,
    held: FileLock,
    monkeypatch: pytest.MonkeyPatch,
    seconds_between_messages: float,
    messages: int,
) -> None:
    monkeypatch.setattr(executor, "SECONDS_BETWEEN_MESSAGES", seconds_between_messages)
    when_waiting(instance, held.release, messages=messages)
    with dg.execute_job(dg.reconstructable(make_job), instance) as result:
        assert result.success
    waits = logged(instance, "Waiting")
    assert set(waits) == {"Waiting: the artifacts folder is in use by ivr run (process 7)"}
    assert (len(waits) > 1) == (messages > 1)
    assert f"holder: run {result.run_id[:8]} (process {os.getpid()})" in logged(instance)


def test_waiting_run_can_be_canceled(instance: dg.DagsterInstance, held: FileLock) -> None:
    def cancel() -> None:
        instance.report_run_canceling(instance.get_runs()[0])
        os.kill(os.getpid(), signal.SIGINT)

    when_waiting(instance, cancel)
    with dg.execute_job(dg.reconstructable(make_job), instance) as result:
        assert not result.success
    assert instance.get_runs()[0].status == dg.DagsterRunStatus.CANCELED


def test_observation_does_not_wait(instance: dg.DagsterInstance, held: FileLock) -> None:
    with dg.execute_job(dg.reconstructable(observe_job), instance) as result:
        assert result.success


def test_leftovers_of_a_killed_run_are_repaired(tmp_path: Path) -> None:
    paths = ArtifactPaths(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as killed:
        pass
    old = tmp_path / "training" / ".blocks.old"  # killed between two renames
    leftover = tmp_path / "analysis" / "reports" / f".selection_log.md.{killed.pid}-0a1b2c3d.tmp"
    (old / "data").mkdir(parents=True)
    (leftover / "half").mkdir(parents=True)
    with hold_artifacts(paths, "ivr run"):
        assert (paths["training_blocks"] / "data").is_dir()
        assert not old.exists()
        assert not leftover.exists()
