"""Automation: sources are watched, and assets that a change makes stale are rebuilt in order, each once.

Detection and rebuilding can be switched off separately: the sensor `watch_sources` and the schedule `nightly` observe
sources; the sensors `rebuild_tokenizer_side` and `rebuild_training_side` request runs of stale assets. An unchanged
data version makes nothing stale, so a rebuild stops where results stay the same.

Dagster's own conditions react to events and lose a change that arrives while the asset is being built: the
materialization then counts as its handling. The conditions here compare what an asset was built from with what exists.
"""

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import dagster as dg

from ivr_dagster.orchestration.dead_runs import fail_dead_runs
from ivr_dagster.orchestration.ownership import belongs_to, how_to_start
from ivr_dagster.orchestration.sources import request_observation, source_names
from ivr_dagster.orchestration.staleness import OBSERVATION_JOB, Staleness
from ivr_dagster.pipeline import ASSETS, STAGES, requested_stages, stage_assets, stages_of_side
from ivr_dagster.resources.base_model import BaseModelResource
from ivr_dagster.resources.settings import ProjectSettings, SettingsResource

TOKENIZER_SIDE, TRAINING_SIDE = stages_of_side("tokenizer"), stages_of_side("training")
# stages that are rebuilt automatically, by the value of the setting `rebuild`
REBUILT_STAGES: dict[str, tuple[str, ...]] = {
    "everything": tuple(STAGES),
    "tokenizer_side": TOKENIZER_SIDE,
    "nothing": (),
}
# stages and description of the jobs that materialize assets
JOBS: dict[str, tuple[Collection[str], str]] = {
    "everything": (requested_stages(), "From the raw corpus to the evaluation report."),
    "tokenizer_side": (TOKENIZER_SIDE, "From the raw corpus to the remapped tokenizer (minutes)."),
    "training_side": (
        [stage for stage in requested_stages() if stage in TRAINING_SIDE],
        "From the remapped tokenizer to the evaluation report (costly).",
    ),
}
WATCH_SECONDS = 10
TICK_SECONDS = 5

Context = dg.AutomationContext[dg.AssetKey]
Result = dg.AutomationResult[dg.AssetKey]

_staleness_of_tick: WeakKeyDictionary[Any, Staleness] = WeakKeyDictionary()


def automatic_staleness(instance: dg.DagsterInstance, graph: Any, settings: ProjectSettings) -> Staleness:
    """What is stale for automation. A trial stays until something else makes the asset stale."""
    retrain_on_new_text = settings.automation.retrain == "new_text"
    return Staleness(instance, graph, settings, retrain_on_new_text=retrain_on_new_text, accept_trials=True)


def why_not_rebuilt(automatic: Staleness, settings: ProjectSettings, key: dg.AssetKey) -> str:
    """Why automation leaves a stale asset that was built before to the user; empty if it rebuilds it.

    Args:
        automatic: see :func:`automatic_staleness`.
        settings: the current settings.
        key: the asset.
    """
    if ASSETS[key.to_user_string()].stage not in REBUILT_STAGES[settings.automation.rebuild]:
        return f"rebuild is {settings.automation.rebuild}"
    if automatic.is_trial(key) or automatic.depends_on_trial(key):
        return "one-off settings are left to you"
    return "" if automatic.reason(key) else f"retrain is {settings.automation.retrain}"


@dataclass(frozen=True, eq=False)
class _Condition(dg.AutomationCondition[dg.AssetKey]):
    """A condition of one artifacts folder; all conditions evaluated in a tick share the same lookups."""

    settings: ProjectSettings

    def staleness(self, context: Context) -> Staleness:
        view = context.asset_graph_view
        if view not in _staleness_of_tick:
            _staleness_of_tick[view] = automatic_staleness(view.instance, view.asset_graph, self.settings)
        return _staleness_of_tick[view]


@dataclass(frozen=True, eq=False)
class StalenessCondition(_Condition):
    """True for assets to which a predicate of :class:`Staleness` applies.

    Attributes:
        label: the condition's name in the UI.
        predicate: a method of :class:`Staleness`.
    """

    label: str
    predicate: Callable[[Staleness, dg.AssetKey], object]

    @property
    def name(self) -> str:
        """The name in the UI."""
        return self.label

    def evaluate(self, context: Context) -> Result:
        """The asset if the predicate applies to it."""
        applies = self.predicate(self.staleness(context), context.key)
        return dg.AutomationResult(context, context.candidate_subset if applies else context.get_empty_subset())


class NotYetRequested(_Condition):
    """True until the asset is requested in its present state, so that a failed run is not repeated without a change."""

    @property
    def name(self) -> str:
        """The name in the UI."""
        return "not yet requested in this state"

    def evaluate(self, context: Context) -> Result:
        """The asset, unless it was requested in this state or a source of it was never observed.

        The cursor stores the state at the last tick and the state that was last requested.
        """
        staleness = self.staleness(context)
        state = staleness.state_digest(context.key)
        cursor = json.loads(str(context.cursor)) if context.cursor else {}
        previous = context.get_previous_requested_subset(context.key)
        requested = cursor.get("requested") if previous is None or previous.is_empty else cursor.get("state")
        if not staleness.directly_stale(context.key):
            requested = None
        excluded = state == requested or staleness.has_unobserved_source(context.key)
        return dg.AutomationResult(
            context,
            context.get_empty_subset() if excluded else context.candidate_subset,
            cursor=json.dumps({"state": state, "requested": requested}),
        )


class ArtifactsInUse(_Condition):
    """True while an `ivr` command or a run holds the artifacts folder: it may be about to build the stale assets."""

    @property
    def name(self) -> str:
        """The name in the UI."""
        return "artifacts folder in use"

    def evaluate(self, context: Context) -> Result:
        """All assets while the lock is held."""
        in_use = self.settings.paths.lock.holder() is not None
        return dg.AutomationResult(context, context.candidate_subset if in_use else context.get_empty_subset())


def rebuild_condition(settings: ProjectSettings, *, rebuild_only: bool) -> dg.AutomationCondition[Any]:
    """When to rebuild an asset: once its inputs are final, and once for each state.

    Args:
        settings: the settings of the artifacts folder.
        rebuild_only: never build an asset for the first time.
    """
    upstream = dg.AutomationCondition.any_deps_match
    # another instance, such as a temporary one, knows no asset of the folder
    own_instance = StalenessCondition(settings, "instance of this artifacts folder", Staleness.is_on_own_instance)
    stale = StalenessCondition(settings, "stale", Staleness.reason)
    in_progress = StalenessCondition(settings, "in progress", Staleness.in_progress)
    # Dagster's own condition also counts checks that a failed run never reached, and says nothing of the artifact
    blocked = StalenessCondition(settings, "a blocking check has not passed", Staleness.blocked_by_checks)
    # whoever runs a trial decides what to build from it
    trial = StalenessCondition(settings, "upstream was built with one-off settings", Staleness.depends_on_trial)
    copied = StalenessCondition(settings, "copied into this experiment", Staleness.copied_into_experiment)
    condition = (
        own_instance
        & NotYetRequested(settings)
        & stale
        & (~upstream(stale)).with_label("nothing upstream is stale")
        & (~in_progress).with_label("not in progress")
        & (~upstream(in_progress)).with_label("nothing upstream is in progress")
        & (~upstream(blocked)).with_label("upstream blocking checks passed")
        & (~trial).with_label("nothing upstream was built with one-off settings")
        & (~ArtifactsInUse(settings)).with_label("artifacts folder not in use")
    )
    if not rebuild_only:
        return condition
    return condition & (~dg.AutomationCondition.missing() & ~copied).with_label("built here before")


def automation_conditions(settings: ProjectSettings, assets: Collection[str]) -> dict[str, dg.AutomationCondition[Any]]:
    """The condition of each of `assets` that the setting `rebuild` includes.

    The training side is only rebuilt: the first training may take days, so a user starts it.
    """
    training, tokenizer = (rebuild_condition(settings, rebuild_only=only) for only in (True, False))
    return {
        asset.name: training if asset.stage in TRAINING_SIDE else tokenizer
        for asset in ASSETS.values()
        if asset.name in assets and asset.stage in REBUILT_STAGES[settings.automation.rebuild]
    }


def automation(settings: ProjectSettings) -> dict[str, list[Any]]:
    """Jobs, schedules and sensors, by the argument of `dg.Definitions`. Replaced assets are in none of them."""

    def built(stages: Collection[str]) -> list[str]:
        return [asset for asset in stage_assets(stages, settings) if asset not in settings.paths.replaced]

    sources = dg.AssetSelection.assets(*source_names(settings))
    observe_sources = dg.define_asset_job(
        OBSERVATION_JOB, sources, description="Hashes the raw corpus, the base model and all external artifacts."
    )
    nightly = dg.ScheduleDefinition(
        name="nightly",
        job=observe_sources,
        cron_schedule="0 3 * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Observes all sources at 03:00 UTC, including changes that files do not show, such as a new commit "
        "of a model on the Hub. To rebuild at night only, switch `watch_sources` off.",
    )

    @dg.sensor(
        target=sources,
        minimum_interval_seconds=WATCH_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Observes sources whose files changed, after `quiet_seconds` without further changes.",
    )
    def watch_sources(
        context: dg.SensorEvaluationContext, settings: SettingsResource, base: BaseModelResource
    ) -> dg.RunRequest | dg.SkipReason:
        if not belongs_to(context.instance, settings.paths):
            return dg.SkipReason(f"not the instance of this artifacts folder: {how_to_start(settings.paths)}")
        # a killed command would otherwise block its assets and everything downstream
        fail_dead_runs(context.instance, cli_runs_only=True)
        return request_observation(context, settings, base, time.time())

    def rebuild_sensor(name: str, stages: Collection[str], scope: str) -> dg.AutomationConditionSensorDefinition:
        return dg.AutomationConditionSensorDefinition(
            name,
            target=dg.AssetSelection.assets(*built(stages)),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=TICK_SECONDS,
            run_tags={"ivr/started_by": name},
            use_user_code_server=True,  # required for custom conditions
            description=f"Rebuilds stale assets {scope}, each once nothing upstream is stale. The setting `rebuild` "
            "selects the sides that are rebuilt.",
        )

    return {
        "jobs": [
            *(dg.define_asset_job(name, built(stages), description=text) for name, (stages, text) in JOBS.items()),
            observe_sources,
        ],
        "schedules": [nightly],
        "sensors": [
            watch_sources,
            rebuild_sensor("rebuild_tokenizer_side", TOKENIZER_SIDE, "up to the remapped tokenizer (minutes)"),
            rebuild_sensor(
                "rebuild_training_side",
                TRAINING_SIDE,
                "from the embeddings to the report and the exported files (costly)",
            ),
        ],
    }
