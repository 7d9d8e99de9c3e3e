"""The Dagster instance of an artifacts folder: its home, its settings, and the folder that it belongs to."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.errors import InputError
from ivr_dagster.orchestration.dagster_internals import stores_runs_in_home

# the key under which an instance stores the artifacts folder that it belongs to
OWNER_KEY = "ivr/artifacts"
INSTANCE_FILE = Path(__file__).with_name("instance.yaml")


def open_instance(paths: ArtifactPaths) -> dg.DagsterInstance:
    """Open the instance in DAGSTER_HOME, by default inside the artifacts folder; writes dagster.yaml if missing.

    Raises:
        InputError: the instance belongs to another artifacts folder.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or paths.dagster_home).expanduser().resolve()
    os.environ["DAGSTER_HOME"] = str(home)
    instance = _open(home)
    # an instance inside an artifacts folder belongs to it, even after the folder was copied or moved
    is_inside = home == paths.dagster_home.resolve() and stores_runs_in_home(instance)
    _claim(instance, paths.root, from_any_owner=is_inside)
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


def _claim(instance: dg.DagsterInstance, root: Path, *, from_any_owner: bool) -> None:
    """Record the artifacts folder as the instance's owner, since Dagster identifies assets by name, not by path."""
    storage = instance.run_storage
    owner = storage.get_cursor_values({OWNER_KEY}).get(OWNER_KEY)
    if owner == str(root):
        return
    if owner is not None and Path(owner).is_dir() and not from_any_owner:
        raise InputError(
            f"{root} was requested, but this Dagster instance holds the assets of {owner}",
            where=os.environ["DAGSTER_HOME"],
            remedy="Use a separate DAGSTER_HOME and database for each artifacts folder, or unset DAGSTER_HOME to keep "
            "the instance in the artifacts folder.",
        )
    storage.set_cursor_values({OWNER_KEY: str(root)})
