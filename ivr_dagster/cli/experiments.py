"""Experiments: artifacts folders of their own, below the one they were taken from, so that none treads on another.

An experiment begins as a copy: the artifacts, the settings, and what the Dagster instance knows of both. Under other
settings only what depends on them is stale then. What a person brought, and the raw corpus, are read where they lie.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.cli.workbench import Workbench, exclusive_use, instance_at
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
from ivr_dagster.pipeline import ASSETS, EXTERNAL, ArtifactPaths
from ivr_dagster.settings.loading import OUTPUT_PATHS, load_settings, save_settings
from ivr_dagster.storage.atomic import link, remove, remove_leftovers, staging_path
from ivr_dagster.storage.yaml_files import read_settings_yaml

# written whole under a temporary name and renamed, never changed in their place: a second name costs no space
_NEVER_CHANGED = {".parquet", ".safetensors", ".arrow"}
# of a training, what is gone on with after a stop
_LEFT_OUT = ("checkpoint-*", "warm_start", "logs")


@dataclass(frozen=True)
class Experiment:
    """An experiment beside others.

    Attributes:
        name: its folder's name, empty for the folder that they were taken from.
        changed: settings by key that differ from those of that folder.
        figures: figures by asset, of what is there.
        stale: assets that are.
        fault: what is wrong with its settings, if something is; then nothing else is known.
    """

    name: str
    changed: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    fault: str = ""


def begin(parent: Workbench, name: str, given: Mapping[str, Any]) -> ArtifactPaths:
    """Make the experiment `name` out of what `parent` has made; it appears whole or not at all.

    Args:
        parent: the assets that it begins with, and their settings.
        name: its name.
        given: settings by key that it has otherwise.

    Raises:
        InputError: there is one of that name, the name or a setting is at fault, or another process uses the folder.
    """
    place = parent.paths.experiment(name)
    if place.exists():
        raise _taken(name, place)
    misplaced = [key for key in given if key in OUTPUT_PATHS]
    if misplaced:
        raise InputError(
            f"{', '.join(misplaced)}: an experiment writes below its own folder", where=place, remedy="Leave it out."
        )
    with exclusive_use(parent.paths, f"experiment {name}"):
        known = {asset: parent.last_made(asset) for asset in ASSETS if parent.makes(asset)}
        assets = {asset: event for asset, event in known.items() if event and parent.paths[asset].exists()}
        remove_leftovers(place.parent)
        staged = ArtifactPaths(staging_path(place))
        try:
            staged.root.mkdir()
            _write_settings(parent, staged, given)
            for asset in assets:
                _copy(parent.paths[asset], staged[asset])
            with instance_at(staged.dagster_home) as instance:
                for source in source_names(parent.shared):
                    _report_source(parent, source, instance)
                for asset, event in assets.items():
                    _report(parent, asset, event, instance, ArtifactPaths(place)[asset])
            try:
                staged.root.rename(place)
            except OSError as error:
                raise _taken(name, place) from error
        finally:
            remove(staged.root)
    return ArtifactPaths(place)


def _taken(name: str, place: Path) -> InputError:
    return InputError(
        f"there is an experiment {name!r} already",
        where=place,
        remedy=f"Go on with it by `ivr --experiment {name} …`, take another name, or delete the folder.",
    )


def compare(parent: Workbench) -> list[Experiment]:
    """The artifacts folder and its experiments with the figures that each has, in the order of names."""
    found = [_seen("", parent, parent)]
    for folder in sorted(parent.paths.experiments.glob("*")):
        if folder.name.startswith(".") or not ArtifactPaths(folder).settings_file.is_file():
            continue
        try:
            settings = load_settings(folder)
            with instance_at(ArtifactPaths(folder).dagster_home) as instance:
                found.append(_seen(folder.name, Workbench(settings, folder, instance=instance), parent))
        except InputError as error:
            found.append(Experiment(folder.name, fault=str(error)))
    return found


def _seen(name: str, bench: Workbench, parent: Workbench) -> Experiment:
    states = bench.states()
    theirs, ours = _shown_settings(bench), _shown_settings(parent)
    changed = {key: theirs.get(key) for key in theirs | ours if theirs.get(key) != ours.get(key)}
    figures = {state.name: state.figures for state in states if state.materialized}
    return Experiment(name, changed, figures, [state.name for state in states if state.stale])


def _shown_settings(bench: Workbench) -> dict[str, Any]:
    """Settings by key, those of training among them, without the places that differ in any case."""
    config = bench.shared.sft_config_file()
    training = read_settings_yaml(config, "the training settings", "Fix the file")[0] if config.is_file() else {}
    return {
        key: value
        for key, value in bench.settings.model_dump().items()
        if key not in (*OUTPUT_PATHS, "raw_corpora_dir", "config_path")
    } | {f"sft_config.{key}": value for key, value in training.items()}


def _write_settings(parent: Workbench, staged: ArtifactPaths, given: Mapping[str, Any]) -> None:
    """The settings that the parent was given, but for its places, and `given`; training settings as they are."""
    own = {source.setting for name, source in EXTERNAL.items() if name not in parent.paths.external}
    known = parent.settings.given - {*OUTPUT_PATHS, *own}
    settings = {key: getattr(parent.settings, key) for key in known}
    settings |= {"raw_corpora_dir": str(parent.paths["raw_corpus"]), **given}
    if not settings.get("config_path"):
        shutil.copyfile(parent.shared.sft_config_file(), staged.sft_config)
    if not settings.get("accelerate_config") and parent.paths.accelerate_config.is_file():
        shutil.copyfile(parent.paths.accelerate_config, staged.accelerate_config)
    save_settings(staged.settings_file, dict(sorted(settings.items())))
    load_settings(staged.root, environ={})


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_copied, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    else:
        _copied(str(source), str(target))


def _copied(source: str, target: str) -> str:
    """The file under another name, where it is never changed and both lie on one file system; else a copy."""
    if Path(source).suffix in _NEVER_CHANGED:
        link(Path(source), Path(target))
        return target
    return str(shutil.copy2(source, target))


def _report_source(parent: Workbench, source: str, instance: dg.DagsterInstance) -> None:
    """Tell the experiment's instance which version of a source its assets were made of."""
    version = parent.data_version(source)
    if version is not None:
        instance.report_runless_asset_event(dg.AssetObservation(source, tags={DATA_VERSION_TAG: version}))


def _report(parent: Workbench, asset: str, event: dg.EventLogEntry, instance: dg.DagsterInstance, place: Path) -> None:
    """Tell the experiment's instance of an asset, and of its checks, what the parent's knows."""
    key = dg.AssetKey(asset)
    made = event.asset_materialization
    if made is None:
        return
    kept = (DATA_VERSION_TAG, CODE_VERSION_TAG, INPUT_DATA_VERSION_TAG_PREFIX)
    tags = {tag: value for tag, value in (made.tags or {}).items() if tag.startswith(kept)}
    for tag in made.tags or {}:  # Dagster's own view of what is stale asks for both
        name = tag.removeprefix(f"{INPUT_DATA_VERSION_TAG_PREFIX}/")
        if name != tag:
            tags[get_input_event_pointer_tag(dg.AssetKey(name))] = _latest(instance, name)
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            key,
            description="Taken over from the folder that this experiment began with.",
            metadata={**made.metadata, "path": dg.MetadataValue.path(str(place)), COPIED_FROM_RUN: event.run_id},
            tags=tags,
        )
    )
    record = instance.fetch_materializations(key, limit=1).records[0]
    target = check_target(record)
    for check in parent.evaluations(asset):
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


def _latest(instance: dg.DagsterInstance, name: str) -> str:
    """The storage id of an asset's, or a source's, latest event as Dagster points to it."""
    key = dg.AssetKey(name)
    found = instance.fetch_materializations(key, limit=1).records or instance.fetch_observations(key, limit=1).records
    return str(found[0].storage_id) if found else NULL_EVENT_POINTER
