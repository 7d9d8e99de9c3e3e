"""Processing items in local processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ivr_dagster.engines import local
from ivr_dagster.engines.local import map_local
from ivr_dagster.errors import InputError, WorkerLostError


def square(number: int) -> tuple[int, int]:
    time.sleep(0.02)
    return number * number, os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise InputError("no threes", where="here", remedy="Take another")
    return number


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MIN_POOL_SECONDS", 0.0)
    monkeypatch.setattr(local, "available_cores", lambda: 2)


@pytest.mark.usefixtures("eager")
def test_results_are_in_order_and_from_several_processes() -> None:
    results = list(map_local(square, range(12)))
    assert [result for result, _ in results] == [n * n for n in range(12)]
    assert 1 < len({process for _, process in results}) <= 3


def test_short_work_stays_in_this_process() -> None:
    assert {process for _, process in map_local(square, range(5))} == {os.getpid()}


@pytest.mark.usefixtures("eager")
def test_worker_error_is_raised_after_the_results_before_it() -> None:
    results = map_local(fail_at_three, range(40))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match=r"here: no threes\. Take another"):
        next(results)


def fail_first_or_write(item: tuple[int, Path]) -> None:
    number, folder = item
    if number == 1:
        raise InputError("no ones", where="here", remedy="Take another")
    time.sleep(0.5)
    (folder / str(number)).touch()


@pytest.mark.usefixtures("eager")
def test_error_waits_for_running_items_and_cancels_the_rest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ones"):
        list(map_local(fail_first_or_write, [(number, tmp_path) for number in range(40)]))
    written = set(tmp_path.iterdir())
    assert tmp_path / "0" in written and len(written) < 20
    time.sleep(1)
    assert set(tmp_path.iterdir()) == written


@pytest.mark.usefixtures("eager")
def test_dead_worker_is_reported_with_a_remedy() -> None:
    with pytest.raises(WorkerLostError, match=r"ended \(killed, or out of memory\).*Split the largest files"):
        list(map_local(eval, ["1", "2", "__import__('os')._exit(1)", "4"]))


def test_no_items_give_no_results() -> None:
    assert list(map_local(square, [])) == []


SLEEPERS = """
import time
from ivr_dagster.engines import local

def sleep_long(number):
    time.sleep(1 if number == 0 else 60)

if __name__ == "__main__":
    local.MIN_POOL_SECONDS = 0.0
    local.available_cores = lambda: 2
    list(local.map_local(sleep_long, range(5)))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    parent = subprocess.Popen([sys.executable, str(script)])
    process = psutil.Process(parent.pid)
    deadline = time.monotonic() + 60
    while len(workers := process.children(recursive=True)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
