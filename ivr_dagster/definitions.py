"""What Dagster loads: `defs`, built from the settings of this artifacts folder.

`build_definitions` takes other settings and resources, for the command line and for tests.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

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
    tokenizer,
    tokens,
    training,
    tuning,
    vocabulary,
)
from ivr_dagster.assets.external import external_asset
from ivr_dagster.io_managers import io_managers
from ivr_dagster.orchestration.alerts import tell_of_failed_runs
from ivr_dagster.orchestration.automation import automatic_assets, automation
from ivr_dagster.orchestration.executor import executor_of
from ivr_dagster.pipeline import ASSETS as RECORDS
from ivr_dagster.pipeline import EXTERNAL, ArtifactPaths, baselines, code_version, is_enabled
from ivr_dagster.resources.accelerator import accelerator_resource
from ivr_dagster.resources.base_model import base_model_resource
from ivr_dagster.resources.settings import ProjectSettings, settings_resource
from ivr_dagster.settings import Settings, load_settings

CHECKS = (corpus_checks, tokenizer_checks, vocabulary_checks, embedding_checks, training_checks, evaluation_checks)
ASSETS = (corpus, tokenizer, tokens, vocabulary, embedding, training, tuning)


def build_definitions(
    settings: Settings | None = None,
    *,
    artifacts_dir: Path | None = None,
    resources: Mapping[str, Any] | None = None,
    loggers: Mapping[str, dg.LoggerDefinition] | None = None,
) -> dg.Definitions:
    """All assets, checks, jobs, schedules, sensors and resources.

    Args:
        settings: what they work by; read from environment and settings file if not given.
        artifacts_dir: where artifacts lie; `IVR_ARTIFACTS_DIR`, or `artifacts` below the current folder.
        resources: take the place of the resources of the same key.
        loggers: take the place of Dagster's.

    Raises:
        InputError: the settings are at fault.
    """
    artifacts_dir = (artifacts_dir or Path(os.environ.get("IVR_ARTIFACTS_DIR") or "artifacts")).expanduser().resolve()
    if settings is None:
        config = os.environ.get("IVR_CONFIG")
        settings = load_settings(artifacts_dir, config=Path(config) if config else None)
    shared = ProjectSettings.in_folder(settings, artifacts_dir)
    loaded: list[Any] = list(dg.load_assets_from_modules(ASSETS))
    wanted = baselines(settings)
    left_out = {name for name in RECORDS if not is_enabled(name, settings)}
    places = shared.paths
    left_out |= places.replaced.keys()
    assets = [_with_external_inputs(asset, places) for asset in loaded if asset.key.path[-1] not in left_out]
    assets.append(_with_external_inputs(evaluation.evaluation_report_asset(wanted), places))
    automatic = automation(settings, places=places, left_out=places.replaced)
    made = {asset.key.path[-1] for asset in assets}
    conditions = automatic_assets(settings.automation.rebuild, settings.automation.retrain, made, places)
    return dg.Definitions(
        assets=[
            *(_rebuilt_by_itself(_with_settings_in_code_version(asset, shared), conditions) for asset in assets),
            *(external_asset(name, places) for name in sorted(places.external)),
        ],
        asset_checks=[
            _with_external_inputs(check, places)
            for check in dg.load_asset_checks_from_modules(CHECKS)
            if not {key.asset_key.path[-1] for key in check.check_keys} & places.replaced.keys()
        ],
        jobs=automatic["jobs"],
        schedules=automatic["schedules"],
        sensors=[*automatic["sensors"], tell_of_failed_runs],
        loggers=loggers,
        executor=executor_of(places),
        resources={
            "settings": settings_resource(shared),
            "base": base_model_resource,
            "accelerator": accelerator_resource,
            **io_managers(places),
            **(resources or {}),
        },
    )


def _with_external_inputs(asset: Any, places: ArtifactPaths) -> Any:
    """The asset, or check, with its inputs exchanged for what a person brings."""
    named = {key.path[-1] for key in asset.keys} if isinstance(asset, dg.AssetsDefinition) else set()
    exchanged = {
        dg.AssetKey(source.replaces): dg.AssetKey(name)
        for name, source in EXTERNAL.items()
        if name in places.external and (not source.only_in or named & set(source.only_in))
    }
    if not exchanged or not isinstance(asset, dg.AssetsDefinition):
        return asset
    return asset.with_attributes(asset_key_replacements=exchanged)


def _with_settings_in_code_version(asset: Any, settings: ProjectSettings) -> Any:
    """The asset with a hash of its settings in its code version: a changed setting makes it stale."""
    if not isinstance(asset, dg.AssetsDefinition) or not asset.is_executable:
        return asset

    def extend(spec: dg.AssetSpec) -> dg.AssetSpec:
        values = settings.values_for(spec.key.path[-1])
        return spec.replace_attributes(code_version=code_version(spec.code_version, values)) if values else spec

    return asset.map_asset_specs(extend)


def _rebuilt_by_itself(asset: Any, conditions: Mapping[str, Any]) -> Any:
    """The asset with its automation condition, if it has one."""
    condition = conditions.get(asset.key.path[-1])
    if condition is None:
        return asset
    return asset.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=condition))


defs = build_definitions()
