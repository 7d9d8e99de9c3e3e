"""Which artifacts folder a Dagster instance belongs to, since Dagster identifies assets by name, not by path."""

from pathlib import Path

import dagster as dg

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.errors import InputError
from ivr_dagster.orchestration.dagster_internals import stores_runs_in_home

# the key under which an instance stores the artifacts folder that it belongs to
OWNER_KEY = "ivr/artifacts"


def belongs_to(instance: dg.DagsterInstance, paths: ArtifactPaths) -> bool:
    """Whether the assets of an instance are those of an artifacts folder.

    An instance inside an artifacts folder belongs to it, even after the folder was copied or moved.
    """
    return _owner(instance) == str(paths.root) or _is_inside(instance, paths)


def claim(instance: dg.DagsterInstance, paths: ArtifactPaths) -> None:
    """Record the artifacts folder as the owner of an instance.

    Raises:
        InputError: the instance belongs to another artifacts folder.
    """
    owner = _owner(instance)
    if owner == str(paths.root):
        return
    if owner is not None and Path(owner).is_dir() and not _is_inside(instance, paths):
        raise InputError(
            f"{paths.root} was requested, but this Dagster instance holds the assets of {owner}",
            where=instance.root_directory,
            remedy="Use a separate DAGSTER_HOME and database for each artifacts folder, or unset DAGSTER_HOME to keep "
            "the instance in the artifacts folder.",
        )
    instance.run_storage.set_cursor_values({OWNER_KEY: str(paths.root)})


def how_to_start(paths: ArtifactPaths) -> str:
    """How to open the UI of an artifacts folder with its own instance."""
    return (
        f"start the UI with `ivr --artifacts-dir {paths.root} ui`, or set IVR_ARTIFACTS_DIR={paths.root} and "
        f"DAGSTER_HOME={paths.dagster_home}"
    )


def _owner(instance: dg.DagsterInstance) -> str | None:
    return instance.run_storage.get_cursor_values({OWNER_KEY}).get(OWNER_KEY)


def _is_inside(instance: dg.DagsterInstance, paths: ArtifactPaths) -> bool:
    return stores_runs_in_home(instance) and Path(instance.root_directory).resolve() == paths.dagster_home.resolve()
