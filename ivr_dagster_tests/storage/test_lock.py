"""The lock between real processes."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ivr_dagster.storage.lock import LockedError, ProcessLock

HOLDER = """
import os, sys
from pathlib import Path
from ivr_dagster.storage.lock import ProcessLock

with ProcessLock(Path(sys.argv[1])).hold("ivr run"):
    if sys.argv[2:] and os.fork() == 0:  # a worker
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> ProcessLock:
    return ProcessLock(tmp_path / "folder" / ".lock")


@pytest.fixture(params=[[], ["fork"]], ids=["alone", "with a forked worker"])
def other(lock: ProcessLock, request: pytest.FixtureRequest) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(lock.file), *request.param]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_lock_held_by_another_process_is_refused_and_names_the_holder(
    lock: ProcessLock, other: "subprocess.Popen[str]"
) -> None:
    holder = f"ivr run (process {other.pid})"
    assert lock.holder() == holder
    with pytest.raises(LockedError, match=re.escape(holder)), lock.hold("me"):
        pass


def test_lock_is_free_after_its_holder_is_killed(lock: ProcessLock, other: "subprocess.Popen[str]") -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    with lock.hold("me", 10):  # a worker closes its copy of the lock when it starts
        pass


def test_lock_waits_for_another_holder(lock: ProcessLock, other: "subprocess.Popen[str]") -> None:
    assert other.stdin is not None
    other.stdin.close()
    with lock.hold("me", 60):
        pass


def test_lock_is_reentrant_and_keeps_the_first_note(lock: ProcessLock) -> None:
    assert lock.holder() is None
    with lock.hold("ivr run"):
        with ProcessLock(lock.file).hold("stage"):
            pass
        assert str(lock.holder()).startswith("ivr run (process ")
    assert lock.holder() is None
