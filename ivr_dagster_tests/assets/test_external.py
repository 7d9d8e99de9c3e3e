"""External artifacts: read in place, followed by their content, never written."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.assets.external import observe_external
from ivr_dagster.cli.project import Project
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import ASSETS, EXTERNAL
from ivr_dagster.settings import Settings
from ivr_dagster.storage.manifest import MANIFEST
from ivr_dagster_tests.fake_pipeline import FakePipeline
from ivr_dagster_tests.small_pipeline import TINY, open_project, stale


@pytest.fixture
def root(tiny: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of a built pipeline."""
    home = os.environ.pop("DAGSTER_HOME", None)
    yield Path(shutil.copytree(tiny, tmp_path / "copy"))
    os.environ.pop("DAGSTER_HOME", None)
    if home is not None:
        os.environ["DAGSTER_HOME"] = home


@pytest.fixture
def model(tiny: Path) -> str:
    """The base model of that pipeline."""
    return str(tiny.parent / "model")


def reopen(root: Path, model: str, **settings: Any) -> Project:
    return open_project(root, model_name=model, **TINY | settings)


def export(root: Path, asset: str, target: Path) -> Path:
    """A copy of an artifact without its manifest, as other tools would write it."""
    path = root / "artifacts" / ASSETS[asset].path
    if path.is_dir():
        shutil.copytree(path, target)
        (target / MANIFEST).unlink()
    else:
        shutil.copyfile(path, target)
    return target


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def observe(tmp_path: Path, name: str, path: Path) -> str:
    settings = Settings.of(model_name="sample", **{EXTERNAL[name].setting: str(path)})
    return observe_external(name, ArtifactPaths.of(settings, tmp_path / "artifacts"))


@pytest.mark.parametrize("name", EXTERNAL)
def test_external_artifact_replaces_the_asset_for_its_readers(tmp_path: Path, name: str) -> None:
    source = EXTERNAL[name]
    pipeline = FakePipeline(tmp_path / "artifacts")
    pipeline.observe()
    pipeline.build(pipeline.assets)
    path = tmp_path / "external"
    path.mkdir()
    pipeline.reload(**{source.setting: str(path)})
    pipeline.observe(**{name: "1"})
    assert (source.replaces in pipeline.assets) == bool(source.only_in)
    directly = {asset for asset, reason in pipeline.stale().items() if reason == f"{name}: not an input before"}
    assert directly
    assert not source.only_in or directly <= set(source.only_in)
    pipeline.build(pipeline.assets)
    assert pipeline.stale() == {}
    pipeline.observe(**{name: "2"})
    assert {asset for asset, reason in pipeline.stale().items() if reason == f"{name}: data version 1 -> 2"} == directly


@pytest.mark.parametrize("name", EXTERNAL)
def test_missing_or_wrong_artifact_is_refused_with_option_and_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / "external"
    with pytest.raises(InputError, match=f"{EXTERNAL[name].option} names a path that does not exist") as error:
        observe(tmp_path, name, path)
    assert error.value.where == path
    if name == "external_remap_rules":
        path.write_text("no rules")
    else:
        path.mkdir()
        (path / "thesis.txt").write_text("years of work")
    before = contents(path)
    with pytest.raises(InputError) as error:
        observe(tmp_path, name, path)
    assert str(path) in str(error.value.where)
    assert contents(path) == before


@pytest.mark.parametrize("name", ["external_original_tokenizer", "external_train_tokenizer"])
def test_tokenizer_without_its_config_is_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    path = export(tiny, "original_tokenizer", tmp_path / "external")
    (path / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer_config\.json") as error:
        observe(tmp_path, name, path)
    assert error.value.where == path


def test_data_version_follows_content_not_time(tiny: Path, tmp_path: Path) -> None:
    path = export(tiny, "original_tokenizer", tmp_path / "external")
    before = observe(tmp_path, "external_original_tokenizer", path)
    os.utime(path / "tokenizer.json")
    assert observe(tmp_path, "external_original_tokenizer", path) == before
    config = path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 77}))
    assert observe(tmp_path, "external_original_tokenizer", path) != before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asset", "reader"),
    [
        ("original_tokenizer", "token_sequences"),
        ("remap_rules", "remapped_bpe_tokenizer"),
        ("remapped_tokenizer", "reordered_embeddings"),
    ],
)
def test_external_artifact_is_read_in_place(root: Path, model: str, tmp_path: Path, asset: str, reader: str) -> None:
    path = export(root, asset, tmp_path / "external")
    ours = root / "artifacts" / ASSETS[asset].path
    before = contents(path), contents(ours)
    setting = EXTERNAL[f"external_{asset}"].setting
    project = reopen(root, model, **{setting: str(path)})
    assert stale(project)[reader] == f"external_{asset}: not an input before"
    version = project.data_version(reader)
    project.run([reader])
    assert project.data_version(reader) == version
    assert reader not in stale(reopen(root, model, **{setting: str(path)}))
    assert (contents(path), contents(ours)) == before


@pytest.mark.slow
def test_tokenizer_and_rules_of_different_runs_are_refused(root: Path, model: str, tmp_path: Path) -> None:
    path = export(root, "original_tokenizer", tmp_path / "external")
    project = reopen(root, model, remapped_tokenizer_dir=str(path))
    with pytest.raises(InputError, match="rules"):
        project.run(project.stage_assets("align"))
