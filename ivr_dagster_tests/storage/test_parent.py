"""Processes whose parent is gone."""

import os
import signal
import subprocess
import sys

import pytest

from ivr_dagster.storage.parent import end_with

ENDLESS = (
    "import sys, time; from ivr_dagster.storage.parent import end_with; end_with(int(sys.argv[1])); time.sleep(60)"
)


@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_process_whose_parent_was_gone_before_ends_at_once(inherited: signal.Handlers) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    before = signal.signal(signal.SIGTERM, inherited)
    try:
        child = subprocess.Popen([sys.executable, "-c", ENDLESS, str(gone.pid)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert child.wait(30) == -signal.SIGTERM


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
