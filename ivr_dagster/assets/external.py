"""External artifacts: files that a user supplies to replace an artifact. They are read in place, never written.

`pipeline.EXTERNAL` lists them. A source asset exists only while its setting names a path.
"""

import json
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.assets import kinds
from ivr_dagster.core.model.files import weight_files
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.vocabulary.rules import read_rules
from ivr_dagster.errors import InputError
from ivr_dagster.io_managers.tokenizers import external_tokenizer
from ivr_dagster.pipeline import EXTERNAL
from ivr_dagster.resources.base_model import MODEL_FILES, TOKENIZER_FILES
from ivr_dagster.storage.content_hash import content_hash, hash_files


def _tokenizer_version(path: Path, _: ArtifactPaths) -> str:
    TokenizerFolder(path).backend()
    if not (path / "tokenizer_config.json").is_file():
        raise InputError(
            "the tokenizer folder has no tokenizer_config.json, so its class and end-of-text token are unknown",
            where=path,
            remedy="Choose a folder written by `save_pretrained`.",
        )
    return _hash_matching(path, TOKENIZER_FILES)


def _remapped_tokenizer_version(path: Path, paths: ArtifactPaths) -> str:
    """A hash of the tokenizer, its base tokenizer and its remap rules."""
    tokenizer = external_tokenizer(path, paths)
    base, rules = tokenizer.base_file, tokenizer.rules_file
    return content_hash(
        json.dumps(
            [
                _tokenizer_version(path, paths),
                hash_files(base.parent, [base]) if base.is_file() else None,
                read_rules(rules).digest() if rules.is_file() else None,
            ]
        )
    )


def _model_version(path: Path, _: ArtifactPaths) -> str:
    weight_files(path)
    return _hash_matching(path, MODEL_FILES)


def _blocks_version(path: Path, _: ArtifactPaths) -> str:
    if not (path / "remapped").is_dir():
        raise InputError(
            "the folder contains no packed blocks: remapped/ is missing",
            where=path,
            remedy="Choose a folder of training blocks written by `ivr train`.",
        )
    return content_hash(path)


def _hash_matching(path: Path, patterns: list[str]) -> str:
    return hash_files(path, {file for pattern in patterns for file in path.glob(pattern) if file.is_file()})


# replaced asset → group, IO manager key, function that computes the data version
_REPLACEABLE: dict[str, tuple[str, str, Callable[[Path, ArtifactPaths], str]]] = {
    "original_tokenizer": ("tokenizer", "tokenizer_io", _tokenizer_version),
    "remapped_tokenizer": ("vocabulary", "tokenizer_io", _remapped_tokenizer_version),
    "remap_rules": ("vocabulary", "rules_io", lambda path, _: read_rules(path).digest()),
    "initialized_model": ("training", "model_io", _model_version),
    "training_blocks": ("training", "blocks_io", _blocks_version),
}


def observe_external(name: str, paths: ArtifactPaths) -> str:
    """The data version of the external artifact `name`, a key of `EXTERNAL`: a hash of its content.

    Raises:
        InputError: it is missing or invalid.
    """
    source, path = EXTERNAL[name], paths[name]
    if not path.exists():
        raise InputError(
            f"{source.option} names a path that does not exist",
            where=path,
            remedy=f"Correct {source.setting}, or leave it empty to build {source.replaces}.",
        )
    return _REPLACEABLE[source.replaces][2](path, paths)


def external_asset(name: str, paths: ArtifactPaths) -> dg.SourceAsset:
    """The source asset of the external artifact `name`."""
    source, path = EXTERNAL[name], paths[name]
    group, io_manager, _ = _REPLACEABLE[source.replaces]

    @dg.observable_source_asset(
        name=name,
        group_name=group,
        io_manager_key=io_manager,
        tags=kinds("file"),
        metadata={"path": dg.MetadataValue.path(path)},
        description=(
            f"External artifact named by `{source.setting}`, used instead of `{source.replaces}`"
            + (f" by {', '.join(f'`{asset}`' for asset in source.only_in)} only" if source.only_in else "")
            + ". It is read in place and never written. Its data version is a hash of its content."
        ),
    )
    def external() -> dg.DataVersion:
        return dg.DataVersion(observe_external(name, paths))

    return external
