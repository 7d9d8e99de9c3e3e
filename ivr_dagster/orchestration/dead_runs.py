"""Runs whose process is gone: they are marked as failed, and their concurrency slots are freed."""

import json
import socket

import dagster as dg
import psutil
from dagster._core.storage.tags import GRPC_INFO_TAG

from ivr_dagster.orchestration.staleness import UNFINISHED

# the process of a run that an `ivr` command started: its number and start time
PROCESS_TAG = "ivr/process"


def fail_dead_runs(instance: dg.DagsterInstance, *, of_commands_alone: bool = False) -> None:
    """Mark runs as failed whose process is gone.

    A run of a command is identified by its process, a run of the UI by its code server, which ends its runs when it
    stops. Dagster's monitoring detects a dead run only while the server that launched it is alive; without this, assets
    would count as in progress forever after a power failure.

    Args:
        instance: the Dagster instance.
        of_commands_alone: skip the runs of servers, which Dagster monitors.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=[*UNFINISHED])):
        if of_commands_alone and PROCESS_TAG not in run.tags:
            continue
        if is_alive(run) is False:
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            instance.report_run_failed(run, "its process is gone")


def free_slots_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """Free the concurrency slots of finished and deleted runs, as Dagster's daemon does while it runs."""
    storage = instance.event_log_storage
    for pool in storage.get_concurrency_keys():
        info = storage.get_concurrency_info(pool)
        for run_id in info.active_run_ids | info.assigned_run_ids | info.pending_run_ids:
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                storage.free_concurrency_slots_for_run(run_id)


def is_alive(run: dg.DagsterRun) -> bool | None:
    """Whether the process of a run exists; None if the run does not name one."""
    mark, server = run.tags.get(PROCESS_TAG), json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    if mark is not None:
        return process_mark(int(mark.partition("-")[0])) == mark
    if not server.get("socket"):
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(server["socket"])
        except OSError:
            return False
    return True


def process_mark(number: int) -> str:
    """Number and start time of a process, empty if it is gone: the system reuses numbers."""
    try:
        return f"{number}-{psutil.Process(number).create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
