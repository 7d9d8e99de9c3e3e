"""Experiments: what is copied, what is rebuilt, and that the original folder stays unchanged."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from filelock import FileLock

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.cli.experiment_folders import compare_experiments, create_experiment
from ivr_dagster.cli.project import Project
from ivr_dagster.errors import InputError
from ivr_dagster.orchestration.staleness import COPIED_FROM_RUN
from ivr_dagster.settings import load_settings
from ivr_dagster.settings.presets import PRESETS
from ivr_dagster_tests.cli.conftest import Ivr
from ivr_dagster_tests.small_pipeline import TINY, stale, stale_in


def open_folder(folder: Path) -> Project:
    """Open an artifacts folder as `ivr` does."""
    os.environ.pop("DAGSTER_HOME", None)
    project = Project(load_settings(folder, environ={}), folder)
    project.observe_sources()
    return project


@pytest.fixture
def parent(folder: Path) -> Project:
    """A project in which all assets are built."""
    return open_folder(folder)


def change_settings(parent: Project, **values: Any) -> Project:
    """Change the settings file and reopen the project."""
    file = parent.paths.settings_file
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | values))
    return open_folder(parent.paths.root)


def file_contents(root: Path) -> dict[Path, bytes]:
    """Contents of all files in an artifacts folder, except Dagster's records, locks and experiments."""
    files = (file for file in root.rglob("*") if file.is_file() and not file.name.startswith(".ivr"))
    return {file: file.read_bytes() for file in files if not {".dagster", "experiments"} & set(file.parts)}


@pytest.mark.slow
def test_experiment_rebuilds_only_what_its_settings_change(parent: Project) -> None:
    before = file_contents(parent.paths.root)
    paths = create_experiment(parent, "zeros", {"init_strategy": "zeros", "calibration_bytes": 0})
    project = open_folder(paths.root)
    assert (
        next(iter(stale(project).values())) == "calibration_bytes: 2000000 -> 0; init_strategy: constituents -> zeros"
    )
    project.run(stale_in(project, "align"))
    assert project.data_version("fitted_embeddings") != parent.data_version("fitted_embeddings")
    assert not {"remapped_tokenizer", "reordered_embeddings"} & set(stale(project))
    assert file_contents(parent.paths.root) == before
    assert stale(parent) == {}


def test_unchanged_experiment_is_fresh_in_ivr_and_dagster_and_keeps_all_records(parent: Project) -> None:
    project = open_folder(create_experiment(parent, "same", {}).root)
    assert stale(project) == {}
    resolver = CachingStaleStatusResolver(project.instance, project.graph, LoadingContextForTest(project.instance))
    for asset in ("distilled_tokenizer", "remapped_tokenizer", "evaluation_report"):
        status = resolver.get_status(dg.AssetKey(asset))
        assert status == StaleStatus.FRESH, resolver.get_stale_causes(dg.AssetKey(asset))
        checks = [{each.check_name: each.passed for each in p.check_evaluations(asset)} for p in (project, parent)]
        assert checks[0] == checks[1] != {}
        events = [each.last_materialization(asset) for each in (project, parent)]
        assert events[0] and events[0].asset_materialization and events[1]
        metadata = events[0].asset_materialization.metadata
        assert Path(str(metadata["path"].value)) == project.paths[asset]
        assert metadata[COPIED_FROM_RUN].value == events[1].run_id


@pytest.mark.slow
def test_only_files_that_are_never_modified_in_place_are_hard_linked(parent: Project) -> None:
    root = create_experiment(parent, "own", {}).root
    files = [file for file in root.rglob("*") if file.is_file()]
    originals = {file: parent.paths.root / file.relative_to(root) for file in files}
    linked = [file for file, original in originals.items() if original.exists() and file.samefile(original)]
    assert {file.suffix for file in linked} == {".parquet", ".safetensors", ".arrow"}


@pytest.mark.slow
def test_output_paths_of_the_original_are_not_used(parent: Project) -> None:
    paths = parent.paths
    named = {
        "remap_rules_path": str(paths["remap_rules"]),
        "remapped_tokenizer_dir": str(paths["remapped_tokenizer"]),
        "output_dir": str(paths["sft_checkpoint"]),
        "embeddings_dir": str(paths.root / "embeddings"),
    }
    experiment = open_folder(create_experiment(change_settings(parent, **named), "few", {"max_candidates": 20}).root)
    assert experiment.paths.external == {}
    for asset in ("remap_rules", "remapped_tokenizer", "fitted_embeddings", "sft_checkpoint"):
        assert experiment.paths[asset].is_relative_to(experiment.paths.root)
    with pytest.raises(InputError, match="output_dir: an experiment writes to its own folder only"):
        create_experiment(parent, "out", {"output_dir": "elsewhere"})


@pytest.mark.slow
def test_external_artifacts_are_read_in_place(parent: Project, tmp_path: Path) -> None:
    rules = Path(shutil.copy(parent.paths["remap_rules"], tmp_path / "rules.yaml"))
    parent = change_settings(parent, remap_rules_path=str(rules))
    experiment = open_folder(create_experiment(parent, "external", {}).root)
    assert experiment.paths.external == {"external_remap_rules": rules}


@pytest.mark.slow
def test_explicit_settings_are_kept_and_a_new_preset_replaces_the_others(parent: Project) -> None:
    parent = change_settings(parent, preset="laptop", tune_trials=20)  # 20 is the default without a preset
    for name, changed, preset in (("same", {}, "laptop"), ("other", {"preset": "gpu"}, "gpu")):
        tuning = load_settings(create_experiment(parent, name, changed).root, environ={}).tuning
        assert (tuning.tune_trials, tuning.tune_bytes) == (20, PRESETS[preset]["tune_bytes"])


@pytest.mark.slow
def test_experiments_are_compared_by_settings_figures_and_staleness(parent: Project) -> None:
    parent = change_settings(parent, config_path="")
    create_experiment(parent, "zeros", {"init_strategy": "zeros", "seed": 7, "tune_trials": 3})
    faster = create_experiment(parent, "faster", {}).sft_config
    faster.write_text(yaml.safe_dump(yaml.safe_load(faster.read_text()) | {"learning_rate": 0.5}))
    broken = create_experiment(parent, "broken", {})
    broken.settings_file.write_text("max_candidate: 7\n")
    (parent.paths.experiments / "notes").mkdir()
    found = {each.name: each for each in compare_experiments(parent)}
    assert list(found) == ["", "broken", "faster", "zeros"]
    assert "unknown setting 'max_candidate'" in found["broken"].fault
    assert found["faster"].changed == {"sft_config.learning_rate": 0.5}
    assert found["zeros"].changed == {"init_strategy": "zeros", "seed": 7}
    assert found["zeros"].stale[0] == "fitted_embeddings"
    ours, theirs = (found[name].figures["evaluation_report"] for name in ("zeros", ""))
    assert {name: ours[name] for name in theirs if name.startswith("bpb_")} == {
        name: value for name, value in theirs.items() if name.startswith("bpb_")
    }


@pytest.mark.parametrize("name", ["", "../out", "a/b", ".hidden", "name with spaces", "/absolute"])
def test_invalid_name_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="invalid experiment name"):
        ArtifactPaths(tmp_path).experiment(name)


@pytest.mark.slow
def test_rejected_experiment_leaves_nothing_behind(parent: Project) -> None:
    leftover = parent.paths.experiments / ".dead.999999999-abcd.tmp"  # left behind by a killed process
    leftover.mkdir(parents=True)
    create_experiment(parent, "one", {"seed": 3})
    with pytest.raises(InputError, match="the experiment 'one' already exists"):
        create_experiment(parent, "one", {})
    with pytest.raises(InputError, match="max_candidates is -1"):
        create_experiment(parent, "bad", {"max_candidates": -1})
    in_use = "experiment early was requested, but the artifacts folder is in use by"
    with FileLock(parent.paths.root / ".ivr.lock"), pytest.raises(InputError, match=in_use):
        create_experiment(parent, "early", {})
    assert [each.name for each in parent.paths.experiments.iterdir()] == ["one"]
    assert load_settings(parent.paths.experiments / "one", environ={}).compute.seed == 3


@pytest.mark.slow
def test_commands_create_run_and_compare_experiments(folder: Path, tmp_path: Path, ivr: Ivr) -> None:
    home = {"DAGSTER_HOME": str(tmp_path / "home")}  # ignored for experiments: folders would share it
    assert "no experiment 'few'" in ivr("--experiment", "few", "status", **home).stderr
    created = ivr("experiment", "few", "--max-candidates", str(TINY["max_candidates"]), **home)
    assert created.returncode == 0, created.stderr
    assert "No setting differs" in created.stderr
    built = ivr("--json", "--experiment", "few", "run", "--until", "remap", "--max-candidates", "20", **home)
    assert built.returncode == 0, built.stderr
    rows = json.loads(ivr("--json", "experiments", **home).stdout)["experiments"]
    assert rows[1]["figures"]["remapped_tokenizer"]["tokens_reassigned"] == 20
    rejected = ivr("--config", str(folder / "ivr.yaml"), "--experiment", "few", "status", **home)
    assert (rejected.returncode, "both --experiment and a settings file were given" in rejected.stderr) == (2, True)
    rejected = ivr("--experiment", "few", "run", IVR_OUTPUT_DIR=str(tmp_path), **home)
    assert (rejected.returncode, "IVR_OUTPUT_DIR would make the experiment write" in rejected.stderr) == (2, True)
