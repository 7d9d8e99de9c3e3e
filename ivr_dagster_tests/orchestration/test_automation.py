"""What automation requests, tick by tick, on invented materializations of the real asset graph."""

import os
import shutil
from pathlib import Path

import dagster as dg
import pytest

from ivr_dagster.orchestration.automation import automatic_staleness, why_not_rebuilt
from ivr_dagster.orchestration.dead_runs import PROCESS_TAG, process_identity
from ivr_dagster.orchestration.staleness import COPIED_FROM_RUN
from ivr_dagster.pipeline import ASSETS, stage_assets, stages_of_side
from ivr_dagster_tests.fake_pipeline import FakePipeline

TRAINING = {asset.name for asset in ASSETS.values() if asset.stage in stages_of_side("training")}
VOCABULARY = ("remap_rules", "remapped_bpe_tokenizer", "remapped_tokenizer")  # the same after most changes of a corpus


@pytest.fixture
def pipeline(tmp_path: Path) -> FakePipeline:
    """All assets are built, and automation has ticked once."""
    pipeline = FakePipeline(tmp_path)
    pipeline.observe()
    pipeline.build(pipeline.assets)
    assert pipeline.tick() == []
    return pipeline


@pytest.mark.slow
def test_change_rebuilds_everything_downstream_in_order_and_once(pipeline: FakePipeline) -> None:
    pipeline.observe(raw_corpus="2")
    built = pipeline.settle()
    assert len(built) == len(set(built))
    assert set(built) == pipeline.downstream("raw_corpus")
    for position, asset in enumerate(built):
        upstream = {key.to_user_string() for key in pipeline.graph.get(dg.AssetKey(asset)).parent_keys}
        assert not upstream & set(built[position:]), asset
    assert pipeline.stale() == {}


def test_unchanged_data_version_stops_the_rebuild(pipeline: FakePipeline) -> None:
    pipeline.observe(raw_corpus="2")
    assert pipeline.settle(keep=["cleaned_corpus"]) == ["cleaned_corpus"]


@pytest.mark.slow
def test_new_text_retrains_only_if_the_setting_says_so(pipeline: FakePipeline) -> None:
    pipeline.observe(raw_corpus="2")
    built = set(pipeline.settle(keep=VOCABULARY))
    trained = {"fitted_embeddings", "initialized_model", "sft_checkpoint", "vanilla_sft_checkpoint"}
    assert {"remapped_tokenizer", "training_blocks"} <= built
    assert not trained & built
    assert pipeline.stale()["sft_checkpoint"]  # for `ivr run`
    pipeline.reload(retrain="new_text")
    assert trained < set(pipeline.settle())
    assert pipeline.stale() == {}


def test_stale_assets_that_automation_leaves_to_the_user_say_why(pipeline: FakePipeline) -> None:
    def waiting() -> dict[str, str]:
        automatic = automatic_staleness(pipeline.instance, pipeline.graph, pipeline.settings)
        return {name: why_not_rebuilt(automatic, pipeline.settings, dg.AssetKey(name)) for name in pipeline.stale()}

    pipeline.observe(raw_corpus="2")
    assert waiting()["cleaned_corpus"] == ""
    tokenizer_side = [name for name in pipeline.assets if name not in TRAINING]
    kept = {name: pipeline.versions[name] for name in VOCABULARY}
    pipeline.build([*tokenizer_side, "training_blocks"], versions=kept)
    assert waiting().keys() == pipeline.downstream("fitted_embeddings") | {"fitted_embeddings"}
    assert waiting()["sft_checkpoint"] == "retrain is new_vocabulary"
    pipeline.reload(rebuild="tokenizer_side")
    assert set(waiting().values()) == {"rebuild is tokenizer_side"}
    pipeline.reload(retrain="new_text")
    assert set(waiting().values()) == {""}
    pipeline.build(["initialized_model"], settings={"init_strategy": "zeros"})
    assert waiting()["initialized_model"] == "one-off settings are left to you"


def test_other_text_rebuilds_only_its_readers(pipeline: FakePipeline, tmp_path: Path) -> None:
    (tmp_path / "general").mkdir()
    (tmp_path / "general" / "a.txt").write_text("General text. " * 40)
    pipeline.reload(general_corpora_dir=str(tmp_path / "general"))
    pipeline.observe(general_corpus="1")
    assert pipeline.settle()[0] == "training_blocks"
    pipeline.observe(general_corpus="2")
    built = pipeline.settle()
    assert built[0] == "training_blocks"
    assert "sft_checkpoint" not in built
    assert set(built) < pipeline.downstream("general_corpus")


@pytest.mark.slow
def test_failed_blocking_check_stops_downstream_assets_until_it_passes(pipeline: FakePipeline) -> None:
    pipeline.observe(raw_corpus="2")
    built = pipeline.settle(failing="remapped_tokenizer")
    assert "remapped_bpe_tokenizer" in built
    assert not {"training_blocks", "sft_checkpoint"} & set(built)
    pipeline.check("remapped_tokenizer", passed=True)
    assert {"training_blocks", "sft_checkpoint"} <= set(pipeline.settle())


def test_change_during_a_run_is_handled_after_it(pipeline: FakePipeline) -> None:
    pipeline.observe(raw_corpus="2")
    assert pipeline.tick() == ["cleaned_corpus"]
    pipeline.build(["cleaned_corpus"])
    pipeline.observe(raw_corpus="3")  # before any tick has seen the end of the run
    assert pipeline.tick() == ["cleaned_corpus"]


def test_change_taken_back_before_a_tick_requests_nothing(pipeline: FakePipeline) -> None:
    pipeline.observe(raw_corpus="2")
    pipeline.observe(raw_corpus="1")
    assert pipeline.tick() == []


def test_failed_run_is_not_repeated_until_something_changes(pipeline: FakePipeline) -> None:
    pipeline.observe(raw_corpus="2")
    assert [pipeline.tick() for _ in range(3)] == [["cleaned_corpus"], [], []]
    pipeline.observe(raw_corpus="3")
    assert pipeline.tick() == ["cleaned_corpus"]


def test_state_requested_earlier_is_requested_again_after_another_was_built(pipeline: FakePipeline) -> None:
    for version in ("2", "1"):
        pipeline.observe(raw_corpus=version)
        pipeline.build(["cleaned_corpus"]) if version == "1" else None  # by a user, between ticks
        pipeline.tick()
    pipeline.observe(raw_corpus="2")
    assert pipeline.tick() == ["cleaned_corpus"]


def test_deleted_artifact_is_rebuilt_each_time(pipeline: FakePipeline) -> None:
    for _ in range(2):
        shutil.rmtree(pipeline.settings.paths["selection_log"])
        assert pipeline.settle() == ["selection_log"]


def test_rules_edited_by_hand_are_used(pipeline: FakePipeline) -> None:
    pipeline.settings.paths["remap_rules"].write_text("rules: [{}]\n")
    assert pipeline.tick() == ["remap_rules"]


def test_asset_without_its_blocking_checks_is_rebuilt(pipeline: FakePipeline) -> None:
    pipeline.build(["remapped_tokenizer"], versions=pipeline.versions, passed=None)
    assert pipeline.tick() == ["remapped_tokenizer"]


def test_stale_assets_are_rebuilt_at_the_first_tick(pipeline: FakePipeline) -> None:
    pipeline.reload(max_candidates=30)
    pipeline.cursor = None
    assert pipeline.tick() == ["replacement_candidates"]


def test_trial_and_everything_downstream_is_left_alone(pipeline: FakePipeline) -> None:
    tried = pipeline.settings.values_for("fitted_embeddings") | {"init_strategy": "zeros"}
    pipeline.build(["fitted_embeddings"], settings=tried, versions={"fitted_embeddings": "tried"})
    assert pipeline.settle() == []


def test_nothing_is_built_from_a_source_that_was_never_observed(tmp_path: Path) -> None:
    pipeline = FakePipeline(tmp_path)
    assert pipeline.tick() == []
    pipeline.observe()
    assert pipeline.tick() == ["cleaned_corpus", "original_tokenizer"]


@pytest.mark.slow
def test_first_training_is_left_to_the_user(tmp_path: Path) -> None:
    pipeline = FakePipeline(tmp_path)
    pipeline.observe()
    assert set(pipeline.settle()) == set(stage_assets(stages_of_side("tokenizer"), pipeline.settings))


@pytest.mark.slow
def test_first_training_in_an_experiment_is_left_to_the_user(tmp_path: Path) -> None:
    pipeline = FakePipeline(tmp_path)
    pipeline.observe()
    pipeline.build(pipeline.assets, **{COPIED_FROM_RUN: "run"})
    pipeline.reload(max_candidates=20)
    built = set(pipeline.settle())
    assert "remapped_tokenizer" in built
    assert not TRAINING & built


@pytest.mark.slow
@pytest.mark.parametrize("rebuild", ["tokenizer_side", "nothing"])
def test_rebuild_setting_excludes_stages(pipeline: FakePipeline, rebuild: str) -> None:
    pipeline.reload(rebuild=rebuild)
    pipeline.observe(raw_corpus="2")
    built = set(pipeline.settle())
    assert built == (pipeline.downstream("raw_corpus") - TRAINING if rebuild == "tokenizer_side" else set())


def test_nothing_is_requested_while_the_artifacts_folder_is_in_use(pipeline: FakePipeline) -> None:
    pipeline.observe(raw_corpus="2")
    with pipeline.settings.paths.lock.hold("ivr run"):
        assert pipeline.tick() == []
    assert pipeline.tick() == ["cleaned_corpus"]


def test_assets_of_an_unfinished_run_wait_for_its_end(pipeline: FakePipeline) -> None:
    pipeline.observe(raw_corpus="2")
    run = pipeline.instance.create_run_for_job(
        pipeline.definitions.resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset({dg.AssetKey("cleaned_corpus"), dg.AssetKey("pretoken_counts")}),
        status=dg.DagsterRunStatus.STARTED,
        tags={PROCESS_TAG: process_identity(os.getpid())},
    )
    assert pipeline.tick() == []
    pipeline.instance.report_run_failed(run, "stopped")
    assert pipeline.tick() == ["cleaned_corpus"]
