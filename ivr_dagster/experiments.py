"""Experiments: artifacts folders of their own, below the one they were taken from, so that none treads on another.

An experiment begins as a copy: the artifacts, the settings, and what the Dagster instance knows of both. Under other
settings only what depends on them is stale then. What a person brought, and the raw corpus, are read where they lie.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.definitions.data_version import CODE_VERSION_TAG, DATA_VERSION_TAG, INPUT_DATA_VERSION_TAG_PREFIX

from ivr_dagster.artifact_paths import RELATIVE_PATHS, ArtifactPaths
from ivr_dagster.core.errors import InputError
from ivr_dagster.materialize import Workbench, instance_at
from ivr_dagster.settings import load_settings, remember_settings
from ivr_dagster.sources import source_names

# settings that name places to write to: an experiment writes below its own folder
_WRITTEN_TO = ("cleaned_corpora_dir", "embeddings_dir", "output_dir")
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
    """

    name: str
    changed: dict[str, Any]
    figures: dict[str, dict[str, Any]]
    stale: list[str]


def begin(parent: Workbench, name: str, given: Mapping[str, Any]) -> ArtifactPaths:
    """Make the experiment `name` out of what `parent` has made; it appears whole or not at all.

    Args:
        parent: the assets that it begins with, and their settings.
        name: its name.
        given: settings by key that it has otherwise.

    Raises:
        InputError: there is one of that name, the name or a setting is at fault, or `parent` is being made.
    """
    place = parent.paths.experiment(name)
    if place.exists():
        raise InputError(
            f"there is an experiment {name!r} already",
            where=place,
            remedy=f"Go on with it by `ivr --experiment {name} …`, take another name, or delete the folder.",
        )
    assets = [asset for asset in RELATIVE_PATHS if parent.makes(asset) and parent.paths[asset].exists()]
    parent.refuse_while_made({dg.AssetKey(asset) for asset in assets})
    place.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=place.parent) as scratch:
        staged = ArtifactPaths(Path(scratch) / name)
        staged.root.mkdir()
        _write_settings(parent, staged, given)
        for asset in assets:
            _copy(parent.paths[asset], staged[asset])
        with instance_at(staged.dagster_home) as instance:
            for source in source_names(parent.paths):
                _report_source(parent, source, instance)
            for asset in assets:
                _report(parent, asset, instance, ArtifactPaths(place)[asset])
        staged.root.rename(place)
    return ArtifactPaths(place)


def compare(parent: Workbench) -> list[Experiment]:
    """The artifacts folder and its experiments with the figures that each has, in the order of names."""
    found = [_seen("", parent, parent)]
    for folder in sorted(parent.paths.experiments.glob("*")):
        if folder.is_dir() and not folder.name.startswith("."):
            with instance_at(ArtifactPaths(folder).dagster_home) as instance:
                found.append(_seen(folder.name, Workbench(load_settings(folder), folder, instance=instance), parent))
    return found


def _seen(name: str, bench: Workbench, parent: Workbench) -> Experiment:
    states = bench.states()
    theirs, ours = bench.settings.model_dump(), parent.settings.model_dump()
    changed = {
        key: theirs[key] for key in theirs if theirs[key] != ours[key] and key not in (*_WRITTEN_TO, "raw_corpora_dir")
    }
    figures = {state.name: state.figures for state in states if state.materialized}
    return Experiment(name, changed, figures, [state.name for state in states if state.stale])


def _write_settings(parent: Workbench, staged: ArtifactPaths, given: Mapping[str, Any]) -> None:
    """The parent's settings but for the places it writes to, and what is given."""
    defaults = type(parent.settings)()
    settings = {
        key: value
        for key, value in parent.settings.model_dump().items()
        if value != getattr(defaults, key) and key not in _WRITTEN_TO
    }
    settings["raw_corpora_dir"] = str(parent.paths["raw_corpus"])
    config = parent.shared.sft_config_file()
    if config == parent.paths.sft_config:
        shutil.copyfile(config, staged.sft_config)
    remember_settings(staged.settings_file, settings | dict(given))
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
        try:
            Path(target).hardlink_to(source)
        except OSError:
            pass
        else:
            return target
    return str(shutil.copy2(source, target))


def _report_source(parent: Workbench, source: str, instance: dg.DagsterInstance) -> None:
    """Tell the experiment's instance which version of a source its assets were made of."""
    version = parent.data_version(source)
    if version is not None:
        instance.report_runless_asset_event(dg.AssetObservation(source, tags={DATA_VERSION_TAG: version}))


def _report(parent: Workbench, asset: str, instance: dg.DagsterInstance, place: Path) -> None:
    """Tell the experiment's instance of an asset, and of its checks, what the parent's knows."""
    key = dg.AssetKey(asset)
    event = parent.last_made(asset)
    made = event.asset_materialization if event else None
    if event is None or made is None:
        return
    kept = (DATA_VERSION_TAG, CODE_VERSION_TAG, INPUT_DATA_VERSION_TAG_PREFIX)
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            key,
            description="Taken over from the folder that this experiment began with.",
            metadata={**made.metadata, "path": dg.MetadataValue.path(str(place)), "made_in_run": event.run_id},
            tags={tag: value for tag, value in (made.tags or {}).items() if tag.startswith(kept)},
        )
    )
    record = instance.fetch_materializations(key, limit=1).records[0]
    target = AssetCheckEvaluationTargetMaterializationData(
        storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
    )
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
