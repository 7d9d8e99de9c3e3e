"""What a person brings in place of an artifact of ours: sources, read where they lie and never written.

Which there are stands in `settings.EXTERNAL`; an asset of this kind exists only while its setting names a place.
"""

import json
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from ivr_dagster.assets import kinds
from ivr_dagster.core.model.files import weight_files
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.vocabulary.rules import read_rules
from ivr_dagster.errors import InputError
from ivr_dagster.io_managers.tokenizers import external_tokenizer
from ivr_dagster.pipeline import EXTERNAL, ArtifactPaths
from ivr_dagster.resources.base_model import MODEL_FILES, TOKENIZER_FILES
from ivr_dagster.storage.content_hash import content_hash, hash_files


def _tokenizer_version(place: Path, _: ArtifactPaths) -> str:
    TokenizerFolder(place).backend()
    if not (place / "tokenizer_config.json").is_file():
        raise InputError(
            "the tokenizer has no tokenizer_config.json, so its class and its end-of-text token are unknown",
            where=place,
            remedy="Bring a folder that save_pretrained wrote.",
        )
    return _hash_of(place, TOKENIZER_FILES)


def _remapped_tokenizer_version(place: Path, paths: ArtifactPaths) -> str:
    """A hash of the tokenizer, its base tokenizer and its remap rules, wherever they are."""
    tokenizer = external_tokenizer(place, paths)
    base, rules = tokenizer.base_file, tokenizer.rules_file
    return content_hash(
        json.dumps(
            [
                _tokenizer_version(place, paths),
                hash_files(base.parent, [base]) if base.is_file() else None,
                read_rules(rules).digest() if rules.is_file() else None,
            ]
        )
    )


def _model_version(place: Path, _: ArtifactPaths) -> str:
    weight_files(place)
    return _hash_of(place, MODEL_FILES)


def _blocks_version(place: Path, _: ArtifactPaths) -> str:
    if not (place / "remapped").is_dir():
        raise InputError(
            "no packed blocks there: remapped/ is missing",
            where=place,
            remedy="Give a folder that an earlier `ivr train` packed.",
        )
    return content_hash(place)


def _hash_of(place: Path, patterns: list[str]) -> str:
    return hash_files(place, {file for pattern in patterns for file in place.glob(pattern) if file.is_file()})


# group, IO manager and content hash, by the asset whose part it takes
_READ_AS: dict[str, tuple[str, str, Callable[[Path, ArtifactPaths], str]]] = {
    "original_tokenizer": ("tokenizer", "tokenizer_io", _tokenizer_version),
    "remapped_tokenizer": ("vocabulary", "tokenizer_io", _remapped_tokenizer_version),
    "remap_rules": ("vocabulary", "rules_io", lambda place, _: read_rules(place).digest()),
    "initialized_model": ("training", "model_io", _model_version),
    "training_blocks": ("training", "blocks_io", _blocks_version),
}


def observe_external(name: str, paths: ArtifactPaths) -> str:
    """The content hash of what a person brings under `name`, a key of `EXTERNAL`.

    Raises:
        InputError: it is not there, or is not what it should be.
    """
    source, place = EXTERNAL[name], paths[name]
    if not place.exists():
        raise InputError(
            f"{source.option} was given, and nothing is there",
            where=place,
            remedy=f"Correct {source.setting}, or leave it empty to have {source.replaces} made.",
        )
    return _READ_AS[source.replaces][2](place, paths)


def external_asset(name: str, paths: ArtifactPaths) -> dg.SourceAsset:
    """The source that stands for what a person brings under `name`."""
    source, place = EXTERNAL[name], paths[name]
    group, io_manager, _ = _READ_AS[source.replaces]

    @dg.observable_source_asset(
        name=name,
        group_name=group,
        io_manager_key=io_manager,
        tags=kinds("file"),
        metadata={"place": dg.MetadataValue.path(place)},
        description=(
            f"Brought by `{source.setting}` in place of `{source.replaces}`"
            + (f", for {' and '.join(f'`{asset}`' for asset in source.only_in)} alone" if source.only_in else "")
            + ". It is read where it lies and never written. Its version is a hash of its content."
        ),
    )
    def brought() -> dg.DataVersion:
        return dg.DataVersion(observe_external(name, paths))

    return brought
