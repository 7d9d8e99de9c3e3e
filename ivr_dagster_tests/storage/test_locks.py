"""Locks of artifacts, between real processes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ivr_dagster.storage.locks import Busy, holding

HOLDER = """
import sys
from pathlib import Path
from ivr_dagster.storage.locks import holding

with holding(Path(sys.argv[1]), writes=sys.argv[2].split(), reads=sys.argv[3].split(), who="another one"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, writes: str, reads: str = "") -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder, writes, reads], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("writes", "reads", "free"),
    [("c d", "", True), ("", "b", True), ("b", "", False), ("a", "", False), ("", "a", False), ("c", "a b", False)],
)
def test_one_writer_or_many_readers(tmp_path: Path, writes: str, reads: str, free: bool) -> None:
    with holder(tmp_path, "a", "b") as other:
        try:
            with holding(tmp_path, writes=writes.split(), reads=reads.split(), who="me"):
                assert free
        except Busy as busy:
            assert not free
            assert (busy.name in "ab", busy.holder) == (True, "another one")
        other.communicate("")
    with holding(tmp_path, writes=writes.split(), reads=reads.split(), who="me"):
        pass


def test_what_is_taken_before_a_refusal_is_given_back(tmp_path: Path) -> None:
    with holder(tmp_path, "b") as other:
        with pytest.raises(Busy), holding(tmp_path, writes=["a", "b"], who="me"):
            pass
        with holding(tmp_path, writes=["a"], who="me"):
            pass
        other.communicate("")


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path, "a") as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        with holding(tmp_path, writes=["a"], who="me"):
            pass


def test_it_is_tried_again_until_it_is_free(tmp_path: Path) -> None:
    waits: list[str] = []
    with holder(tmp_path, "a") as other:

        def wait(busy: Busy) -> None:
            waits.append(str(busy))
            if len(waits) == 3:
                other.communicate("")

        with holding(tmp_path, writes=["a"], who="me", wait=wait):
            assert waits == ["another one is at work on a"] * 3
