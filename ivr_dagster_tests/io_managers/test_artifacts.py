"""IO managers in real Dagster runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.evaluation.folder import ReportFolder
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.sequences import TokenSequences
from ivr_dagster.core.training.folders import TrainedModel, TrainingBlocks
from ivr_dagster.core.vocabulary.rules import RemapRules
from ivr_dagster.definitions import build_definitions
from ivr_dagster.errors import InputError
from ivr_dagster.io_managers import io_managers
from ivr_dagster.pipeline import ASSETS
from ivr_dagster.settings import Settings
from ivr_dagster.storage.atomic import staging_path
from ivr_dagster.storage.manifest import MANIFEST, manifest_path

FOLDERS: dict[str, tuple[str, type[Any]]] = {
    "cleaned_corpus": ("documents_io", CleanedCorpus),
    "token_sequences": ("sequences_io", TokenSequences),
    "original_tokenizer": ("tokenizer_io", TokenizerFolder),
    "initialized_model": ("model_io", ModelFolder),
    "training_blocks": ("blocks_io", TrainingBlocks),
    "sft_checkpoint": ("trained_model_io", TrainedModel),
    "evaluation_report": ("report_io", ReportFolder),
}
Materialize = Callable[..., None]
Load = Callable[..., Any]


def staged(place: Path, content: str) -> Path:
    folder = staging_path(place)
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file.txt").write_text(content)
    return folder


@pytest.mark.parametrize("asset", FOLDERS)
def test_staged_folder_is_renamed_and_read_as_its_handle(
    asset: str, paths: ArtifactPaths, materialize: Materialize, load: Load
) -> None:
    io_manager, handle = FOLDERS[asset]
    for content in ("first", "second"):
        materialize(asset, io_manager, lambda content=content: handle(staged(paths[asset], content)))
    value = load(asset, io_manager)
    assert type(value) is handle
    assert value.path == paths[asset]
    assert (value.path / "sub" / "file.txt").read_text() == "second"
    assert [path.name for path in paths[asset].parent.iterdir()] == [paths[asset].name]


def test_manifest_names_asset_and_run(paths: ArtifactPaths, materialize: Materialize) -> None:
    materialize("evaluation_report", "report_io", lambda: ReportFolder(staged(paths["evaluation_report"], "x")))
    marker = json.loads((paths["evaluation_report"] / MANIFEST).read_text())
    assert marker["asset"] == "evaluation_report"
    assert len(marker["run_id"]) == 36


def test_training_folder_filled_in_place_stays(paths: ArtifactPaths, materialize: Materialize, load: Load) -> None:
    from ivr_dagster.io_managers.artifacts import mark_folder

    place = paths["sft_checkpoint"]
    mark_folder(place, "sft_checkpoint", "an earlier run")  # as the asset does before it begins
    (place / "checkpoint-5").mkdir(parents=True)
    materialize("sft_checkpoint", "trained_model_io", lambda: TrainedModel(place))
    assert load("sft_checkpoint", "trained_model_io").path == place
    assert (place / "checkpoint-5").is_dir()
    assert json.loads((place / MANIFEST).read_text())["run_id"] != "an earlier run"


def test_foreign_folder_is_not_replaced(paths: ArtifactPaths, materialize: Materialize) -> None:
    place = paths["cleaned_corpus"]
    place.mkdir(parents=True)
    (place / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="did not write") as error:
        materialize("cleaned_corpus", "documents_io", lambda: CleanedCorpus(staged(place, "new")))
    assert error.value.where == place
    assert [path.name for path in place.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("asset", "io_manager"), [("remap_rules", "rules_io"), ("remapped_tokenizer", "tokenizer_io")])
def test_external_artifact_is_never_written(
    tmp_path: Path, materialize: Materialize, asset: str, io_manager: str
) -> None:
    mine = tmp_path / "mine"
    places = ArtifactPaths(tmp_path / "artifacts", external={"source": mine}, replaced={asset: "source"})
    staged = tmp_path / "staged"
    staged.mkdir()
    made: Any = RemapRules(()) if io_manager == "rules_io" else TokenizerFolder(staged)
    with pytest.raises(InputError, match=f"{asset} cannot be materialized: a setting names") as error:
        materialize(asset, io_manager, lambda: made, places)
    assert error.value.where == mine
    assert not mine.exists()


def test_empty_folder_is_used(paths: ArtifactPaths, materialize: Materialize, load: Load) -> None:
    paths["cleaned_corpus"].mkdir(parents=True)
    materialize("cleaned_corpus", "documents_io", lambda: CleanedCorpus(staged(paths["cleaned_corpus"], "new")))
    assert (load("cleaned_corpus", "documents_io").path / "sub").is_dir()


def test_file_in_place_of_a_folder_is_not_replaced(paths: ArtifactPaths, materialize: Materialize) -> None:
    place = paths["cleaned_corpus"]
    place.parent.mkdir(parents=True)
    place.write_text("years of work")
    with pytest.raises(InputError, match="found a file") as error:
        materialize("cleaned_corpus", "documents_io", lambda: CleanedCorpus(staged(place, "new")))
    assert error.value.where == place
    assert place.read_text() == "years of work"


def test_folder_in_place_of_a_file_is_not_replaced(
    tmp_path: Path, paths: ArtifactPaths, materialize: Materialize
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    elsewhere = replace(paths, outputs={"selection_log": tmp_path / "mine"})
    with pytest.raises(InputError, match="found a folder") as error:
        materialize("selection_log", "markdown_io", lambda: "# Selection", places=elsewhere)
    assert error.value.where == tmp_path / "mine"
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("asset", "io_manager"),
    [
        *((asset, io_manager) for asset, (io_manager, _) in FOLDERS.items()),
        ("pretoken_counts", "parquet_io"),
        ("replacement_candidates", "csv_io"),
        ("remap_rules", "rules_io"),
        ("selection_log", "markdown_io"),
        ("original_embeddings", "tensors_io"),
    ],
)
def test_missing_artifact_is_named_with_its_path(asset: str, io_manager: str, paths: ArtifactPaths, load: Load) -> None:
    with pytest.raises(InputError) as error:
        load(asset, io_manager)
    assert error.value.message == f"{asset} was requested, but does not exist"
    assert error.value.where == paths[asset]
    assert error.value.remedy == f"Materialize {asset} first."


def test_artifact_is_written_to_the_path_of_a_setting(
    tmp_path: Path, paths: ArtifactPaths, materialize: Materialize, load: Load
) -> None:
    elsewhere = replace(paths, outputs={"selection_log": tmp_path / "mine" / "log.md"})
    materialize("selection_log", "markdown_io", lambda: "# Selection", places=elsewhere)
    assert (tmp_path / "mine" / "log.md").read_text() == "# Selection"
    assert not paths["selection_log"].exists()
    assert load("selection_log", "markdown_io", places=elsewhere) == "# Selection"


def test_failed_write_keeps_the_old_file(paths: ArtifactPaths, materialize: Materialize, load: Load) -> None:
    materialize("selection_log", "markdown_io", lambda: "old")
    with pytest.raises(UnicodeEncodeError):
        materialize("selection_log", "markdown_io", lambda: "new \ud800")
    assert load("selection_log", "markdown_io") == "old"
    manifest = manifest_path(paths["selection_log"], folder=False)
    assert set(manifest.parent.iterdir()) == {paths["selection_log"], manifest}


def test_every_asset_has_a_path_and_an_existing_io_manager(tmp_path: Path) -> None:
    definitions = build_definitions(Settings.of(model_name="sample"), artifacts_dir=tmp_path)
    keys = io_managers(ArtifactPaths(tmp_path)).keys()
    made = [
        asset
        for asset in definitions.resolve_all_asset_specs()
        if asset.key.path[-1] not in ("raw_corpus", "base_model")
    ]
    assert len(made) > 10
    assert {asset.key.path[-1] for asset in made} <= ASSETS.keys()
    assert {
        asset.metadata["dagster/io_manager_key"] for asset in made if "dagster/io_manager_key" in asset.metadata
    } <= keys
