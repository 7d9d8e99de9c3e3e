"""Why assets are stale, on invented materializations of the real asset graph."""

from pathlib import Path

import dagster as dg
import pytest

from ivr_dagster.orchestration.staleness import latest_evaluation
from ivr_dagster.storage.file_identity import FileIdentity
from ivr_dagster.storage.manifest import Manifest, WrittenFile, write_manifest
from ivr_dagster_tests.fake_pipeline import FakePipeline


@pytest.fixture
def pipeline(tmp_path: Path) -> FakePipeline:
    """All assets are built."""
    pipeline = FakePipeline(tmp_path)
    pipeline.observe()
    pipeline.build(pipeline.assets)
    return pipeline


def test_built_assets_are_fresh_and_a_moved_base_model_changes_nothing(pipeline: FakePipeline) -> None:
    assert pipeline.stale() == {}
    pipeline.reload(revision="other")
    assert pipeline.stale() == {}


def test_nothing_built_is_stale_everywhere(tmp_path: Path) -> None:
    pipeline = FakePipeline(tmp_path)
    assert pipeline.stale() == dict.fromkeys(pipeline.assets, "never materialized")


def test_changed_setting_is_named_with_stored_and_current_value(pipeline: FakePipeline) -> None:
    pipeline.reload(max_candidates=500, letters_only=True)
    stale = pipeline.stale()
    assert stale.pop("replacement_candidates") == "letters_only: False -> True; max_candidates: 4000 -> 500"
    assert stale.keys() == pipeline.downstream("replacement_candidates")
    assert stale["remap_rules"] == "replacement_candidates is stale"


def test_changed_input_is_named_with_both_data_versions(pipeline: FakePipeline) -> None:
    before = pipeline.versions["cleaned_corpus"]
    pipeline.observe(raw_corpus="2")
    assert pipeline.stale()["cleaned_corpus"] == "raw_corpus: data version 1 -> 2"
    pipeline.build(["cleaned_corpus"], versions={"cleaned_corpus": "0123456789"})
    assert f"cleaned_corpus: data version {before[:4]}… -> 0123…" in pipeline.stale()["distilled_tokenizer"]
    assert "cleaned_corpus" not in pipeline.stale()


def test_changed_code_version_is_named(pipeline: FakePipeline) -> None:
    code, settings = pipeline.graph.get(dg.AssetKey("cleaned_corpus")).code_version.split("-")
    pipeline.build(["cleaned_corpus"], code_version=f"0-{settings}")
    assert pipeline.stale()["cleaned_corpus"] == f"code version 0 -> {code}"


def test_one_off_settings_are_named_and_accepted_for_automation(pipeline: FakePipeline) -> None:
    tried = pipeline.settings.values_for("fitted_embeddings") | {"init_strategy": "zeros"}
    pipeline.build(["fitted_embeddings"], settings=tried)
    reason = "built with one-off settings (init_strategy: zeros -> constituents)"
    assert pipeline.stale()["fitted_embeddings"] == reason
    assert "fitted_embeddings" not in pipeline.stale(accept_trials=True)
    trial = [name for name in pipeline.assets if pipeline.staleness().depends_on_trial(dg.AssetKey(name))]
    assert set(trial) == pipeline.downstream("fitted_embeddings")
    pipeline.reload(init_strategy="zeros")
    assert "fitted_embeddings" not in pipeline.stale()


def test_settings_are_read_from_the_manifest_if_the_metadata_has_none(pipeline: FakePipeline) -> None:
    name = "replacement_candidates"
    pipeline.build([name], code_version="3-00000000", settings={})
    assert "built by an earlier version, which did not record its settings" in pipeline.stale()[name]
    stored = pipeline.settings.values_for(name) | {"max_candidates": 7, "removed_setting": ""}
    write_manifest(Manifest(name, "run", {"settings": stored}), pipeline.settings.paths[name], folder=True)
    assert "max_candidates: 7 -> 4000; removed_setting: empty -> not recorded" in pipeline.stale()[name]


def test_input_recorded_by_an_earlier_version_under_another_name_is_reported(pipeline: FakePipeline) -> None:
    key = dg.AssetKey("original_tokenizer")
    tags = {"dagster/code_version": "1", "dagster/data_version": "1", "dagster/input_data_version/brought_model": "1"}
    pipeline.instance.report_runless_asset_event(dg.AssetMaterialization(key, tags=tags))
    pipeline.check("original_tokenizer", passed=True)
    assert pipeline.stale()["original_tokenizer"] == "base_model: not an input before"


def test_many_reasons_are_shortened(pipeline: FakePipeline) -> None:
    pipeline.reload(max_candidates=1, letters_only=True, join_digits=False, merge_scope="across", max_phrases=3)
    reason = "join_digits: True -> False; letters_only: False -> True; max_candidates: 4000 -> 1; and 2 more changes"
    assert pipeline.stale()["replacement_candidates"] == reason


def test_missing_and_damaged_artifacts_are_stale(pipeline: FakePipeline) -> None:
    paths = pipeline.settings.paths
    paths["selection_log"].rmdir()
    file = paths["original_tokenizer"] / "vocab.json"
    file.write_text("{}")
    listed = {"vocab.json": WrittenFile(FileIdentity.of(file)._replace(bytes=3), "0" * 32)}
    write_manifest(Manifest("original_tokenizer", "run", files=listed), file.parent, folder=True)
    assert pipeline.stale() == {"selection_log": "artifact missing"}
    assert pipeline.stale(check_damage=True)["original_tokenizer"] == "artifact damaged"


def test_rules_edited_by_hand_are_stale(pipeline: FakePipeline) -> None:
    with pipeline.settings.paths["remap_rules"].open("a") as file:
        file.write("# a comment\n")
    assert pipeline.stale() == {}
    pipeline.settings.paths["remap_rules"].write_text("rules:\n  - broken")
    assert pipeline.stale()["remap_rules"] == "remap_rules.yaml edited by hand"


@pytest.mark.parametrize(("passed", "reason"), [(None, "blocking checks did not run"), (False, ""), (True, "")])
def test_asset_without_its_blocking_checks_is_stale(pipeline: FakePipeline, passed: bool | None, reason: str) -> None:
    pipeline.build(["distilled_tokenizer"], passed=passed)
    assert pipeline.stale().get("distilled_tokenizer", "") == reason
    assert pipeline.staleness().blocked_by_checks(dg.AssetKey("distilled_tokenizer")) == (passed is not True)


def test_planned_check_of_a_failed_run_does_not_count() -> None:
    fails = False

    @dg.asset
    def made() -> None:
        if fails:
            raise RuntimeError

    @dg.asset_check(asset=made)
    def check() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    instance = dg.DagsterInstance.ephemeral()
    job = dg.Definitions([made], asset_checks=[check]).resolve_implicit_global_asset_job_def()
    job.execute_in_process(instance=instance)
    fails = True
    assert not job.execute_in_process(instance=instance, raise_on_error=False).success
    evaluation = latest_evaluation(instance, dg.AssetCheckKey(made.key, "check"))
    assert evaluation is not None and evaluation.passed
