"""Runs whose process is gone are marked as failed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.definitions import build_definitions
from ivr_dagster.orchestration.dagster_internals import CODE_SERVER_TAG
from ivr_dagster.orchestration.dead_runs import PROCESS_TAG, fail_dead_runs, is_alive, process_identity
from ivr_dagster.orchestration.ownership import claim
from ivr_dagster.settings import Settings


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def dead() -> str:
    """The identity of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = process_identity(process.pid)
    process.kill()
    process.communicate()
    return mark


def started(instance: dg.DagsterInstance, tmp_path: Path, **tags: str) -> str:
    """The id of a started run."""
    job = build_definitions(Settings(), artifacts_dir=tmp_path).resolve_implicit_global_asset_job_def()
    return instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags).run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_run_of_a_killed_command_fails_and_others_continue(
    instance: dg.DagsterInstance, dead: str, tmp_path: Path
) -> None:
    killed = started(instance, tmp_path, **{PROCESS_TAG: dead})
    alive = started(instance, tmp_path, **{PROCESS_TAG: process_identity(os.getpid())})
    reused = started(instance, tmp_path, **{PROCESS_TAG: process_identity(os.getpid()) + "9"})  # its id was reused
    fail_dead_runs(instance, cli_runs_only=True)
    assert status(instance, killed) == dg.DagsterRunStatus.FAILURE
    assert status(instance, alive) == dg.DagsterRunStatus.STARTED
    assert status(instance, reused) == dg.DagsterRunStatus.FAILURE


def test_run_fails_if_its_code_server_is_gone(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    tags = {CODE_SERVER_TAG: json.dumps({"host": "localhost", "socket": str(tmp_path / "gone.sock")})}
    run_id = started(instance, tmp_path, **tags)
    fail_dead_runs(instance, cli_runs_only=True)
    assert status(instance, run_id) == dg.DagsterRunStatus.STARTED
    fail_dead_runs(instance)
    assert status(instance, run_id) == dg.DagsterRunStatus.FAILURE


def test_run_without_a_process_tag_is_left_alone(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = instance.get_run_by_id(started(instance, tmp_path))
    assert run is not None
    assert is_alive(run) is None
    fail_dead_runs(instance)
    assert status(instance, run.run_id) == dg.DagsterRunStatus.STARTED


def test_watch_sources_fails_dead_runs(instance: dg.DagsterInstance, dead: str, tmp_path: Path) -> None:
    killed = started(instance, tmp_path, **{PROCESS_TAG: dead})
    definitions = build_definitions(Settings.of(model_name="sample", preset="sample"), artifacts_dir=tmp_path)
    claim(instance, ArtifactPaths(tmp_path))
    repository = definitions.get_repository_def()
    context = dg.build_sensor_context(
        instance=instance, repository_def=repository, resources=dict(repository.get_top_level_resources())
    )
    repository.get_sensor_def("watch_sources").evaluate_tick(context)
    assert status(instance, killed) == dg.DagsterRunStatus.FAILURE


def test_run_that_the_ui_executes_again_outlives_the_process_of_its_parent(
    instance: dg.DagsterInstance, dead: str, tmp_path: Path
) -> None:
    parent = instance.get_run_by_id(started(instance, tmp_path, **{PROCESS_TAG: dead}))
    assert parent is not None and is_alive(parent) is False
    again = dg.DagsterRun(parent.job_name, tags=parent.tags, parent_run_id=parent.run_id, root_run_id=parent.run_id)
    assert is_alive(again) is None
