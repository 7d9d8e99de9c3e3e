"""Runs whose process is gone: they are marked as failed, and what they held is given back."""

import json
import socket

import dagster as dg
import psutil
from dagster._core.storage.tags import GRPC_INFO_TAG

from ivr_dagster.orchestration.staleness import UNFINISHED

# the process of a run that the command line started, by number and start time
PROCESS_TAG = "ivr/process"


def fail_dead_runs(instance: dg.DagsterInstance, *, of_commands_alone: bool = False) -> None:
    """Mark runs as failed that no process works on any more.

    A run of the command line is known by its process, one of a server by the server, which takes its runs with it.
    Dagster's own monitoring sees a run's end only while the server that launched it lives; without this, assets of a
    run that a power cut ended would be being made for ever.

    Args:
        instance: which remembers runs.
        of_commands_alone: leave those of servers to Dagster's monitoring.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=[*UNFINISHED])):
        if of_commands_alone and PROCESS_TAG not in run.tags:
            continue
        if lives(run) is False:
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            instance.report_run_failed(run, "its process is gone")


def free_slots_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """Give back places in pools that runs hold which have ended, or are not known any more.

    Dagster's daemon does so too, while there is one.
    """
    storage = instance.event_log_storage
    for pool in storage.get_concurrency_keys():
        info = storage.get_concurrency_info(pool)
        for run_id in info.active_run_ids | info.assigned_run_ids | info.pending_run_ids:
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                storage.free_concurrency_slots_for_run(run_id)


def lives(run: dg.DagsterRun) -> bool | None:
    """Whether a process works on a run; None where nothing tells which."""
    mark, server = run.tags.get(PROCESS_TAG), json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    if mark is not None:
        return process_mark(int(mark.partition("-")[0])) == mark
    place = server.get("socket")
    if not place:
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(place)
        except OSError:
            return False
    return True


def process_mark(number: int) -> str:
    """A process by number and start: numbers are used again."""
    try:
        return f"{number}-{psutil.Process(number).create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
