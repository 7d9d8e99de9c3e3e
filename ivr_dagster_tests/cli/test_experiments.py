"""Experiments: what they begin with, what they make anew, and that nothing of theirs reaches where they came from."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from filelock import FileLock

from ivr_dagster.cli.experiments import begin, compare
from ivr_dagster.cli.workbench import Workbench, instance_at, open_instance
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import ArtifactPaths
from ivr_dagster.settings import load_settings
from ivr_dagster.settings.presets import PRESETS
from ivr_dagster_tests.small_pipeline import TINY, stale, stale_in, workbench

IVR = Path(sys.executable).with_name("ivr")


@pytest.fixture
def parent(tiny: Path, tmp_path: Path) -> Workbench:
    """A built folder."""
    root = Path(shutil.copytree(tiny, tmp_path / "copy"))
    return workbench(root, model_name=str(tiny.parent / "model"), **TINY)


def opened(paths: ArtifactPaths) -> Workbench:
    """The experiment as `ivr --experiment` opens it, sources looked at."""
    os.environ.pop("DAGSTER_HOME", None)
    bench = Workbench(load_settings(paths.root, environ={}), paths.root)
    bench.observe_sources()
    return bench


def contents(root: Path) -> dict[Path, bytes]:
    """Every file of the artifacts, of experiments and Dagster's records none."""
    files = (file for file in root.rglob("*") if file.is_file())
    return {file: file.read_bytes() for file in files if not {".dagster", "experiments"} & set(file.parts)}


def test_an_experiment_makes_only_what_its_settings_change_and_leaves_the_rest_alone(parent: Workbench) -> None:
    before, states = contents(parent.paths.root), stale(parent)
    assert states == {}
    bench = opened(begin(parent, "zeros", {"init_strategy": "zeros", "calibration_bytes": 0}))
    found = stale(bench)
    assert "init_strategy: constituents -> zeros" in found["fitted_embeddings"]
    assert not set(found) & {"cleaned_corpus", "distilled_tokenizer", "remapped_tokenizer", "reordered_embeddings"}
    bench.run(stale_in(bench, "align"))
    assert bench.data_version("fitted_embeddings") != parent.data_version("fitted_embeddings")
    bench.run(stale_in(bench, "train"))
    assert stale(bench).keys() == {"evaluation_report"}
    assert contents(parent.paths.root) == before
    assert stale(parent) == {}


def test_an_experiment_with_nothing_changed_is_fresh_with_its_checks(parent: Workbench) -> None:
    bench = opened(begin(parent, "same", {}))
    assert stale(bench) == {}
    for asset in ("distilled_tokenizer", "remapped_tokenizer", "evaluation_report"):
        ours, theirs = ({e.check_name: e.passed for e in each.evaluations(asset)} for each in (bench, parent))
        assert ours == theirs != {}
    made = bench.last_made("remapped_tokenizer")
    assert made is not None and made.asset_materialization is not None
    metadata = made.asset_materialization.metadata
    assert Path(str(metadata["path"].value)) == bench.paths["remapped_tokenizer"]
    run = parent.last_made("remapped_tokenizer")
    assert run is not None and metadata["made_in_run"].value == run.run_id


def test_what_the_experiment_writes_in_place_is_its_own(parent: Workbench) -> None:
    """Large files that are never changed share their content, all others are copies."""
    paths = begin(parent, "own", {})
    shared = [
        file
        for file in paths.root.rglob("*")
        if file.is_file() and (parent.paths.root / file.relative_to(paths.root)).exists()
        and file.samefile(parent.paths.root / file.relative_to(paths.root))
    ]  # fmt: skip
    assert {file.suffix for file in shared} == {".parquet", ".safetensors", ".arrow"}
    rules = paths["remap_rules"]
    with rules.open("a") as file:
        file.write("# by hand\n")
    assert "# by hand" not in parent.paths["remap_rules"].read_text()


def test_dagster_too_takes_it_for_fresh(parent: Workbench) -> None:
    bench = opened(begin(parent, "same", {}))
    resolver = CachingStaleStatusResolver(bench.instance, bench._graph, LoadingContextForTest(bench.instance))
    for asset in ("cleaned_corpus", "distilled_tokenizer", "remapped_tokenizer", "sft_checkpoint"):
        assert resolver.get_status(dg.AssetKey(asset)) == StaleStatus.FRESH, resolver.get_stale_causes(
            dg.AssetKey(asset)
        )


def test_places_that_the_parents_settings_name_are_not_the_experiments(parent: Workbench, tmp_path: Path) -> None:
    """A setting may name the very place that is read anyway: in another folder it would bring what is there."""
    root = parent.paths.root
    named = {
        "remap_rules_path": str(parent.paths["remap_rules"]),
        "remapped_tokenizer_dir": str(parent.paths["remapped_tokenizer"]),
        "output_dir": str(parent.paths["sft_checkpoint"]),
        "embeddings_dir": str(root / "embeddings"),
    }
    options = {"model_name": parent.settings.tokenizer.model_name, **TINY, **named}
    config = {
        "raw_corpora_dir": parent.settings.corpus.raw_corpora_dir,
        "config_path": parent.settings.training.config_path,
    }
    (root / "ivr.yaml").write_text(yaml.safe_dump(options | config))
    bench = opened(begin(opened(parent.paths), "few", {"max_candidates": 20}))
    assert bench.paths.external == {}
    for asset in ("remap_rules", "remapped_tokenizer", "fitted_embeddings", "sft_checkpoint"):
        assert bench.paths[asset].is_relative_to(bench.paths.root)
    for stage in ("select", "remap"):
        bench.run(stale_in(bench, stage))
    assert len(bench.load("remap_rules")) == 20
    assert len(parent.load("remap_rules")) == TINY["max_candidates"]


def test_what_the_parent_brings_is_read_where_it_lies(parent: Workbench, tmp_path: Path) -> None:
    rules = Path(shutil.copy(parent.paths["remap_rules"], tmp_path / "rules.yaml"))
    (parent.paths.root / "ivr.yaml").write_text(yaml.safe_dump({**written(parent), "remap_rules_path": str(rules)}))
    bench = opened(begin(opened(parent.paths), "brings", {}))
    assert bench.paths.external == {"external_remap_rules": rules}


def written(bench: Workbench) -> dict[str, Any]:
    """Settings as a file would have them."""
    return {key: getattr(bench.settings, key) for key in bench.settings.model_fields_set}


def test_a_setting_that_overrides_the_preset_stays_and_another_preset_takes_the_place(parent: Workbench) -> None:
    options = {**written(parent), "preset": "laptop", "tune_trials": 20}  # 20 is the default without a preset
    (parent.paths.root / "ivr.yaml").write_text(yaml.safe_dump(options))
    bench = opened(parent.paths)
    same = load_settings(begin(bench, "same", {}).root, environ={})
    assert (same.tune_trials, same.tune_bytes) == (20, PRESETS["laptop"]["tune_bytes"])
    other = load_settings(begin(bench, "other", {"preset": "gpu"}).root, environ={})
    assert (other.tune_trials, other.tune_bytes) == (20, PRESETS["gpu"]["tune_bytes"])


def test_it_may_not_write_where_others_do(parent: Workbench, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="output_dir: an experiment writes below its own folder"):
        begin(parent, "out", {"output_dir": str(tmp_path)})


def test_artifacts_that_change_while_it_is_made_are_noticed(parent: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    from ivr_dagster.cli import experiments

    copy = experiments._copy

    def copy_late(source: Path, target: Path) -> None:
        if source == parent.paths["remap_rules"]:
            parent.run(["selection_log"])  # another terminal
        copy(source, target)

    monkeypatch.setattr(experiments, "_copy", copy_late)
    with pytest.raises(InputError, match="artifacts changed while 'late' was made of them"):
        begin(parent, "late", {})
    assert list(parent.paths.experiments.iterdir()) == []


def test_what_a_killed_one_left_is_swept_away_by_the_next(parent: Workbench) -> None:
    leftover = parent.paths.experiments / ".dead.999999999-abcd.tmp"
    leftover.mkdir(parents=True)
    begin(parent, "next", {})
    assert [each.name for each in parent.paths.experiments.iterdir()] == ["next"]


def test_training_settings_are_compared_too_and_stray_folders_are_not(parent: Workbench) -> None:
    (parent.paths.root / "ivr.yaml").write_text(yaml.safe_dump({**written(parent), "config_path": ""}))
    bench = opened(parent.paths)
    paths = begin(bench, "faster", {})
    known = yaml.safe_load(paths.sft_config.read_text())
    paths.sft_config.write_text(yaml.safe_dump(known | {"learning_rate": 0.5}))
    (begin(bench, "broken", {}).root / "ivr.yaml").write_text("max_candidate: 7\n")
    (bench.paths.experiments / "notes").mkdir()
    found = compare(bench)
    assert [each.name for each in found] == ["", "broken", "faster"]
    assert "unknown setting 'max_candidate'" in found[1].fault
    assert found[2].changed == {"sft_config.learning_rate": 0.5}
    assert list((bench.paths.experiments / "notes").iterdir()) == []


def test_experiments_are_compared_by_what_differs_and_what_came_of_it(parent: Workbench) -> None:
    begin(parent, "zeros", {"init_strategy": "zeros", "seed": 7})
    begin(parent, "across", {"merge_scope": "across"})
    found = compare(parent)
    assert [each.name for each in found] == ["", "across", "zeros"]
    assert [each.changed for each in found] == [
        {},
        {"merge_scope": "across"},
        {"init_strategy": "zeros", "seed": 7},
    ]
    assert [each.stale[:1] for each in found] == [[], ["replacement_candidates"], ["fitted_embeddings"]]
    assert len({each.figures["evaluation_report"]["bpb_base"] for each in found}) == 1


@pytest.mark.parametrize("name", ["", "../out", "a/b", ".hidden", "name with spaces", "/absolute"])
def test_a_name_that_leads_elsewhere_is_refused(parent: Workbench, name: str) -> None:
    with pytest.raises(InputError, match="no name for an experiment"):
        begin(parent, name, {})
    assert not (parent.paths.root / "experiments").exists()


def test_a_second_one_of_that_name_is_refused_and_the_first_stays(parent: Workbench) -> None:
    paths = begin(parent, "one", {"seed": 3})
    with pytest.raises(InputError, match="there is an experiment 'one' already"):
        begin(parent, "one", {})
    assert load_settings(paths.root, environ={}).seed == 3


def test_a_bad_setting_leaves_nothing_behind(parent: Workbench) -> None:
    with pytest.raises(InputError, match="max_candidates is -1"):
        begin(parent, "bad", {"max_candidates": -1})
    assert list((parent.paths.root / "experiments").iterdir()) == []


def test_none_is_begun_while_another_process_holds_the_artifacts(parent: Workbench) -> None:
    refused = pytest.raises(InputError, match="experiment early was requested, but the artifacts folder is in use by")
    with FileLock(parent.paths.root / ".ivr.lock"), refused:
        begin(parent, "early", {})


def test_the_command_line_begins_runs_and_compares_experiments(tiny: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny, tmp_path / "copy"))
    places = {"raw_corpora_dir": str(root / "raw"), "config_path": str(root / "sft_config.yaml")}
    options = {"model_name": str(tiny.parent / "model"), **TINY, **places}
    (root / "artifacts" / "ivr.yaml").write_text(json.dumps(options))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("IVR_")}
    # a global home, which would mix them up
    environment = kept | {"DAGSTER_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}

    def ivr(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [IVR, "--artifacts-dir", root / "artifacts", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)

    assert "no experiment 'few'" in ivr("--experiment", "few", "status").stderr
    begun = ivr("--json", "experiment", "few", "--max-candidates", "20")
    assert begun.returncode == 0, begun.stderr
    assert json.loads(begun.stdout)["artifacts_dir"] == str(root / "artifacts" / "experiments" / "few")
    done = ivr("--experiment", "few", "run", "--until", "remap")
    assert done.returncode == 0, done.stderr
    rows = json.loads(ivr("--json", "experiments").stdout)["experiments"]
    assert [row["figures"].get("remapped_tokenizer", {}).get("tokens_reassigned") for row in rows][1] == 20
    assert "max_candidates=20" in ivr("experiments").stdout
    refused = ivr("--config", str(root / "artifacts" / "ivr.yaml"), "--experiment", "few", "status")
    assert (refused.returncode, "a settings file was given beside --experiment" in refused.stderr) == (2, True)
    environment["IVR_OUTPUT_DIR"] = str(root / "artifacts" / "training" / "sft_checkpoint")
    refused = ivr("--experiment", "few", "run")
    assert (refused.returncode, "IVR_OUTPUT_DIR would have the experiment write" in refused.stderr) == (2, True)


class TestTheInstanceElsewhere:
    """A DAGSTER_HOME outside the artifacts folder, which knows assets by name alone."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
        return tmp_path / "home"

    def test_it_belongs_to_one_artifacts_folder(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        for _ in range(2):
            open_instance(ArtifactPaths(tmp_path / "one")).dispose()
        with pytest.raises(InputError, match=f"holds the assets of {tmp_path / 'one'}.*unset it"):
            open_instance(ArtifactPaths(tmp_path / "two"))

    def test_one_inside_another_folder_is_that_folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DAGSTER_HOME")
        open_instance(ArtifactPaths(tmp_path / "one")).dispose()
        assert Path(os.environ["DAGSTER_HOME"]) == tmp_path / "one" / ".dagster"
        with pytest.raises(InputError, match=f"holds the assets of {tmp_path / 'one'}"):
            open_instance(ArtifactPaths(tmp_path / "two"))

    def test_a_folder_that_moved_takes_it_along(self, tmp_path: Path) -> None:
        (tmp_path / "one").mkdir()
        open_instance(ArtifactPaths(tmp_path / "one")).dispose()
        (tmp_path / "one").rename(tmp_path / "two")
        open_instance(ArtifactPaths(tmp_path / "two")).dispose()

    def test_one_inside_the_folder_goes_wherever_the_folder_goes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DAGSTER_HOME")
        open_instance(ArtifactPaths(tmp_path / "one")).dispose()
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        monkeypatch.delenv("DAGSTER_HOME")
        open_instance(ArtifactPaths(tmp_path / "two")).dispose()

    def test_one_opened_by_its_place_asks_no_environment(self, tmp_path: Path, home: Path) -> None:
        with instance_at(tmp_path / "other") as instance:
            assert Path(instance.root_directory) == tmp_path / "other"
        assert not home.exists()
