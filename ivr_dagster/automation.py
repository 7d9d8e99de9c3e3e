"""Jobs for the UI's launchpad, and what starts them by itself: a nightly schedule and a sensor on the raw corpus."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.core.corpus.documents import fingerprint_corpus
from ivr_dagster.core.errors import InputError
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.stages import STAGES, stage_assets


def automation(*, vanilla: bool, vanilla_compute: bool, left_out: Collection[str] = ()) -> dict[str, list[Any]]:
    """Jobs, schedules and sensors, by the names that `Definitions` takes them under; `left_out` are not made."""

    def assets(*stages: str) -> list[str]:
        return [
            asset
            for stage in stages
            for asset in stage_assets(stage, vanilla=vanilla, vanilla_compute=vanilla_compute)
            if asset not in left_out
        ]

    everything = dg.define_asset_job(
        "everything", assets(*STAGES), description="From the raw corpus to the evaluation report."
    )
    tokenizer_side = dg.define_asset_job(
        "tokenizer_side",
        assets("init", "analyze", "distill-tokenizer", "select", "remap"),
        description="From the raw corpus to the remapped tokenizer: minutes.",
    )
    training_side = dg.define_asset_job(
        "training_side",
        assets("align", "train", "evaluate"),
        description="From the remapped tokenizer to the report: the costly half.",
    )
    nightly = dg.ScheduleDefinition(
        name="nightly",
        job=everything,
        cron_schedule="0 3 * * *",
        description="Rebuilds everything every night at 03:00 UTC.",
    )

    @dg.sensor(
        job=everything,
        minimum_interval_seconds=30,
        description="Rebuilds everything when the raw corpus is not the last build's and kept still for a while.",
    )
    def raw_corpus_changed(
        context: dg.SensorEvaluationContext, settings: SettingsResource
    ) -> dg.RunRequest | dg.SkipReason:
        return corpus_request(context, settings.places["raw_corpus"])

    return {
        "jobs": [everything, tokenizer_side, training_side],
        "schedules": [nightly],
        "sensors": [raw_corpus_changed],
    }


def corpus_request(context: dg.SensorEvaluationContext, corpus: Path) -> dg.RunRequest | dg.SkipReason:
    """A run when the corpus differs from the one built last and is the same as at the last look."""
    built, _, seen = (context.cursor or ",").partition(",")
    try:
        now = fingerprint_corpus(corpus)
    except InputError as error:
        return dg.SkipReason(str(error))
    if now == built:
        return dg.SkipReason("the raw corpus has not changed")
    if now != seen:
        context.update_cursor(f"{built},{now}")
        return dg.SkipReason("the raw corpus is changing; looking again before building")
    context.update_cursor(f"{now},{now}")
    return dg.RunRequest(tags={"ivr/raw_corpus": now})
