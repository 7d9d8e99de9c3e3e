"""What the assets start from (raw corpus, base model, what a person brings), and noticing that it changed.

Looking is cheap (names, sizes and times of files) and done every few seconds; observing takes a hash of all content,
in a run of its own, and only where a look found something else and sources have kept still since.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import dagster as dg

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.assets.brought import observe_brought
from ivr_dagster.assets.corpus import observe_corpus
from ivr_dagster.core.content_hash import content_hash
from ivr_dagster.core.corpus.documents import corpus_files
from ivr_dagster.core.errors import InputError
from ivr_dagster.resources.base_model import MODEL_FILES, BaseModelResource
from ivr_dagster.resources.settings import SettingsResource


def source_names(places: ArtifactPaths) -> list[str]:
    """The sources there are under these settings."""
    return ["raw_corpus", "base_model", *sorted(places.brought)]


def observe(name: str, settings: SettingsResource, base: BaseModelResource) -> str:
    """A source's data version: a hash of its content, or the base model's commit on the hub.

    Raises:
        InputError: it is not there, or is not what it should be.
    """
    if name == "raw_corpus":
        return observe_corpus(settings)
    if name == "base_model":
        return base.version()
    return observe_brought(name, settings.places[name])


def look(name: str, settings: SettingsResource, base: BaseModelResource) -> str:
    """What tells cheaply that a source may have changed; what is on the hub is not asked for.

    Raises:
        InputError: there is no raw corpus.
    """
    if name == "raw_corpus":
        place = settings.places["raw_corpus"]
        if not place.is_dir() and settings.preset == "sample" and not settings.raw_corpora_dir:
            return "made when it is first observed"
        return _signature(corpus_files(place))
    if name == "base_model":
        folder = base.local_folder()
        if folder is None:
            return f"{base.model_name} {base.revision}"
        return _signature(file for pattern in MODEL_FILES for file in folder.glob(pattern))
    place = settings.places[name]
    return _signature(place.rglob("*") if place.is_dir() else [place])


def _signature(files: Iterable[Path]) -> str:
    found = []
    for file in sorted(set(files)):
        try:
            known = file.stat()
        except OSError:  # gone since it was listed; the next look sees that
            continue
        found.append([str(file), known.st_size, known.st_mtime_ns, known.st_ino])
    return content_hash(json.dumps(found))


def noticed(
    context: dg.SensorEvaluationContext, settings: SettingsResource, base: BaseModelResource, now: float
) -> dg.RunRequest | dg.SkipReason:
    """A request to observe the sources that changed since they were last observed, once they have kept still.

    Args:
        context: with a cursor of our making: by source, what was seen last, since when, and what was observed.
        settings, base: what the sources are.
        now: seconds.
    """
    before: dict[str, dict[str, str | float]] = json.loads(context.cursor or "{}")
    after: dict[str, dict[str, str | float]] = {}
    due: list[str] = []
    moving: list[str] = []
    faults: list[str] = []
    for name in source_names(settings.places):
        known = before.get(name, {})
        try:
            seen = look(name, settings, base)
        except InputError as error:
            faults.append(str(error))
            continue
        since = float(known["since"]) if known.get("seen") == seen else now
        after[name] = {"seen": seen, "since": since, "observed": known.get("observed", "")}
        if seen == known.get("observed"):
            continue
        # what there is when looked at for the first time need not keep still: nobody was seen writing
        (due if now - since >= settings.quiet_seconds or not known else moving).append(name)
    if not due or moving:  # whatever still moves may belong together with what has come to rest
        context.update_cursor(json.dumps(after))
        still = f"{', '.join(moving)} changed; waiting until they keep still for {settings.quiet_seconds:g} s"
        return dg.SkipReason("; ".join([*([still] if moving else []), *faults]) or "no source has changed")
    for name in due:
        after[name]["observed"] = after[name]["seen"]
    context.update_cursor(json.dumps(after))
    return dg.RunRequest(asset_selection=[dg.AssetKey(name) for name in due], tags={"ivr/noticed": ", ".join(due)})
