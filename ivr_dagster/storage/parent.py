"""Ends a process together with the processes that it works for."""

import os
import signal
import threading
import time

import psutil

SECONDS_BETWEEN_CHECKS = 0.5


def end_with(*pids: int) -> None:
    """End this process with SIGTERM as soon as one of these processes has ended, or if it already has.

    Otherwise a process continues after a hard kill of its parent, and works beside the next run. Call it in the main
    thread.
    """
    # shells start background jobs with SIGINT ignored, Dagster handles SIGTERM like SIGINT, and children inherit that
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while all(map(_is_running, watched)):
            time.sleep(SECONDS_BETWEEN_CHECKS)
        os.kill(os.getpid(), signal.SIGTERM)

    watched = [_find(pid) for pid in pids]
    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def _find(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _is_running(process: psutil.Process | None) -> bool:
    try:
        # is_running recognizes a reused id
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
