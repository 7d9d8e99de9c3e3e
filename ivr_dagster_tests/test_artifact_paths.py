"""Where artifacts lie, and which external artifacts replace them."""

from pathlib import Path

import pytest

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.pipeline import ASSETS, EXTERNAL
from ivr_dagster.settings import Settings


@pytest.mark.parametrize(
    ("setting", "asset"),
    [
        ("raw_corpora_dir", "raw_corpus"),
        ("cleaned_corpora_dir", "cleaned_corpus"),
        ("original_tokenizer_dir", "original_tokenizer"),
        ("remapped_tokenizer_dir", "remapped_tokenizer"),
        ("remap_rules_path", "remap_rules"),
        ("dataset_path", "training_blocks"),
        ("output_dir", "sft_checkpoint"),
    ],
)
def test_output_setting_moves_only_its_artifact(tmp_path: Path, setting: str, asset: str) -> None:
    paths = ArtifactPaths.of(Settings.of(**{setting: str(tmp_path / "elsewhere")}), tmp_path / "artifacts")
    below = ArtifactPaths.of(Settings(), tmp_path / "artifacts")
    assert paths[asset] == tmp_path / "elsewhere"
    assert [other for other in ("raw_corpus", *ASSETS) if paths[other] != below[other]] == [asset]


def test_embeddings_dir_moves_all_embedding_artifacts(tmp_path: Path) -> None:
    paths = ArtifactPaths.of(Settings.of(embeddings_dir=str(tmp_path / "e")), tmp_path)
    assert paths["original_embeddings"] == tmp_path / "e" / "original_embeddings.safetensors"
    assert paths["reordered_embeddings"] == tmp_path / "e" / "reordered_embeddings.safetensors"
    assert paths["initialized_model"] == tmp_path / "e" / "initialized_model"


@pytest.mark.parametrize("name", EXTERNAL)
def test_external_artifact_replaces_ours_unless_it_is_ours(tmp_path: Path, name: str) -> None:
    source = EXTERNAL[name]
    paths = ArtifactPaths.of(Settings.of(**{source.setting: str(tmp_path / "mine")}), tmp_path / "artifacts")
    ours = tmp_path / "artifacts" / ASSETS[source.replaces].path
    assert paths.external == {name: tmp_path / "mine"}
    assert paths.replaced == ({} if source.only_in else {source.replaces: name})
    assert paths[name] == tmp_path / "mine"
    assert paths[source.replaces] == (ours if source.only_in else tmp_path / "mine")
    assert ArtifactPaths.of(Settings.of(**{source.setting: str(ours)}), tmp_path / "artifacts").external == {}


@pytest.mark.parametrize("setting", ["cleaned_corpora_dir", "embeddings_dir", "output_dir", "raw_corpora_dir"])
def test_output_folder_is_not_an_external_artifact(tmp_path: Path, setting: str) -> None:
    assert ArtifactPaths.of(Settings.of(**{setting: str(tmp_path / "there")}), tmp_path).external == {}


def test_moved_artifact_is_not_external(tmp_path: Path) -> None:
    moved = {"embeddings_dir": str(tmp_path / "e"), "remapped_tokenizer_dir": str(tmp_path / "r")}
    named = {"train_model_name": str(tmp_path / "e" / "initialized_model"), "tokenizer_path": str(tmp_path / "r")}
    assert ArtifactPaths.of(Settings.of(**moved, **named), tmp_path).external.keys() == {"external_remapped_tokenizer"}


def test_relative_and_home_folders_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    paths = ArtifactPaths.of(Settings.of(raw_corpora_dir="~/texts", output_dir="out"), Path("artifacts"))
    assert paths["raw_corpus"] == tmp_path / "home" / "texts"
    assert paths["sft_checkpoint"] == tmp_path / "out"
    assert paths.root == tmp_path / "artifacts"
