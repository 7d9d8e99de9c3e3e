"""The settings as a Dagster resource, so that the launchpad shows every key with its value and description."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from pydantic import Field

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.atomic import remove, staging_path
from ivr_dagster.settings import Settings


class SettingsResource(dg.ConfigurableResource, Settings):
    """Settings of this artifacts folder: option, environment, settings file, preset, default, in this order."""

    artifacts_dir: str = Field(description="The artifacts folder, absolute.")

    @property
    def places(self) -> ArtifactPaths:
        """Where artifacts lie."""
        return self.paths(Path(self.artifacts_dir))

    @contextmanager
    def staged(self, asset: str) -> Iterator[Path]:
        """An empty folder beside the place of `asset`, removed if the block fails; its IO manager gives it its place."""
        folder = staging_path(self.places[asset])
        try:
            folder.mkdir()
            yield folder
        except BaseException:
            remove(folder)
            raise
