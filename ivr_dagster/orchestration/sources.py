"""The sources of the pipeline (raw corpus, base model, other text, external artifacts), and detecting their changes.

Every few seconds a sensor compares names, sizes and times of files. Only if these changed, and no further change
followed for a while, a run observes the source: it hashes all content.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import dagster as dg

from ivr_dagster.assets.corpus import observe_corpus, observe_other_corpus
from ivr_dagster.assets.external import observe_external
from ivr_dagster.core.corpus.files import corpus_files
from ivr_dagster.core.corpus.other_text import other_files
from ivr_dagster.errors import InputError
from ivr_dagster.io_managers.tokenizers import external_tokenizer
from ivr_dagster.orchestration.staleness import UNFINISHED
from ivr_dagster.pipeline import EXTERNAL, OTHER_CORPORA
from ivr_dagster.resources.base_model import MODEL_FILES, BaseModel
from ivr_dagster.resources.settings import ProjectSettings, SettingsResource
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.file_identity import FileIdentity

# a source that keeps changing is observed anyway after this time
MAX_WAIT_SECONDS = 45.0
# an observation that is neither recorded nor in progress this long after its request has failed
OBSERVATION_SECONDS = 300.0


def source_names(settings: ProjectSettings) -> list[str]:
    """The names of all sources under these settings."""
    return ["raw_corpus", "base_model", *settings.other_corpora, *sorted(settings.paths.external)]


def observe_source(name: str, settings: SettingsResource, base: BaseModel) -> str:
    """A source's data version: a hash of its content, or the commit of a base model on the Hub.

    Raises:
        InputError: the source is missing or invalid.
    """
    if name == "raw_corpus":
        return observe_corpus(settings)
    if name == "base_model":
        return base.version()
    if name in OTHER_CORPORA:
        return observe_other_corpus(name, settings)
    return observe_external(name, settings.paths)


def quick_signature(name: str, settings: SettingsResource, base: BaseModel) -> str:
    """A hash of the identities of a source's files. It does not change with commits on the Hub.

    Raises:
        InputError: the raw corpus, or other text that a setting names, is missing.
    """
    if name == "raw_corpus":
        path = settings.paths["raw_corpus"]
        if not path.is_dir() and settings.preset == "sample" and not settings.corpus.raw_corpora_dir:
            return "written when first observed"
        return _signature(corpus_files(path))
    if name == "base_model":
        folder = base.local_folder()
        if folder is None:
            return f"{base.model_name} {base.revision}"
        return _signature(file for pattern in MODEL_FILES for file in folder.glob(pattern))
    if name in OTHER_CORPORA:
        return _signature(other_files(settings.other_corpora[name], OTHER_CORPORA[name]))
    path = settings.paths[name]
    if not path.is_dir():
        return _signature([path])
    context: list[Path] = []
    if EXTERNAL[name].replaces == "remapped_tokenizer":
        tokenizer = external_tokenizer(path, settings.paths)
        context = [file for file in (tokenizer.base_file, tokenizer.rules_file) if file.is_file()]
    return _signature([*path.rglob("*"), *context])


def _signature(files: Iterable[Path]) -> str:
    found = []
    for file in sorted(set(files)):
        try:
            found.append((str(file), FileIdentity.of(file)))
        except OSError:  # deleted since it was listed; the next look sees that
            continue
    return content_hash(json.dumps(found))


@dataclass
class _WatchedSource:
    """What the cursor of `watch_sources` stores for a source. Times are seconds since the epoch.

    Attributes:
        signature: the signature at the last look.
        since: since when it has this signature.
        requested: the signature when an observation was last requested.
        requested_at: when that was.
        changed_at: when the signature first differed from `requested`; 0 if it does not.
    """

    signature: str = ""
    since: float = 0.0
    requested: str = ""
    requested_at: float = 0.0
    changed_at: float = 0.0


def _read_cursor(cursor: str | None) -> dict[str, _WatchedSource]:
    """The stored state by source; fields of other versions are ignored."""
    names = {field.name for field in fields(_WatchedSource)}
    stored = json.loads(cursor or "{}")
    return {
        source: _WatchedSource(**{name: value for name, value in state.items() if name in names})
        for source, state in stored.items()
    }


def request_observation(
    context: dg.SensorEvaluationContext, settings: SettingsResource, base: BaseModel, now: float
) -> dg.RunRequest | dg.SkipReason:
    """Request a run that observes changed sources, once they have not changed for `quiet_seconds`.

    Sources that keep changing are observed after `MAX_WAIT_SECONDS`. A failed observation is requested again.

    Args:
        context: its cursor stores a :class:`_WatchedSource` for each source.
        settings, base: define the sources.
        now: seconds since the epoch.
    """
    quiet_seconds = settings.automation.quiet_seconds
    sources = _read_cursor(context.cursor)
    watched: dict[str, _WatchedSource] = {}
    due: list[str] = []
    changing: list[str] = []
    errors: list[str] = []
    for name in source_names(settings):
        is_new = name not in sources
        source = watched[name] = sources.get(name, _WatchedSource())
        try:
            signature = quick_signature(name, settings, base)
        except InputError as error:
            errors.append(str(error))
            source.signature, source.since, source.changed_at = "", now, now
            continue
        if source.signature != signature:
            source.signature, source.since = signature, now
        if signature == source.requested and not _observation_failed(context.instance, name, source.requested_at, now):
            source.changed_at = 0.0
            continue
        source.changed_at = source.changed_at or now
        is_quiet = now - source.since >= quiet_seconds or now - source.changed_at >= MAX_WAIT_SECONDS
        (due if is_new or is_quiet else changing).append(name)
    # sources may belong together, so all wait for the last change
    if changing and all(now - watched[name].changed_at < MAX_WAIT_SECONDS for name in due):
        due = []
    for name in due:
        source = watched[name]
        source.requested, source.requested_at, source.changed_at = source.signature, now, 0.0
    context.update_cursor(json.dumps({name: asdict(source) for name, source in watched.items()}))
    if due:
        return dg.RunRequest(asset_selection=[dg.AssetKey(name) for name in due], tags={"ivr/noticed": ", ".join(due)})
    waiting = [f"{', '.join(changing)} changed; waiting for {quiet_seconds:g} s without changes"] if changing else []
    return dg.SkipReason("; ".join([*waiting, *errors]) or "no source has changed")


def _observation_failed(instance: dg.DagsterInstance, name: str, requested_at: float, now: float) -> bool:
    """Whether a requested observation is neither recorded nor in progress after `OBSERVATION_SECONDS`."""
    if now - requested_at < OBSERVATION_SECONDS:
        return False
    records = instance.fetch_observations(dg.AssetKey(name), limit=1).records
    if records and records[0].timestamp >= requested_at:
        return False
    unfinished = instance.get_runs(dg.RunsFilter(statuses=[*UNFINISHED]))
    return not any(dg.AssetKey(name) in (run.asset_selection or ()) for run in unfinished)
