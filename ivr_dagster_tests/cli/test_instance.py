"""Which artifacts folder a Dagster instance belongs to; it identifies assets by name only."""

import os
import shutil
from pathlib import Path

import pytest

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.cli.instance import instance_at, open_instance
from ivr_dagster.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME outside the artifacts folders `one` and `two`; only `one` exists."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "one").mkdir()
    return tmp_path / "home"


def open_twice(folder: Path) -> None:
    for _ in range(2):
        open_instance(ArtifactPaths(folder)).dispose()


def test_instance_belongs_to_one_folder_and_moves_with_it(tmp_path: Path) -> None:
    open_twice(tmp_path / "one")
    with pytest.raises(InputError, match=f"holds the assets of {tmp_path / 'one'}.*unset DAGSTER_HOME"):
        open_instance(ArtifactPaths(tmp_path / "two"))
    (tmp_path / "one").rename(tmp_path / "two")
    open_twice(tmp_path / "two")


def test_instance_inside_a_folder_belongs_to_it_and_to_its_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME")
    open_instance(ArtifactPaths(tmp_path / "one")).dispose()
    assert Path(os.environ["DAGSTER_HOME"]) == tmp_path / "one" / ".dagster"
    with pytest.raises(InputError, match=f"holds the assets of {tmp_path / 'one'}"):
        open_instance(ArtifactPaths(tmp_path / "two"))
    monkeypatch.delenv("DAGSTER_HOME")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    open_twice(tmp_path / "two")


def test_instance_at_ignores_the_environment(tmp_path: Path, home: Path) -> None:
    with instance_at(tmp_path / "other") as instance:
        assert Path(instance.root_directory) == tmp_path / "other"
    assert not home.exists()
