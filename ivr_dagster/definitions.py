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
from ivr_dagster.assets.brought import brought_asset
from ivr_dagster.io_managers import io_managers
from ivr_dagster.io_managers.artifacts import SETTINGS_KEY
from ivr_dagster.orchestration.alerts import tell_of_failed_runs
from ivr_dagster.orchestration.automation import automatic_assets, automation
from ivr_dagster.orchestration.executor import executor_of
from ivr_dagster.pipeline import ArtifactPaths
from ivr_dagster.resources.accelerator import accelerator_resource
from ivr_dagster.resources.base_model import base_model_resource
from ivr_dagster.resources.settings import SettingsResource, checked_at_launch, with_defaults
from ivr_dagster.settings import BROUGHT, Settings, load_settings, version_with
from ivr_dagster.stages import BASELINES, baselines

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
    shared = with_defaults(artifacts_dir=str(artifacts_dir), **settings.model_dump())
    loaded: list[Any] = list(dg.load_assets_from_modules(ASSETS))
    wanted = baselines(vanilla=settings.vanilla, vanilla_compute=settings.vanilla_compute)
    left_out = set(BASELINES.values()) - set(wanted.values())
    places = shared.places
    left_out |= places.replaced.keys()
    assets = [_reading_brought(asset, places) for asset in loaded if asset.key.path[-1] not in left_out]
    assets.append(_reading_brought(evaluation.evaluation_report_asset(wanted), places))
    automatic = automation(
        vanilla=settings.vanilla, vanilla_compute=settings.vanilla_compute, places=places, left_out=places.replaced
    )
    made = {asset.key.path[-1] for asset in assets}
    conditions = automatic_assets(settings.rebuild, settings.retrain, made, places)
    return dg.Definitions(
        assets=[
            *(_rebuilt_by_itself(_with_settings_in_code_version(asset, shared), conditions) for asset in assets),
            *(brought_asset(name, places) for name in sorted(places.brought)),
        ],
        asset_checks=[
            _reading_brought(check, places)
            for check in dg.load_asset_checks_from_modules(CHECKS)
            if not {key.asset_key.path[-1] for key in check.check_keys} & places.replaced.keys()
        ],
        jobs=automatic["jobs"],
        schedules=automatic["schedules"],
        sensors=[*automatic["sensors"], tell_of_failed_runs],
        loggers=loggers,
        executor=executor_of(places),
        resources={
            "settings": checked_at_launch(shared, settings),
            "base": base_model_resource,
            "accelerator": accelerator_resource,
            **io_managers(places),
            **(resources or {}),
        },
    )


def _reading_brought(asset: Any, places: ArtifactPaths) -> Any:
    """The asset, or check, with its inputs exchanged for what a person brings."""
    named = {key.path[-1] for key in asset.keys} if isinstance(asset, dg.AssetsDefinition) else set()
    exchanged = {
        dg.AssetKey(source.instead_of): dg.AssetKey(name)
        for name, source in BROUGHT.items()
        if name in places.brought and (not source.in_assets or named & set(source.in_assets))
    }
    if not exchanged or not isinstance(asset, dg.AssetsDefinition):
        return asset
    return asset.with_attributes(asset_key_replacements=exchanged)


def _with_settings_in_code_version(asset: Any, settings: SettingsResource) -> Any:
    """The asset with its settings' values hashed into its code version: a changed setting makes it stale."""
    if not isinstance(asset, dg.AssetsDefinition) or not asset.is_executable:
        return asset

    def extend(spec: dg.AssetSpec) -> dg.AssetSpec:
        keys = spec.metadata.get(SETTINGS_KEY, ())
        if not keys:
            return spec
        return spec.replace_attributes(code_version=version_with(spec.code_version, settings.values_of(keys)))

    return asset.map_asset_specs(extend)


def _rebuilt_by_itself(asset: Any, conditions: Mapping[str, Any]) -> Any:
    """The asset with its automation condition, if it has one."""
    condition = conditions.get(asset.key.path[-1])
    if condition is None:
        return asset
    return asset.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=condition))


defs = build_definitions()
