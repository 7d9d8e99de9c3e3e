"""What the assets start from (raw corpus, base model, text beside the corpus, what a person brings), and noticing
that it changed.

Looking is cheap (names, sizes and times of files) and done every few seconds; observing takes a hash of all content,
in a run of its own, and only where a look found something else and sources have kept still since.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.assets.corpus import observe_corpus, observe_other_corpus
from ivr_dagster.assets.external import observe_external
from ivr_dagster.core.corpus.files import corpus_files
from ivr_dagster.core.corpus.other_text import other_files
from ivr_dagster.errors import InputError
from ivr_dagster.io_managers.tokenizers import external_tokenizer
from ivr_dagster.orchestration.staleness import UNFINISHED
from ivr_dagster.pipeline import EXTERNAL, OTHER_CORPORA, ArtifactPaths
from ivr_dagster.resources.base_model import MODEL_FILES, BaseModel
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.file_identity import FileIdentity

# a corpus that files keep coming into is taken as it is after so many seconds
LONGEST_WAIT = 45.0
# an observation whose run has ended, or never began, so long after it was asked for has failed
OBSERVATION_SECONDS = 300.0


def source_names(places: ArtifactPaths) -> list[str]:
    """The sources there are under these settings."""
    return ["raw_corpus", "base_model", *OTHER_CORPORA, *sorted(places.external)]


def observe(name: str, settings: SettingsResource, base: BaseModel) -> str:
    """A source's data version: a hash of its content, or the base model's commit on the hub.

    Raises:
        InputError: it is not there, or is not what it should be.
    """
    if name == "raw_corpus":
        return observe_corpus(settings)
    if name == "base_model":
        return base.version()
    if name in OTHER_CORPORA:
        return observe_other_corpus(OTHER_CORPORA[name], settings)
    return observe_external(name, settings.paths)


def look(name: str, settings: SettingsResource, base: BaseModel) -> str:
    """What tells cheaply that a source may have changed; what is on the hub is not asked for.

    Raises:
        InputError: there is no raw corpus, or no text where a setting names some.
    """
    if name == "raw_corpus":
        place = settings.paths["raw_corpus"]
        if not place.is_dir() and settings.preset == "sample" and not settings.corpus.raw_corpora_dir:
            return "made when it is first observed"
        return _signature(corpus_files(place))
    if name == "base_model":
        folder = base.local_folder()
        if folder is None:
            return f"{base.model_name} {base.revision}"
        return _signature(file for pattern in MODEL_FILES for file in folder.glob(pattern))
    if name in OTHER_CORPORA:
        setting = OTHER_CORPORA[name]
        beside = settings.other_corpus_dir(setting)
        return observe_other_corpus(setting, settings) if beside is None else _signature(other_files(beside, setting))
    place = settings.paths[name]
    if not place.is_dir():
        return _signature([place])
    context: list[Path] = []
    if EXTERNAL[name].replaces == "remapped_tokenizer":
        tokenizer = external_tokenizer(place, settings.paths)
        context = [file for file in (tokenizer.base_file, tokenizer.rules_file) if file.is_file()]
    return _signature([*place.rglob("*"), *context])


def _signature(files: Iterable[Path]) -> str:
    found = []
    for file in sorted(set(files)):
        try:
            found.append((str(file), FileIdentity.of(file)))
        except OSError:  # gone since it was listed; the next look sees that
            continue
    return content_hash(json.dumps(found))


def noticed(
    context: dg.SensorEvaluationContext, settings: SettingsResource, base: BaseModel, now: float
) -> dg.RunRequest | dg.SkipReason:
    """A request to observe the sources that changed since they were last observed, once they have kept still.

    What never keeps still is observed after `LONGEST_WAIT` all the same. An observation that failed is asked for again.

    Args:
        context: with a cursor of our making, by source: what was seen last and since when, since when it is not what
            was observed, what was observed and when that was asked for.
        settings, base: what the sources are.
        now: seconds since the epoch.
    """
    before: dict[str, dict[str, Any]] = json.loads(context.cursor or "{}")
    after: dict[str, dict[str, Any]] = {}
    due: list[str] = []
    moving: list[str] = []
    faults: list[str] = []
    for name in source_names(settings.paths):
        known = before.get(name)
        try:
            seen = look(name, settings, base)
        except InputError as error:
            faults.append(str(error))
            after[name] = (known or {"observed": ""}) | {"seen": "", "since": now, "changed": now}
            continue
        state = known or {"observed": ""}
        state = state | {"seen": seen, "since": state["since"] if state.get("seen") == seen else now}
        after[name] = state
        if seen == state["observed"] and not _failed(context.instance, name, state.get("asked", 0.0), now):
            state["changed"] = 0.0
            continue
        state["changed"] = state.get("changed") or now
        quiet = now - state["since"] >= settings.automation.quiet_seconds
        # what there is when looked at for the first time need not keep still: nobody was seen writing
        (due if quiet or known is None or now - state["changed"] >= LONGEST_WAIT else moving).append(name)
    if not due or (moving and all(now - after[name]["changed"] < LONGEST_WAIT for name in due)):
        context.update_cursor(json.dumps(after))  # whatever still moves may belong together with what came to rest
        still = (
            f"{', '.join(moving)} changed; waiting until they keep still for {settings.automation.quiet_seconds:g} s"
        )
        return dg.SkipReason("; ".join([*([still] if moving else []), *faults]) or "no source has changed")
    for name in due:
        after[name] |= {"observed": after[name]["seen"], "asked": now, "changed": 0.0}
    context.update_cursor(json.dumps(after))
    return dg.RunRequest(asset_selection=[dg.AssetKey(name) for name in due], tags={"ivr/noticed": ", ".join(due)})


def _failed(instance: dg.DagsterInstance, name: str, asked: float, now: float) -> bool:
    """Whether the observation that was asked for has not come, though it has had the time."""
    if now - asked < OBSERVATION_SECONDS:
        return False
    records = instance.fetch_observations(dg.AssetKey(name), limit=1).records
    if records and records[0].timestamp >= asked:
        return False
    unfinished = dg.RunsFilter(statuses=[*UNFINISHED])
    return not any(dg.AssetKey(name) in (run.asset_selection or ()) for run in instance.get_runs(unfinished))
