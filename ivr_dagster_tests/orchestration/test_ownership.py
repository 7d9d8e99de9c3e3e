"""What happens on a Dagster instance that does not belong to the artifacts folder, such as that of `dagster dev`."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ivr_dagster import definitions
from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.orchestration.ownership import OWNER_KEY, belongs_to, claim
from ivr_dagster_tests.fake_pipeline import FakePipeline


def test_only_the_instance_of_the_folder_rebuilds(tmp_path: Path) -> None:
    pipeline = FakePipeline(tmp_path)
    pipeline.observe()
    other = pipeline.instance.run_storage
    other.set_cursor_values({OWNER_KEY: str(tmp_path / "other")})
    assert pipeline.tick() == []
    other.set_cursor_values({OWNER_KEY: str(tmp_path)})
    assert pipeline.tick() == ["cleaned_corpus", "original_tokenizer"]


def test_sources_are_watched_on_the_instance_of_the_folder_only(tmp_path: Path) -> None:
    pipeline = FakePipeline(tmp_path)
    repository = pipeline.definitions.get_repository_def()

    def skipped(instance: dg.DagsterInstance) -> str:
        resources: dict[str, Any] = dict(repository.get_top_level_resources())
        context = dg.build_sensor_context(instance=instance, repository_def=repository, resources=resources)
        return repository.get_sensor_def("watch_sources").evaluate_tick(context).skip_message or ""

    with dg.DagsterInstance.ephemeral() as temporary:
        message = skipped(temporary)
    assert "not the instance of this artifacts folder" in message
    assert f"ivr --artifacts-dir {tmp_path} ui" in message
    assert "not the instance" not in skipped(pipeline.instance)


def test_instance_inside_the_folder_needs_no_claim(tmp_path: Path) -> None:
    paths = ArtifactPaths(tmp_path)
    paths.dagster_home.mkdir()
    with dg.DagsterInstance.local_temp(str(paths.dagster_home)) as instance:
        assert belongs_to(instance, paths)
        assert not belongs_to(instance, ArtifactPaths(tmp_path / "other"))
        claim(instance, ArtifactPaths(tmp_path / "other"))
        assert belongs_to(instance, paths)


@pytest.mark.parametrize("home", [None, "elsewhere", "claimed", ".dagster"])
def test_loading_the_definitions_says_how_to_start_the_ui(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IVR_ARTIFACTS_DIR", str(tmp_path))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setattr(definitions, "build_definitions", dg.Definitions)
    if home is not None:
        (tmp_path / home).mkdir()
        (tmp_path / home / "dagster.yaml").touch()
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / home))
    if home == "claimed":
        with dg.DagsterInstance.get() as instance:
            claim(instance, ArtifactPaths(tmp_path))
    definitions.defs()
    warned = [message for message in caplog.messages if "Nothing is rebuilt automatically" in message]
    assert len(warned) == (home in (None, "elsewhere"))
    assert all(f"start the UI with `ivr --artifacts-dir {tmp_path} ui`" in message for message in warned)
