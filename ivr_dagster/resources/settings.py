"""The settings as a Dagster resource, so that the launchpad shows every key with its value and description."""

import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import Field, create_model

from ivr_dagster.pipeline import ArtifactPaths
from ivr_dagster.core.training.launch import Launch, read_accelerate_config
from ivr_dagster.core.training.sft_config import DEFAULTS
from ivr_dagster.engines.local import map_local
from ivr_dagster.engines.ray import map_on_ray
from ivr_dagster.errors import InputError
from ivr_dagster.sample import SAMPLE_SFT_CONFIG
from ivr_dagster.settings import CHOICES, Settings, settings_for_one_run
from ivr_dagster.storage.atomic import remove, staging_path
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.shard_cache import Map

# stands for the content of sft_config.yaml among the settings an asset depends on
SFT_CONFIG = "sft_config"
# and this for what accelerate_config.yaml decides of arithmetic
ARITHMETIC = "arithmetic"
# looked at together for cycles; Python's own 700 take a quarter of the time of a selection
YOUNG_OBJECTS = 200_000


class LaunchRefused(dg.DagsterError):
    """A run is not launched, and why; an error of Dagster's own kind, which the UI shows as it is."""


class SettingsResource(dg.ConfigurableResource, Settings):  # type: ignore[type-arg]
    """Settings of this artifacts folder: option, environment, settings file, preset, default, in this order."""

    artifacts_dir: str = Field(description="The artifacts folder, absolute.")

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Have the process look for reference cycles less often: steps make millions of strings, and hardly a cycle."""
        gc.set_threshold(YOUNG_OBJECTS, 20, 20)

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

    def launch(self) -> Launch:
        """On how many processes to train: what `accelerate_config` names, else the file below the artifacts, else one.

        Raises:
            InputError: the file is at fault.
        """
        if self.accelerate_config:
            return read_accelerate_config(Path(self.accelerate_config).expanduser())
        file = self.places.accelerate_config
        return read_accelerate_config(file) if file.is_file() else Launch()

    def launch_arithmetic(self) -> str:
        """The dtype or device that the launch settings decide on, empty where the settings do, or `auto`.

        A device alone decides where the dtype is left to it; otherwise results differ in rounding only.
        """
        if self.dtype != "auto":
            return ""
        try:
            launch = self.launch()
        except InputError:  # told by what trains
            return ""
        return launch.dtype or (launch.device if self.device == "auto" else "")

    @property
    def map_shards(self) -> Map:
        """What works on shards of the corpus: the cores of this machine, or a Ray cluster (`engine`)."""
        return map_local if self.engine == "local" else partial(map_on_ray, address=self.ray_address)

    def text_beside(self, setting: str) -> Path | None:
        """The folder of text beside the corpus that `setting` names, resolved; None where none is asked for."""
        wanted = self.general_share if setting == "general_corpora_dir" else self.retention_bytes
        folder = getattr(self, setting)
        return Path(folder).expanduser().resolve() if folder and wanted else None

    def values_of(self, keys: Collection[str]) -> dict[str, Any]:
        """The values of settings that an asset depends on.

        Of `sft_config` the content's hash stands for it; `arithmetic` is only there where launch settings decide it.
        """
        values = {key: getattr(self, key) for key in sorted(keys) if key not in (SFT_CONFIG, ARITHMETIC)}
        if SFT_CONFIG in keys:
            file = self.sft_config_file()
            values[SFT_CONFIG] = (
                content_hash(file.read_text(encoding="utf-8", errors="replace"))[:8] if file.is_file() else "missing"
            )
        if ARITHMETIC in keys and (decided := self.launch_arithmetic()):
            values[ARITHMETIC] = decided
        return values

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


def with_defaults(**values: Any) -> SettingsResource:
    """The settings with these values, which are their defaults too.

    Dagster takes a class's defaults for whatever a launchpad's configuration leaves out: with those of the class, one
    setting changed for one run would put all others back to what they are without a settings file. Choices become
    types, so that the launchpad offers them.
    """
    fields: dict[str, Any] = {}
    for key, known in SettingsResource.model_fields.items():
        field = copy(known)
        field.default = values[key]
        fields[key] = (Literal[CHOICES[key]] if key in CHOICES else known.annotation, field)
    made: type[SettingsResource] = create_model(SettingsResource.__name__, __base__=SettingsResource, **fields)
    return made(**values)


def checked_at_launch(settings: SettingsResource, known: Settings) -> dg.ResourceDefinition:
    """The settings as a resource whose values, where the launchpad gives some, are looked at before a run is launched.

    A fault is told then and nothing is launched. `known` are the settings as they were read, which tell the given from
    defaults.
    """
    definition = settings.get_resource_definition()

    def for_one_run(given: dict[str, Any]) -> dict[str, Any]:
        try:
            return settings_for_one_run(known, given).model_dump() | {"artifacts_dir": settings.artifacts_dir}
        except InputError as error:
            raise LaunchRefused(str(error)) from None

    fields = {key: field for key, field in _fields(definition).items() if key != "artifacts_dir"}
    return definition.configured(for_one_run, config_schema=fields, description=definition.description)


def _fields(definition: dg.ResourceDefinition) -> dict[str, dg.Field]:
    known: Any = definition.config_field
    return dict(known.config_type.fields)
