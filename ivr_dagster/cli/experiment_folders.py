"""Experiments: artifacts folders below another one, each with its own settings and Dagster instance.

An experiment starts as a copy of the artifacts, the settings and the records of both, so that only what depends on
changed settings is stale. External artifacts and the raw corpus are read in place.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.cli.instance import instance_at
from ivr_dagster.cli.project import Project, exclusive_use
from ivr_dagster.errors import InputError
from ivr_dagster.orchestration.dagster_internals import (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    INPUT_DATA_VERSION_TAG_PREFIX,
    NULL_EVENT_POINTER,
    check_target,
    get_input_event_pointer_tag,
)
from ivr_dagster.orchestration.sources import source_names
from ivr_dagster.orchestration.staleness import COPIED_FROM_RUN
from ivr_dagster.pipeline import ASSETS, EXTERNAL
from ivr_dagster.settings.groups import TuningSettings
from ivr_dagster.settings.loading import INFO, OUTPUT_PATHS, load_settings, save_settings
from ivr_dagster.storage.atomic import link, remove, remove_leftovers, staging_path
from ivr_dagster.storage.yaml_files import read_settings_yaml

# files of these types are replaced, never changed in place, so that a hard link is as good as a copy
_LINKED_SUFFIXES = {".parquet", ".safetensors", ".arrow"}
# files that only an interrupted training needs
_NOT_COPIED = ("checkpoint-*", "warm_start", "logs")


@dataclass(frozen=True)
class Experiment:
    """An experiment in a comparison.

    Attributes:
        name: the name of its folder; empty for the artifacts folder itself.
        changed: settings that differ from those of the artifacts folder.
        figures: figures of existing artifacts, by asset.
        stale: stale assets.
        fault: the error in its settings, if any; then nothing else is known.
    """

    name: str
    changed: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    fault: str = ""


def create_experiment(parent: Project, name: str, changed: Mapping[str, Any]) -> ArtifactPaths:
    """Copy the artifacts of `parent` into the experiment `name`; it appears as a whole or not at all.

    Args:
        parent: the project to copy.
        name: the experiment's name.
        changed: settings that differ in the experiment.

    Raises:
        InputError: the experiment exists, a name or a setting is invalid, or another process uses the folder.
    """
    folder = parent.paths.experiment(name)
    if folder.exists():
        raise _exists(name, folder)
    if outputs := [setting for setting in changed if setting in OUTPUT_PATHS]:
        raise InputError(
            f"{', '.join(outputs)}: an experiment writes to its own folder only", where=folder, remedy="Leave it out."
        )
    with exclusive_use(parent.paths, f"experiment {name}"):
        events = {asset: parent.last_materialization(asset) for asset in ASSETS if parent.builds(asset)}
        built = {asset: event for asset, event in events.items() if event and parent.paths[asset].exists()}
        remove_leftovers(folder.parent)
        staged = ArtifactPaths(staging_path(folder))
        try:
            staged.root.mkdir()
            _write_settings(parent, staged, changed)
            for asset in built:
                _copy(parent.paths[asset], staged[asset])
            with instance_at(staged.dagster_home) as instance:
                for source in source_names(parent.settings):
                    _record_source(parent, source, instance)
                for asset, event in built.items():
                    _record_asset(parent, asset, event, instance, ArtifactPaths(folder)[asset])
            try:
                staged.root.rename(folder)
            except OSError as error:
                raise _exists(name, folder) from error
        finally:
            remove(staged.root)
    return ArtifactPaths(folder)


def _exists(name: str, folder: Path) -> InputError:
    return InputError(
        f"the experiment {name!r} already exists",
        where=folder,
        remedy=f"Continue it with `ivr --experiment {name} …`, choose another name, or delete the folder.",
    )


def compare_experiments(parent: Project) -> list[Experiment]:
    """The artifacts folder and its experiments, sorted by name."""
    found = [_summarize("", parent, parent)]
    for folder in sorted(parent.paths.experiments.glob("*")):
        if folder.name.startswith(".") or not ArtifactPaths(folder).settings_file.is_file():
            continue
        try:
            settings = load_settings(folder)
            with instance_at(ArtifactPaths(folder).dagster_home) as instance:
                found.append(_summarize(folder.name, Project(settings, folder, instance=instance), parent))
        except InputError as error:
            found.append(Experiment(folder.name, fault=str(error)))
    return found


def _summarize(name: str, project: Project, parent: Project) -> Experiment:
    states = project.states()
    values, original = _comparable_settings(project), _comparable_settings(parent)
    changed = {key: values.get(key) for key in values | original if values.get(key) != original.get(key)}
    figures = {state.name: state.figures for state in states if state.materialized}
    return Experiment(name, changed, figures, [state.name for state in states if state.stale])


def _comparable_settings(project: Project) -> dict[str, Any]:
    """Settings and training settings by flat name, without those of searches and without paths."""
    config = project.settings.sft_config_file()
    training = read_settings_yaml(config, "the training settings", "Fix the file")[0] if config.is_file() else {}
    ignored = {*OUTPUT_PATHS, "raw_corpora_dir", "config_path", *TuningSettings.model_fields}
    values = {name: value for name, value in project.settings.flat().items() if name not in ignored}
    return values | {f"sft_config.{name}": value for name, value in training.items()}


def _write_settings(parent: Project, staged: ArtifactPaths, changed: Mapping[str, Any]) -> None:
    """Write the settings given to the parent with `changed`, and copies of its training and launch settings."""
    unused = {source.setting for name, source in EXTERNAL.items() if name not in parent.paths.external}
    kept = parent.settings.given - {*OUTPUT_PATHS, *unused}
    values = {name: parent.settings.get(name) for name in INFO if name in kept}
    values |= {"raw_corpora_dir": str(parent.paths["raw_corpus"]), **changed}
    if not values.get("config_path"):
        shutil.copyfile(parent.settings.sft_config_file(), staged.sft_config)
    if not values.get("accelerate_config") and parent.paths.accelerate_config.is_file():
        shutil.copyfile(parent.paths.accelerate_config, staged.accelerate_config)
    save_settings(staged.settings_file, dict(sorted(values.items())))
    load_settings(staged.root, environ={})


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_or_copy, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    else:
        _link_or_copy(str(source), str(target))


def _link_or_copy(source: str, target: str) -> str:
    if Path(source).suffix in _LINKED_SUFFIXES:
        link(Path(source), Path(target))  # copies if they are on different file systems
        return target
    return str(shutil.copy2(source, target))


def _record_source(parent: Project, source: str, instance: dg.DagsterInstance) -> None:
    """Record the data version of a source that the copied assets were built from."""
    version = parent.data_version(source)
    if version is not None:
        instance.report_runless_asset_event(dg.AssetObservation(source, tags={DATA_VERSION_TAG: version}))


def _record_asset(
    parent: Project, asset: str, event: dg.EventLogEntry, instance: dg.DagsterInstance, path: Path
) -> None:
    """Record the materialization and the check evaluations of a copied asset."""
    key, built = dg.AssetKey(asset), event.asset_materialization
    if built is None:
        return
    kept = (DATA_VERSION_TAG, CODE_VERSION_TAG, INPUT_DATA_VERSION_TAG_PREFIX)
    tags = {tag: value for tag, value in (built.tags or {}).items() if tag.startswith(kept)}
    for tag in list(tags):  # Dagster's own staleness needs a pointer to the event of each input
        prefix, _, source = tag.rpartition("/")
        if prefix == INPUT_DATA_VERSION_TAG_PREFIX:
            tags[get_input_event_pointer_tag(dg.AssetKey(source))] = _latest_event(instance, source)
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            key,
            description="Copied from the folder in which this experiment was created.",
            metadata={**built.metadata, "path": dg.MetadataValue.path(str(path)), COPIED_FROM_RUN: event.run_id},
            tags=tags,
        )
    )
    target = check_target(instance.fetch_materializations(key, limit=1).records[0])
    for check in parent.check_evaluations(asset):
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=key,
                check_name=check.check_name,
                passed=check.passed,
                metadata=check.metadata,
                target_materialization_data=target,
                severity=check.severity,
                description=check.description,
                blocking=check.blocking,
            )
        )


def _latest_event(instance: dg.DagsterInstance, name: str) -> str:
    """The storage id of the latest event of an asset or a source."""
    key = dg.AssetKey(name)
    found = instance.fetch_materializations(key, limit=1).records or instance.fetch_observations(key, limit=1).records
    return str(found[0].storage_id) if found else NULL_EVENT_POINTER
