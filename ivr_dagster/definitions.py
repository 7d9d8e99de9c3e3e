"""What Dagster loads: `defs`, built from the settings of this artifacts folder.

`build_definitions` takes other settings and resources, for the command line and for tests.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.asset_checks import corpus as corpus_checks
from ivr_dagster.asset_checks import embedding as embedding_checks
from ivr_dagster.asset_checks import evaluation as evaluation_checks
from ivr_dagster.asset_checks import tokenizer as tokenizer_checks
from ivr_dagster.asset_checks import training as training_checks
from ivr_dagster.asset_checks import vocabulary as vocabulary_checks
from ivr_dagster.assets import (
    corpus,
    embedding,
    evaluation,
    export,
    tokenizer,
    tokens,
    training,
    tuning,
    vocabulary,
)
from ivr_dagster.assets.external import external_asset
from ivr_dagster.io_managers import io_managers
from ivr_dagster.orchestration.alerts import notify_on_failure
from ivr_dagster.orchestration.automation import automation, automation_conditions
from ivr_dagster.orchestration.dagster_internals import with_added_deps
from ivr_dagster.orchestration.executor import executor_of
from ivr_dagster.orchestration.ownership import belongs_to, how_to_start
from ivr_dagster.pipeline import ASSETS, EXTERNAL, OTHER_CORPORA, baselines, code_version, is_enabled
from ivr_dagster.resources.accelerator import accelerator_resource
from ivr_dagster.resources.base_model import base_model_resource
from ivr_dagster.resources.settings import ProjectSettings, settings_resource
from ivr_dagster.settings import Settings, load_settings

ASSET_MODULES = (corpus, tokenizer, tokens, vocabulary, embedding, training, tuning, export)
CHECK_MODULES = (
    corpus_checks,
    tokenizer_checks,
    vocabulary_checks,
    embedding_checks,
    training_checks,
    evaluation_checks,
)


def build_definitions(
    settings: Settings | None = None,
    *,
    artifacts_dir: Path | None = None,
    resources: Mapping[str, Any] | None = None,
    loggers: Mapping[str, dg.LoggerDefinition] | None = None,
) -> dg.Definitions:
    """All assets, checks, jobs, schedules, sensors and resources of an artifacts folder.

    Args:
        settings: by default read from the environment and the settings file.
        artifacts_dir: by default `IVR_ARTIFACTS_DIR`, else `artifacts` in the current folder.
        resources: replace the resources of the same key.
        loggers: replace Dagster's loggers.

    Raises:
        InputError: the settings are invalid.
    """
    artifacts_dir = artifacts_dir.expanduser().resolve() if artifacts_dir else _artifacts_dir()
    if settings is None:
        config = os.environ.get("IVR_CONFIG")
        settings = load_settings(artifacts_dir, config=Path(config) if config else None)
    project = ProjectSettings.in_folder(settings, artifacts_dir)
    paths = project.paths
    left_out = {name for name in ASSETS if not is_enabled(name, settings)} | paths.replaced.keys()
    left_out |= OTHER_CORPORA.keys() - project.other_corpora.keys()
    loaded: list[Any] = list(dg.load_assets_from_modules(ASSET_MODULES))
    has_retention_corpus = "retention_corpus" in project.other_corpora
    loaded.append(evaluation.evaluation_report_asset(baselines(settings), has_retention_corpus=has_retention_corpus))
    assets = [asset for asset in loaded if left_out.isdisjoint(_names(asset))]
    automatic = automation(project)
    conditions = automation_conditions(project, {name for asset in assets for name in _names(asset)})
    return dg.Definitions(
        assets=[
            *(_configured(_with_external_inputs(asset, paths), project, conditions) for asset in assets),
            *(external_asset(name, paths) for name in sorted(paths.external)),
        ],
        asset_checks=[
            _with_external_inputs(check, paths)
            for check in dg.load_asset_checks_from_modules(CHECK_MODULES)
            if not {key.asset_key.path[-1] for key in check.check_keys} & paths.replaced.keys()
        ],
        jobs=automatic["jobs"],
        schedules=automatic["schedules"],
        sensors=[*automatic["sensors"], notify_on_failure],
        loggers=loggers,
        executor=executor_of(paths),
        resources={
            "settings": settings_resource(project),
            "base": base_model_resource,
            "accelerator": accelerator_resource,
            **io_managers(paths),
            **(resources or {}),
        },
    )


def _names(asset: Any) -> set[str]:
    """The names of the assets that a definition builds, or of a source."""
    keys = asset.keys if isinstance(asset, dg.AssetsDefinition) else [asset.key]
    return {key.path[-1] for key in keys}


def _with_external_inputs(asset: Any, paths: ArtifactPaths) -> Any:
    """An asset or check that reads external artifacts where the settings name some."""
    if not isinstance(asset, dg.AssetsDefinition):
        return asset
    names = _names(asset)
    replacements = {
        dg.AssetKey(source.replaces): dg.AssetKey(name)
        for name, source in EXTERNAL.items()
        if name in paths.external and (not source.only_in or names & set(source.only_in))
    }
    return asset.with_attributes(asset_key_replacements=replacements) if replacements else asset


def _configured(asset: Any, project: ProjectSettings, conditions: Mapping[str, Any]) -> Any:
    """An asset with a hash of its settings in its code version, and with its automation condition.

    A changed setting makes the asset stale just as changed code does.
    """
    if not isinstance(asset, dg.AssetsDefinition) or not asset.is_executable:
        return asset

    def configure(spec: dg.AssetSpec) -> dg.AssetSpec:
        name = spec.key.path[-1]
        values = project.values_for(name)
        return spec.replace_attributes(
            code_version=code_version(spec.code_version, values) if values else spec.code_version,
            automation_condition=conditions.get(name),
        )

    return _with_conditional_deps(asset, project).map_asset_specs(configure)


def _with_conditional_deps(asset: dg.AssetsDefinition, project: ProjectSettings) -> dg.AssetsDefinition:
    """An asset that also depends on the sources that exist only under some settings."""
    names = _names(asset)
    added = {
        source
        for source, info in EXTERNAL.items()
        if source in project.paths.external and names & set(info.only_in) and info.setting == "tokenizer_path"
    }
    if "training_blocks" in names:
        added |= {"general_corpus"} & project.other_corpora.keys()
    return with_added_deps(asset, added) if added else asset


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions of a code location, in a process that Dagster started."""
    paths = ArtifactPaths(_artifacts_dir())
    if not _is_own_instance(paths):
        logging.getLogger(__name__).warning(
            "Nothing is rebuilt automatically on this instance, because it does not belong to %s: %s",
            paths.root,
            how_to_start(paths),
        )
    return build_definitions()


def _artifacts_dir() -> Path:
    return Path(os.environ.get("IVR_ARTIFACTS_DIR") or "artifacts").expanduser().resolve()


def _is_own_instance(paths: ArtifactPaths) -> bool:
    """Whether the instance in DAGSTER_HOME belongs to the artifacts folder."""
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        return False
    if Path(home).resolve() == paths.dagster_home.resolve():
        return True
    with dg.DagsterInstance.get() as instance:
        return belongs_to(instance, paths)
