"""Marks runs whose process is gone as failed, and frees the pool slots of runs that have ended."""

import json
import socket

import dagster as dg
import psutil

from ivr_dagster.orchestration.dagster_internals import CODE_SERVER_TAG
from ivr_dagster.orchestration.staleness import UNFINISHED

# tag of runs started by the command line: the id and start time of their process
PROCESS_TAG = "ivr/process"


def fail_dead_runs(instance: dg.DagsterInstance, *, cli_runs_only: bool = False) -> None:
    """Mark unfinished runs as failed if their process, or the code server that runs them, is gone.

    Dagster's run monitoring detects this only while the server that launched the run is up. After a power cut, the
    assets of such a run would count as in progress forever.

    Args:
        instance: the instance of the runs.
        cli_runs_only: leave runs launched by a server to Dagster's monitoring.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=[*UNFINISHED])):
        if (_is_cli_run(run) or not cli_runs_only) and is_alive(run) is False:
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            instance.report_run_failed(run, "The process of this run is gone.")


def free_slots_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """Free the pool slots of runs that have ended or are unknown; Dagster's daemon does the same while it is up."""
    storage = instance.event_log_storage
    for pool in storage.get_concurrency_keys():
        info = storage.get_concurrency_info(pool)
        for run_id in info.active_run_ids | info.assigned_run_ids | info.pending_run_ids:
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                storage.free_concurrency_slots_for_run(run_id)


def is_alive(run: dg.DagsterRun) -> bool | None:
    """Whether the process or the code server of a run is alive; None if the run names neither."""
    if _is_cli_run(run):
        process = run.tags[PROCESS_TAG]
        return process_identity(int(process.partition("-")[0])) == process
    path = json.loads(run.tags.get(CODE_SERVER_TAG, "{}")).get("socket")
    if not path:
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _is_cli_run(run: dg.DagsterRun) -> bool:
    """Whether the command line started a run; one that the UI executes again has the tags of its parent."""
    return PROCESS_TAG in run.tags and run.parent_run_id is None


def process_identity(pid: int) -> str:
    """A process's id and start time, since ids are reused; empty if there is no such process."""
    try:
        return f"{pid}-{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
