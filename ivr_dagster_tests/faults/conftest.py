"""Undisturbed runs that others are held against, made once for all workers of a test session."""

import fcntl
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ivr_dagster_tests.faults.harness import Pipeline, Reference

# artifacts lie in memory while they are tested: records are flushed to the disk often
MEMORY = Path("/dev/shm")
ROOM = 1 << 30


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, the same for all its workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def once(shared: Path) -> Callable[[str, Callable[[], Any]], Any]:
    """`once(name, make)`: what `make` returns, made by whichever worker comes first."""

    def get(name: str, make: Callable[[], Any]) -> Any:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = shared / f"{name}.pickle"
            if not kept.exists():
                kept.write_bytes(pickle.dumps(make()))
            return pickle.loads(kept.read_bytes())  # noqa: S301 (written above)

    return get


@pytest.fixture(scope="session")
def pipeline(shared: Path, once: Callable[[str, Callable[[], Any]], Any]) -> Iterator[Pipeline]:
    """A tiny model, corpora and settings."""
    in_memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
    fast = Path(tempfile.mkdtemp(prefix="ivr-faults-", dir=MEMORY if in_memory else None))
    fast.chmod(0o755)
    made = Pipeline(shared, fast)
    once("prepared", made.prepare)
    try:
        yield made
    finally:
        shutil.rmtree(fast, ignore_errors=True)


@pytest.fixture(scope="session")
def first(pipeline: Pipeline, once: Callable[[str, Callable[[], Any]], Any]) -> Reference:
    """A first run, from nothing."""
    found: Reference = once("first", lambda: pipeline.reference(pipeline.settings, name="first"))
    return found


@pytest.fixture(scope="session")
def later(pipeline: Pipeline, first: Reference, once: Callable[[str, Callable[[], Any]], Any]) -> Reference:
    """A run on what the first left, with more text and other settings."""
    found: Reference = once(
        "later", lambda: pipeline.reference(pipeline.later_settings, start=first.folder, name="later")
    )
    return found
