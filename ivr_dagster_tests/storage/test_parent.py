"""Processes whose parent is gone."""

import os
import signal
import subprocess
import sys

from ivr_dagster.storage.parent import end_with

ENDLESS = (
    "import sys, time; from ivr_dagster.storage.parent import end_with; end_with(int(sys.argv[1])); time.sleep(60)"
)


def test_a_process_whose_parent_was_gone_before_ends_at_once() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ended = subprocess.run([sys.executable, "-c", ENDLESS, str(gone.pid)], check=False, timeout=30)
    assert ended.returncode == -signal.SIGTERM


def test_process_runs_while_its_parent_lives() -> None:
    end_with(os.getppid())
    child = subprocess.Popen([sys.executable, "-c", ENDLESS, str(os.getpid())])
    try:
        child.wait(2)
    except subprocess.TimeoutExpired:
        return
    finally:
        child.kill()
        child.wait()
    raise AssertionError(f"it ended with {child.returncode}")
