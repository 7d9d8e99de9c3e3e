"""What a person brings in place of an artifact: read where it lies, followed by its content, never written."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ivr_dagster.cli.project import Project
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import ASSETS, EXTERNAL, STAGES
from ivr_dagster.settings import load_settings
from ivr_dagster.storage.manifest import MANIFEST
from ivr_dagster_tests.small_pipeline import STAGE_ASSETS, documents, write_documents

SMALL = {"model_name": "sample", "max_candidates": 60, "train_bytes": 4_000, "block_size": 64, "exceptions": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small corpus, and every artifact up to the initialized model and the blocks."""
    root = tmp_path_factory.mktemp("brought")
    write_documents(root / "raw" / "documents.jsonl", documents()[:120])
    home = os.environ.pop("DAGSTER_HOME", None)
    project = open_project(root)
    for stage in list(STAGES)[: list(STAGES).index("train")]:
        project.run(project.stage_assets(stage))
    project.run(["training_blocks"])
    yield root
    os.environ.pop("DAGSTER_HOME", None)
    if home is not None:
        os.environ["DAGSTER_HOME"] = home


def open_project(folder: Path, **changed: Any) -> Project:
    os.environ.pop("DAGSTER_HOME", None)
    options = SMALL | {"raw_corpora_dir": str(folder / "raw"), "agreement_floor": 0.5} | changed
    project = Project(load_settings(folder / "artifacts", options=options, environ={}), folder / "artifacts")
    project.observe_sources()
    return project


def copied(folder: Path, asset: str, to: Path) -> Path:
    """An artifact as somebody else might have it: without our mark."""
    place = folder / "artifacts" / ASSETS[asset].path
    if place.is_dir():
        shutil.copytree(place, to)
        (to / MANIFEST).unlink()
    else:
        shutil.copyfile(place, to)
    return to


def everything(place: Path) -> dict[str, tuple[bytes, int]]:
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def stale(project: Project) -> dict[str, str]:
    return {state.name: state.stale for state in project.states() if state.stale}


# asset → one that is made of it
FOLLOWERS = {
    "original_tokenizer": ["pretoken_counts"],
    "remapped_tokenizer": ["reordered_embeddings"],
    "remap_rules": ["remapped_tokenizer"],
    "training_blocks": [],  # training takes its time
}


@pytest.mark.parametrize("asset", FOLLOWERS)
def test_what_is_brought_is_not_made_and_what_follows_goes_by_it(folder: Path, tmp_path: Path, asset: str) -> None:
    mine = copied(folder, asset, tmp_path / "mine")
    ours = everything(folder / "artifacts" / ASSETS[asset].path)
    before = everything(mine)
    source = f"external_{asset}"
    project = open_project(folder, **{EXTERNAL[source].setting: str(mine)})
    assert asset not in {state.name for state in project.states()}
    for stage in STAGES:
        assert asset not in project.stage_assets(stage)
    loaded = project.load(asset)
    assert getattr(loaded, "path", mine) == mine
    follower = FOLLOWERS[asset]
    made = {name: project.data_version(name) for name in follower}
    assert {name: reason for name, reason in stale(project).items() if name in follower} == dict.fromkeys(
        follower, f"{source} changed"
    )
    project.run(follower)
    again = open_project(folder, **{EXTERNAL[source].setting: str(mine)})
    assert not set(stale(again)) & set(follower)
    assert {name: again.data_version(name) for name in follower} == made
    assert everything(mine) == before
    assert everything(folder / "artifacts" / ASSETS[asset].path) == ours
    open_project(folder).run(follower)


def test_a_tokenizer_that_changes_makes_what_is_made_of_it_stale(folder: Path, tmp_path: Path) -> None:
    mine = copied(folder, "remapped_tokenizer", tmp_path / "mine")
    project = open_project(folder, remapped_tokenizer_dir=str(mine))
    project.run(project.stage_assets("align"))
    assert not set(stale(open_project(folder, remapped_tokenizer_dir=str(mine)))) & set(STAGE_ASSETS["align"])
    os.utime(mine / "tokenizer.json")
    assert not set(stale(open_project(folder, remapped_tokenizer_dir=str(mine)))) & set(STAGE_ASSETS["align"])
    config = mine / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 77}))
    changed = open_project(folder, remapped_tokenizer_dir=str(mine))
    assert stale(changed)["reordered_embeddings"] == "external_remapped_tokenizer changed"
    changed.run(changed.stage_assets("align"))
    made = json.loads((folder / "artifacts/embeddings/initialized_model/tokenizer_config.json").read_text())
    assert made["model_max_length"] == 77
    back = open_project(folder)
    assert stale(back)["reordered_embeddings"] == "remapped_tokenizer changed"
    back.run(back.stage_assets("align"))
    assert not set(stale(open_project(folder))) & set(STAGE_ASSETS["align"])


def test_rules_that_are_brought_are_the_ones_that_count(folder: Path, tmp_path: Path) -> None:
    mine = copied(folder, "remap_rules", tmp_path / "rules.yaml")
    content = yaml.safe_load(mine.read_text())
    content["rules"] = content["rules"][:10]
    mine.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    project = open_project(folder, remap_rules_path=str(mine))
    assert project.stage_assets("remap") == ["remapped_tokenizer"]
    assert project.run(["remapped_tokenizer"]).figures["remapped_tokenizer"]["tokens_reassigned"] == 10
    open_project(folder).run(["remapped_tokenizer"])


def test_a_tokenizer_and_rules_of_different_making_are_refused(folder: Path, tmp_path: Path) -> None:
    mine = copied(folder, "original_tokenizer", tmp_path / "mine")
    project = open_project(folder, remapped_tokenizer_dir=str(mine))
    with pytest.raises(InputError, match=r"disagree on 60 ids: \d+ is new in the rules alone"):
        project.run(project.stage_assets("align"))
    open_project(folder).run(open_project(folder).stage_assets("align"))


def test_what_is_brought_for_training_is_read_by_training_alone(folder: Path, tmp_path: Path) -> None:
    tokenizer = copied(folder, "remapped_tokenizer", tmp_path / "tokenizer")
    model = copied(folder, "initialized_model", tmp_path / "model")
    before = everything(tokenizer) | everything(model)
    project = open_project(folder, tokenizer_path=str(tokenizer), train_model_name=str(model))
    assert project.stage_assets("remap") == list(STAGE_ASSETS["remap"])
    assert project.stage_assets("align") == list(STAGE_ASSETS["align"])
    assert not set(stale(project)) & {*STAGE_ASSETS["remap"], *STAGE_ASSETS["align"]}
    assert stale(project)["training_blocks"] == "external_train_model changed"
    project.run(["training_blocks"])
    again = open_project(folder, tokenizer_path=str(tokenizer), train_model_name=str(model))
    assert "training_blocks" not in stale(again)
    (model / "generation_config.json").write_text('{"temperature": 0.5}')
    changed = open_project(folder, tokenizer_path=str(tokenizer), train_model_name=str(model))
    assert stale(changed)["training_blocks"] == "external_train_model changed"
    after = everything(tokenizer) | everything(model)
    assert {file for file in after if after[file] != before.get(file)} == {str(model / "generation_config.json")}
    open_project(folder).run(["training_blocks"])


@pytest.mark.parametrize("name", EXTERNAL)
def test_what_is_not_there_is_named_with_option_and_place(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{EXTERNAL[name].option} was given, and nothing is there") as error:
        open_project(folder, **{EXTERNAL[name].setting: str(tmp_path / "nowhere")})
    assert error.value.where == tmp_path / "nowhere"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["external_original_tokenizer", "external_train_tokenizer"])
def test_a_tokenizer_without_its_settings_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    mine = copied(folder, "original_tokenizer", tmp_path / "mine")
    (mine / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer_config\.json") as error:
        open_project(folder, **{EXTERNAL[name].setting: str(mine)})
    assert error.value.where == mine


@pytest.mark.parametrize("name", EXTERNAL)
def test_what_is_something_else_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine"
    if name == "external_remap_rules":
        mine.write_text("no rules")
    else:
        mine.mkdir()
        (mine / "thesis.txt").write_text("years of work")
    before = everything(mine)
    with pytest.raises(InputError) as error:
        open_project(folder, **{EXTERNAL[name].setting: str(mine)})
    assert str(mine) in str(error.value.where)
    assert everything(mine) == before
