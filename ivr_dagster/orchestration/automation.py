"""What happens by itself: sources are watched, and what they make stale is rebuilt, in order and once.

Noticing and rebuilding are apart, so that each can be switched off: the sensor `watch_sources` and the schedule
`nightly` observe sources, the sensors `rebuild_tokenizer_side` and `rebuild_training_side` ask for runs of assets
that are stale. An unchanged data version makes nothing stale, so a rebuild ends where nothing new comes out.

Dagster's own conditions see changes as they pass, and forget one that comes while the asset is being made: the
update then counts as its handling. The conditions here compare what an asset was made of with what there is now.
"""

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import dagster as dg

from ivr_dagster.orchestration.dead_runs import fail_dead_runs
from ivr_dagster.orchestration.sources import noticed, source_names
from ivr_dagster.orchestration.staleness import OBSERVATION_JOB, Staleness
from ivr_dagster.pipeline import ASSETS, STAGES, ArtifactPaths, stage_assets, stages_of_side
from ivr_dagster.resources.base_model import BaseModelResource
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.settings import Settings

TOKENIZER_SIDE, TRAINING_SIDE = stages_of_side("tokenizer"), stages_of_side("training")
# by the setting `rebuild`
REBUILT: dict[str, tuple[str, ...]] = {
    "everything": tuple(STAGES),
    "tokenizer_side": TOKENIZER_SIDE,
    "nothing": (),
}
SECONDS_BETWEEN_LOOKS = 10
SECONDS_BETWEEN_TICKS = 5

_of_this_tick: WeakKeyDictionary[Any, Staleness] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class _OfStaleness(dg.AutomationCondition[dg.AssetKey]):
    """A condition on what :class:`Staleness` finds; all of one tick share what it looked up."""

    places: ArtifactPaths
    text_alone: bool

    def found(self, context: dg.AutomationContext[dg.AssetKey]) -> Staleness:
        view = context.asset_graph_view
        if view not in _of_this_tick:
            # what somebody tries out is left alone until something else makes it stale
            _of_this_tick[view] = Staleness(
                view.instance, view.asset_graph, self.places, text_alone=self.text_alone, tried=True
            )
        return _of_this_tick[view]


@dataclass(frozen=True, eq=False)
class Holds(_OfStaleness):
    """True where the answer to a question about an asset is yes.

    Attributes:
        label: what the UI calls it.
        asked: the question, to :class:`Staleness`.
    """

    label: str
    asked: Callable[[Staleness, dg.AssetKey], object]

    @property
    def name(self) -> str:
        """What the UI calls it."""
        return self.label

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        """The asset, or nothing."""
        holds = self.asked(self.found(context), context.key)
        return dg.AutomationResult(context, context.candidate_subset if holds else context.get_empty_subset())


class NotAskedFor(_OfStaleness):
    """Never asked for of what it would be made of now: a run that failed is not repeated until something changes."""

    @property
    def name(self) -> str:
        """What the UI calls it."""
        return "not asked for yet, as it would be made now"

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        """True where this tick would be the first to ask since the asset was last fresh.

        Never before its sources were observed: it would be made of they are not known which, and once more of those
        that they turn out to be. The cursor holds what the last tick would have asked for, and what was asked for.
        """
        found = self.found(context)
        now = found.made_of(context.key)
        before = json.loads(str(context.cursor)) if context.cursor else {}
        requested = context.get_previous_requested_subset(context.key)
        asked = before.get("now") if requested is not None and not requested.is_empty else before.get("asked")
        if not found.by_itself(context.key):
            asked = None
        return dg.AutomationResult(
            context,
            context.get_empty_subset() if now == asked or found.unobserved(context.key) else context.candidate_subset,
            cursor=json.dumps({"now": now, "asked": asked}),
        )


@dataclass(frozen=True, eq=False)
class ArtifactsInUse(dg.AutomationCondition[dg.AssetKey]):
    """An `ivr` command or a run holds the artifacts folder: it may be about to make what is stale."""

    places: ArtifactPaths

    @property
    def name(self) -> str:
        """What the UI calls it."""
        return "artifacts folder in use"

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        """True for every asset while the lock is held."""
        busy = self.places.lock.holder() is not None
        return dg.AutomationResult(context, context.candidate_subset if busy else context.get_empty_subset())


def rebuild_condition(places: ArtifactPaths, *, text_alone: bool, only_again: bool) -> dg.AutomationCondition[Any]:
    """When an asset is to be made by itself.

    It is stale, and was not asked for in this state before; nothing above it is stale or being made, so that it is
    made once, of the final state; blocking checks of what it reads have passed, in whichever run; and nothing else
    uses the artifacts folder.

    Args:
        places: where artifacts lie.
        text_alone: whether new text by itself is a reason to train anew.
        only_again: never for the first time.
    """
    condition = dg.AutomationCondition
    stale = Holds(places, text_alone, "stale", Staleness.why)
    being_made = Holds(places, text_alone, "being made", Staleness.being_made)
    # Dagster's own also counts a check whose run failed before it; that says nothing of what is there
    unmet = Holds(places, text_alone, "a blocking check has not passed", Staleness.unmet)
    # whoever tries something out says what is made of it
    on_trial = Holds(places, text_alone, "something above is being tried out", Staleness.follows_a_trial)
    taken_over = Holds(places, text_alone, "taken over from where the experiment was begun", Staleness.taken_over)
    wanted = (
        NotAskedFor(places, text_alone)
        & stale
        & (~condition.any_deps_match(stale)).with_label("nothing above is stale")
        & (~being_made).with_label("not being made")
        & (~condition.any_deps_match(being_made)).with_label("nothing above is being made")
        & (~condition.any_deps_match(unmet)).with_label("blocking checks above have passed")
        & (~on_trial).with_label("nothing above is being tried out")
        & (~ArtifactsInUse(places)).with_label("artifacts folder not in use")
    )
    if not only_again:
        return wanted
    made_here = ~condition.missing() & ~taken_over
    return wanted & made_here.with_label("made before")


def automatic_assets(rebuild: str, retrain: str, wanted: Collection[str], places: ArtifactPaths) -> dict[str, Any]:
    """The condition of each asset that is rebuilt by itself under the settings `rebuild` and `retrain`.

    The first training is a person's decision, since it may take days: the costly half is made only again.
    """
    text_alone = retrain == "new_text"
    again, first = (rebuild_condition(places, text_alone=text_alone, only_again=only) for only in (True, False))
    return {
        asset: again if stage in TRAINING_SIDE else first
        for stage in REBUILT[rebuild]
        for asset in (each.name for each in ASSETS.values() if each.stage == stage)
        if asset in wanted
    }


def automation(settings: Settings, *, places: ArtifactPaths, left_out: Collection[str] = ()) -> dict[str, list[Any]]:
    """Jobs, schedules and sensors, by the names that `Definitions` takes them under; `left_out` are not made."""

    def assets(stages: Collection[str]) -> list[str]:
        return [asset for asset in stage_assets(stages, settings) if asset not in left_out]

    sources = dg.AssetSelection.assets(*source_names(places))
    everything = dg.define_asset_job(
        "everything", assets(STAGES), description="From the raw corpus to the evaluation report."
    )
    tokenizer_side = dg.define_asset_job(
        "tokenizer_side",
        assets(TOKENIZER_SIDE),
        description="From the raw corpus to the remapped tokenizer: minutes.",
    )
    training_side = dg.define_asset_job(
        "training_side",
        assets(TRAINING_SIDE),
        description="From the remapped tokenizer to the report: the costly half.",
    )
    observe_sources = dg.define_asset_job(
        OBSERVATION_JOB,
        sources,
        description="Takes the hash of raw corpus, base model and whatever else a person brings.",
    )
    nightly = dg.ScheduleDefinition(
        name="nightly",
        job=observe_sources,
        cron_schedule="0 3 * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Observes all sources at 03:00 UTC: also what no look at files tells, such as a model's branch on "
        "the hub. To rebuild at night only, switch `watch_sources` off.",
    )

    @dg.sensor(
        target=sources,
        minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Observes sources whose files changed, once they have kept still for `quiet_seconds`.",
    )
    def watch_sources(
        context: dg.SensorEvaluationContext, settings: SettingsResource, base: BaseModelResource
    ) -> dg.RunRequest | dg.SkipReason:
        # a command that was killed would hold its assets, and all that follows from them, for ever
        fail_dead_runs(context.instance, of_commands_alone=True)
        return noticed(context, settings, base, time.time())

    def rebuilding(name: str, stages: Collection[str], what: str) -> dg.AutomationConditionSensorDefinition:
        return dg.AutomationConditionSensorDefinition(
            name,
            target=dg.AssetSelection.assets(*assets(stages)),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
            run_tags={"ivr/started_by": name},
            use_user_code_server=True,  # our conditions are not Dagster's own
            description=f"Makes assets {what} anew once they are stale and nothing above them is. The setting "
            "`rebuild` says which halves there are.",
        )

    return {
        "jobs": [everything, tokenizer_side, training_side, observe_sources],
        "schedules": [nightly],
        "sensors": [
            watch_sources,
            rebuilding("rebuild_tokenizer_side", TOKENIZER_SIDE, "up to the remapped tokenizer (minutes)"),
            rebuilding("rebuild_training_side", TRAINING_SIDE, "from the embeddings to the report (the costly half)"),
        ],
    }
