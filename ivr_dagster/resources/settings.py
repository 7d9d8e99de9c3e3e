"""The settings as a Dagster resource, so that the launchpad shows every key with its value and description."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from pydantic import Field

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.atomic import remove, staging_path
from ivr_dagster.core.training.sft_config import DEFAULTS
from ivr_dagster.sample import SAMPLE_SFT_CONFIG
from ivr_dagster.settings import Settings


class SettingsResource(dg.ConfigurableResource, Settings):  # type: ignore[type-arg]
    """Settings of this artifacts folder: option, environment, settings file, preset, default, in this order."""

    artifacts_dir: str = Field(description="The artifacts folder, absolute.")

    @property
    def places(self) -> ArtifactPaths:
        """Where artifacts lie."""
        return self.paths(Path(self.artifacts_dir))

    def sft_config_file(self) -> Path:
        """The training settings: what `config_path` names, else the file below the artifacts, else the packaged one."""
        if self.config_path:
            return Path(self.config_path).expanduser()
        if self.places.sft_config.is_file():
            return self.places.sft_config
        return SAMPLE_SFT_CONFIG if self.preset == "sample" else DEFAULTS

    @contextmanager
    def staged(self, asset: str) -> Iterator[Path]:
        """An empty folder beside the place of `asset`, where its IO manager will put it; removed if the block fails."""
        folder = staging_path(self.places[asset])
        try:
            folder.mkdir()
            yield folder
        except BaseException:
            remove(folder)
            raise
