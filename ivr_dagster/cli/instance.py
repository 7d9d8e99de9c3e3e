"""The Dagster instance of an artifacts folder: its home and its settings."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.orchestration.ownership import claim

INSTANCE_FILE = Path(__file__).with_name("instance.yaml")


def open_instance(paths: ArtifactPaths) -> dg.DagsterInstance:
    """Open the instance in DAGSTER_HOME, by default inside the artifacts folder; writes dagster.yaml if missing.

    Raises:
        InputError: the instance belongs to another artifacts folder.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or paths.dagster_home).expanduser().resolve()
    os.environ["DAGSTER_HOME"] = str(home)
    instance = _open(home)
    claim(instance, paths)
    return instance


@contextmanager
def instance_at(home: Path) -> Iterator[dg.DagsterInstance]:
    """Open the instance in a home folder, regardless of DAGSTER_HOME."""
    instance = _open(home)
    try:
        yield instance
    finally:
        instance.dispose()


def _open(home: Path) -> dg.DagsterInstance:
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copyfile(INSTANCE_FILE, home / "dagster.yaml")
    return dg.DagsterInstance.from_config(str(home))
