"""Presence is seen from other processes, and ends with its holder."""

import signal
import subprocess
import sys
from pathlib import Path

from ivr_dagster.storage.presence import alone, anybody, present


def test_presence_begins_and_ends_with_the_block_and_several_may_be_present(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "lock"
    assert not anybody(file)
    with present(file), present(file):
        assert anybody(file)
    assert not anybody(file)


def test_the_presence_of_a_killed_process_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from ivr_dagster.storage.presence import present\n"
        "with present(Path(sys.argv[1])): print('here', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "here\n"
    assert anybody(file)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not anybody(file)


def test_one_at_a_time_is_alone_and_the_next_once_it_has_gone(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "lock"
    with alone(file, 0) as first, alone(file, 0.2) as second:
        assert (first, second) == (True, False)
    with alone(file, 0) as third:
        assert third
