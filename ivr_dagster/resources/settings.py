"""The settings as a Dagster resource: assets read them by group, the launchpad shows every setting as a field."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import PrivateAttr, create_model

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.training.launch_settings import Launch, read_accelerate_config
from ivr_dagster.core.training.sft_config import DEFAULTS
from ivr_dagster.engines.local import map_local
from ivr_dagster.engines.ray import map_on_ray
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import OTHER_CORPORA, changed_values, settings_of
from ivr_dagster.sample import SAMPLE_SFT_CONFIG
from ivr_dagster.settings.loading import FIELDS, Settings, settings_for_one_run
from ivr_dagster.storage.atomic import remove, staging_path
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.shard_cache import Map

# what the selection depends on only if `max_candidates` is `auto`
AUTO_SETTINGS = ("least_saving", "least_occurrences", "train_bytes")


class InvalidLaunchError(dg.DagsterError):
    """Invalid settings in the launchpad. A Dagster error, so that the UI shows the message as it is."""


class ProjectSettings(Settings):
    """The settings of one run, and what follows from them in this artifacts folder."""

    artifacts_dir: Path
    _regular: "ProjectSettings | None" = PrivateAttr(None)

    @classmethod
    def in_folder(cls, settings: Settings, artifacts_dir: Path) -> "ProjectSettings":
        """`settings` for the artifacts folder `artifacts_dir`."""
        groups = {name: getattr(settings, name) for name in Settings.model_fields}
        project = cls.model_construct(**groups, artifacts_dir=artifacts_dir.expanduser().resolve())
        project._given = settings.given
        return project

    def one_off(self, asset: str) -> list[str]:
        """What the launchpad changed for this run among the settings that an asset depends on, `name: from -> to`."""
        return changed_values(self._regular.values_for(asset), self.values_for(asset)) if self._regular else []

    @cached_property
    def paths(self) -> ArtifactPaths:
        """Where artifacts lie."""
        return ArtifactPaths.of(self, self.artifacts_dir)

    def sft_config_file(self) -> Path:
        """The training settings: `config_path`, else the file in the artifacts folder, else the packaged one."""
        if self.training.config_path:
            return Path(self.training.config_path).expanduser()
        if self.paths.sft_config.is_file():
            return self.paths.sft_config
        return SAMPLE_SFT_CONFIG if self.preset == "sample" else DEFAULTS

    def launch(self) -> Launch:
        """The launch settings: `accelerate_config`, else the file in the artifacts folder, else one process.

        Raises:
            InputError: the file is invalid.
        """
        if self.training.accelerate_config:
            return read_accelerate_config(Path(self.training.accelerate_config).expanduser())
        file = self.paths.accelerate_config
        return read_accelerate_config(file) if file.is_file() else Launch()

    @property
    def map_shards(self) -> Map:
        """Maps a function over corpus shards: on the cores of this machine or on a Ray cluster (`engine`)."""
        return map_local if self.compute.engine == "local" else partial(map_on_ray, address=self.compute.ray_address)

    @property
    def other_corpora(self) -> dict[str, Path]:
        """The resolved folders of out-of-domain text that the settings name and use, by source asset."""
        used = {"general_corpus": self.training.general_share, "retention_corpus": self.evaluation.retention_bytes}
        folders = {source: self.get(setting) for source, setting in OTHER_CORPORA.items() if used[source]}
        return {source: Path(folder).expanduser().resolve() for source, folder in folders.items() if folder}

    def uses_sample_code(self) -> bool:
        """Whether code of the standard library is mixed into training: under the sample preset, without other text."""
        return self.preset == "sample" and self.training.general_share > 0 and not self.training.general_corpora_dir

    def values_for(self, asset: str) -> dict[str, Any]:
        """The values of the settings that an asset depends on, by name.

        The content of the training settings file stands for its path (`sft_config`). Of the launch settings only the
        dtype matters (`arithmetic`), since the number of processes changes results in rounding only. `AUTO_SETTINGS`
        matter only if they decide the number of new tokens. Without a folder for it, out-of-domain text depends on the
        version of Python.
        """
        values: dict[str, Any] = {}
        for name in sorted(settings_of(asset)):
            if name == "config_path":
                file = self.sft_config_file()
                content = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
                values["sft_config"] = "missing" if content is None else content_hash(content)[:8]
            elif name == "accelerate_config":
                if arithmetic := self._launch_arithmetic():
                    values["arithmetic"] = arithmetic
            else:
                values[name] = self.get(name)
        if asset == "replacement_candidates" and self.selection.max_candidates:
            for name in AUTO_SETTINGS:
                del values[name]
        if asset == "evaluation_report" and self.evaluation.retention_bytes and not values["retention_corpora_dir"]:
            values["retention_corpora_dir"] = f"documentation of Python {platform.python_version()}"
        if "general_corpora_dir" in values and self.uses_sample_code():
            values["general_corpora_dir"] = f"code of Python {platform.python_version()}"
        return values

    def _launch_arithmetic(self) -> str:
        """The dtype, or the device that decides it, that the launch settings choose; empty if they do not."""
        if self.compute.dtype != "auto":
            return ""
        try:
            launch = self.launch()
        except InputError:  # reported when training starts
            return ""
        return launch.dtype or (launch.device if self.compute.device == "auto" else "")

    @contextmanager
    def staging(self, asset: str) -> Iterator[Path]:
        """An empty folder next to the asset's artifact; its IO manager renames it into place. Removed on errors."""
        folder = staging_path(self.paths[asset])
        try:
            folder.mkdir()
            yield folder
        except BaseException:
            remove(folder)
            raise


SettingsResource = dg.ResourceParam[ProjectSettings]


def settings_resource(project: ProjectSettings) -> dg.ResourceDefinition:
    """The resource `settings`: `project`, with the values that the launchpad changes for one run.

    Every setting is a field of the launchpad. Values are checked before a run is launched.
    """
    fields: dict[str, Any] = {}
    for name, declared in FIELDS.items():
        field = copy(declared)
        field.default, field.json_schema_extra = project.get(name), None
        fields[name] = (field.annotation, field)
    schema: type[dg.Config] = create_model("SettingsConfig", __base__=dg.Config, **fields)

    def check(values: dict[str, Any]) -> dict[str, Any]:
        try:
            return settings_for_one_run(project, values).flat()
        except InputError as error:
            raise InvalidLaunchError(str(error)) from None

    def create(context: dg.InitResourceContext) -> ProjectSettings:
        values = settings_for_one_run(project, context.resource_config)
        settings = ProjectSettings.in_folder(values, project.artifacts_dir)
        settings._regular = project
        return settings

    create.__name__ = ProjectSettings.__name__  # the type that the UI shows
    definition = dg.ResourceDefinition(create, config_schema=dg.Permissive())  # type: ignore[no-untyped-call]
    return definition.configured(check, config_schema=schema.to_fields_dict(), description=ProjectSettings.__doc__)
