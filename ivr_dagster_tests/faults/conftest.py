"""Undisturbed runs, made once for all processes of a test session, and the command line run in this process."""

import fcntl
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ivr_dagster.cli.app import main
from ivr_dagster_tests.faults.harness import Pipeline, Reference

MEMORY = Path("/dev/shm")
NEEDED_BYTES = 1 << 30

Once = Callable[[str, Callable[[], Any]], Any]
# exit code, standard output, lines on standard error
Ivr = Callable[..., tuple[int, str, list[str]]]
AssertRejected = Callable[..., None]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test session share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def once(shared: Path) -> Once:
    """`once(name, make)` returns what `make` returns; only the first process calls it."""

    def get(name: str, make: Callable[[], Any]) -> Any:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = shared / f"{name}.pickle"
            if not kept.exists():
                kept.write_bytes(pickle.dumps(make()))
            return pickle.loads(kept.read_bytes())  # noqa: S301 (written above)

    return get


@pytest.fixture(scope="session")
def pipeline(shared: Path, once: Once) -> Iterator[Pipeline]:
    """A tiny model, corpora and settings. Artifacts are kept in memory if possible: Dagster syncs its records often."""
    in_memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > NEEDED_BYTES
    fast = Path(tempfile.mkdtemp(prefix="ivr-faults-", dir=MEMORY if in_memory else None))
    fast.chmod(0o755)
    made = Pipeline(shared, fast)
    once("prepared", made.prepare)
    try:
        yield made
    finally:
        shutil.rmtree(fast, ignore_errors=True)


@pytest.fixture(scope="session")
def first(pipeline: Pipeline, once: Once) -> Reference:
    """An undisturbed run in an empty folder."""
    reference: Reference = once("first", lambda: pipeline.run_reference(pipeline.settings, name="first"))
    return reference


@pytest.fixture(scope="session")
def later(pipeline: Pipeline, first: Reference, once: Once) -> Reference:
    """An undisturbed run that updates the artifacts of `first` after more text and other settings."""
    reference: Reference = once(
        "later", lambda: pipeline.run_reference(pipeline.later_settings, start=first.folder, name="later")
    )
    return reference


def run_cli(artifacts: Path, *arguments: str, environment: dict[str, str] | None = None) -> int:
    """Run `ivr --artifacts-dir ARTIFACTS ARGUMENTS` in this process; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("IVR_", "DAGSTER_"))]:
            patch.delenv(name)
        for name, value in {"HF_HUB_OFFLINE": "1", "DAGSTER_HOME": "", **(environment or {})}.items():
            patch.setenv(name, value)
        os.environ.pop("DAGSTER_HOME")  # set by the command, restored by `patch`
        patch.setattr("sys.argv", ["ivr", "--artifacts-dir", str(artifacts), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(str(ended.value.code))


@pytest.fixture
def ivr(capfd: pytest.CaptureFixture[str]) -> Ivr:
    """`ivr(artifacts, *arguments, environment=…)` returns exit code, standard output and lines on standard error."""

    def run(artifacts: Path, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, list[str]]:
        capfd.readouterr()
        code = run_cli(artifacts, *arguments, environment=environment)
        captured = capfd.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


@pytest.fixture
def assert_rejected(ivr: Ivr) -> AssertRejected:
    """`assert_rejected(artifacts, arguments, parts)`: exit code 2, one error with these parts, nothing changed.

    Warnings, and progress on a busy machine, may precede the error, which is one line and the last one.
    """

    def check(
        artifacts: Path, arguments: Sequence[str], parts: Sequence[str], environment: dict[str, str] | None = None
    ) -> None:
        before = read_files(artifacts)
        code, out, lines = ivr(artifacts, *arguments, environment=environment)
        assert (code, out) == (2, ""), lines
        error = lines[-1]
        assert [line for line in lines if line.startswith("ivr: ")] == [error], lines
        assert len(error) < 4_000
        for part in parts:
            assert part in error
        assert read_files(artifacts) == before

    return check


def read_files(folder: Path) -> dict[str, bytes]:
    """All files except Dagster's records, the shard cache and locks."""
    ignored = {".dagster", ".shards", ".ivr.lock", ".ivr.lock.holder"}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in files if not ignored & {*path.relative_to(folder).parts}}
