"""The settings as a Dagster resource, so that the launchpad shows every key with its value and description."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
from pydantic import Field, create_model

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.atomic import remove, staging_path
from ivr_dagster.core.training.sft_config import DEFAULTS
from ivr_dagster.sample import SAMPLE_SFT_CONFIG
from ivr_dagster.settings import Settings

Resource = TypeVar("Resource", bound=dg.ConfigurableResource)  # type: ignore[type-arg]


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


def with_defaults(kind: type[Resource], **values: Any) -> Resource:
    """A resource with these values, which are its defaults too.

    Dagster takes a class's defaults for whatever a launchpad's configuration leaves out: with those of the class, one
    setting changed for one run would put all others back to what they are without a settings file.
    """
    fields: dict[str, Any] = {}
    for key, known in kind.model_fields.items():
        field = copy(known)
        field.default = values[key]
        fields[key] = (known.annotation, field)
    made: type[Resource] = create_model(kind.__name__, __base__=kind, **fields)
    return made(**values)
