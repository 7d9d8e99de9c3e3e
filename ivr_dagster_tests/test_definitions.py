"""What Dagster loads: complete, quick to import, without warnings of our making, and stale when settings change."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from ivr_dagster.definitions import build_definitions
from ivr_dagster.io_managers.artifacts import SETTINGS_KEY
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.settings import Settings
from ivr_dagster.stages import BASELINES, STAGES, TUNING
from ivr_dagster.ui import LOCATION

REPOSITORY = Path(__file__).parents[1]
SPECS = Path(__file__).with_name("specs.yaml")
GROUPS = {"corpus", "tokens", "tokenizer", "vocabulary", "embedding", "training", "evaluation"}
SOURCES = {"raw_corpus", "base_model"}
MADE = {asset for assets in STAGES.values() for asset in assets} | set(TUNING)

# asset, check, blocking
CHECKS = {
    ("distilled_tokenizer", "ids_kept", True),
    ("distilled_tokenizer", "round_trip", True),
    ("distilled_tokenizer", "agreement_floor", True),
    ("remapped_tokenizer", "ids_kept", True),
    ("remapped_tokenizer", "round_trip", True),
    ("remapped_tokenizer", "new_tokens_reachable", True),
    ("remapped_tokenizer", "documents_no_longer", False),
    ("reordered_embeddings", "kept_rows_bitwise", True),
    ("initialized_model", "kept_rows_bitwise", True),
    ("evaluation_report", "bpb_falls_with_training", False),
    ("evaluation_report", "bpb_of_distilled_near_base", False),
    ("evaluation_report", "retention", False),
}

# a setting with another value than its default, and the assets whose content it decides
DEPENDENTS: dict[str, tuple[object, set[str]]] = {
    "text_key": ("body", {"cleaned_corpus", "training_blocks"}),
    "encoding": ("latin-1", {"cleaned_corpus", "training_blocks"}),
    "normalization": ("none", {"cleaned_corpus", "training_blocks"}),
    "heldout_fraction": (0.1, {"cleaned_corpus"}),
    "text_split_bytes": (0, {"cleaned_corpus", "training_blocks"}),
    "model_name": ("sample", {"original_tokenizer", "original_embeddings", "initialized_model"}),
    "revision": ("main", {"original_tokenizer", "original_embeddings", "initialized_model"}),
    "max_texts": (
        10,
        {"pretoken_counts", "token_sequences", "replacement_candidates", "fitted_embeddings", "tuning_study"},
    ),
    "agreement_floor": (0.5, {"distilled_tokenizer"}),
    "exceptions": (0, {"distilled_tokenizer", "remapped_tokenizer", "tuning_study"}),
    "longer_documents_ceiling": (0.5, {"remapped_tokenizer"}),
    "max_candidates": (10, {"replacement_candidates"}),
    "least_saving": (0.01, {"replacement_candidates"}),
    "min_token_len": (3, {"replacement_candidates"}),
    "max_token_len": (9, {"replacement_candidates"}),
    "min_frequency": (3, {"replacement_candidates"}),
    "letters_only": (True, {"replacement_candidates"}),
    "join_digits": (False, {"replacement_candidates"}),
    "merge_scope": ("across", {"replacement_candidates"}),
    "max_phrases": (9, {"replacement_candidates"}),
    "least_documents": (1, {"replacement_candidates"}),
    "least_gain": (0.1, {"replacement_candidates"}),
    "sticky": (False, {"replacement_candidates"}),
    "init_strategy": ("zeros", {"fitted_embeddings"}),
    "calibration_bytes": (1000, {"fitted_embeddings"}),
    "token_distillation_bytes": (1000, {"fitted_embeddings"}),
    "token_distillation_learning_rate": (1e-4, {"fitted_embeddings"}),
    "token_distillation_hidden_weight": (1.0, {"fitted_embeddings"}),
    "block_size": (64, {"training_blocks", "tuning_study"}),
    "train_bytes": (1000, {"training_blocks", "fitted_embeddings"}),
    "validation_bytes": (1000, {"training_blocks", "fitted_embeddings"}),
    "general_corpora_dir": ("elsewhere", {"training_blocks"}),
    "general_share": (0.5, {"training_blocks"}),
    "warm_start": (True, {"sft_checkpoint"}),
    "dtype": ("bfloat16", {"fitted_embeddings", *BASELINES.values(), "sft_checkpoint", "tuning_study"}),
    "tune_trials": (3, {"tuning_study"}),
    "tune_bytes": (1000, {"tuning_study"}),
    "tune_seconds": (1.0, {"tuning_study"}),
    "tune_new_tokens": (True, {"tuning_study"}),
    "evaluation_bytes": (1000, {"evaluation_report"}),
    "retention_bytes": (1000, {"evaluation_report", "training_blocks"}),
    "retention_corpora_dir": ("elsewhere", {"evaluation_report", "training_blocks"}),
    "continuations": (0, {"evaluation_report"}),
    "seed": (7, {"fitted_embeddings", "evaluation_report", "tuning_study"}),
    "rebuild": ("nothing", set()),
    "retrain": ("new_text", set()),
    "quiet_seconds": (1.0, set()),
    "device": ("cpu", set()),
    "raw_corpora_dir": ("elsewhere", set()),  # its content counts: the source's data version
}


def _code_versions(artifacts: Path, settings: Settings) -> dict[str, str | None]:
    definitions = build_definitions(settings, artifacts_dir=artifacts)
    specs = definitions.resolve_all_asset_specs()
    return {spec.key.to_user_string(): spec.code_version for spec in specs if spec.key.to_user_string() not in SOURCES}


def _validate(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """`dagster definitions validate` in a folder that has the repository's workspace.yaml alone."""
    shutil.copy(REPOSITORY / "workspace.yaml", tmp_path)
    environment = {key: value for key, value in os.environ.items() if key not in ("DAGSTER_HOME", "IVR_CONFIG")}
    return subprocess.run(
        [Path(sys.executable).with_name("dagster"), "definitions", "validate"],
        cwd=tmp_path,
        env=environment | {"IVR_ARTIFACTS_DIR": str(tmp_path / "artifacts"), "PYTHONWARNINGS": "always"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )


def test_dagster_validates_the_definitions_without_a_warning_about_them(tmp_path: Path) -> None:
    result = _validate(tmp_path)
    assert result.returncode == 0, result.stdout
    assert "Validation successful for code location ivr_dagster" in result.stdout
    assert not re.findall(
        r"^(?!.*site-packages).*\bivr_dagster/\S*:\d+: \w*Warning.*$", result.stdout, flags=re.MULTILINE
    )


def test_a_fault_in_the_settings_file_is_what_loading_fails_with(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "ivr.yaml").write_text("preset: none\nmax_candidate: 7\n", encoding="utf-8")
    result = _validate(tmp_path)
    assert result.returncode != 0
    assert "ivr.yaml:2: unknown setting 'max_candidate'" in result.stdout
    assert "did you mean 'max_candidates'" in result.stdout


def test_the_ui_serves_the_location_that_the_repository_names() -> None:
    """Dagster keeps what is switched on or off by that name."""
    names = re.findall(r"_name: (\S+)", (REPOSITORY / "workspace.yaml").read_text())
    assert names == ["ivr_dagster.definitions", LOCATION]


def test_importing_the_definitions_loads_no_library_of_models() -> None:
    heavy = ("torch", "transformers", "datasets", "accelerate", "matplotlib", "safetensors")
    code = f"import sys, ivr_dagster.definitions; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert result.stdout.strip() == "[]"


def test_every_asset_is_described_for_the_ui(tmp_path: Path) -> None:
    specs = list(build_definitions(Settings(), artifacts_dir=tmp_path).resolve_all_asset_specs())
    assert {spec.key.to_user_string() for spec in specs} == MADE | SOURCES
    assert {spec.group_name for spec in specs} == GROUPS
    for spec in specs:
        name = spec.key.to_user_string()
        assert spec.description and len(spec.description) > 60, name
        assert spec.kinds, name
        if name not in SOURCES:  # Dagster's observable sources take neither
            assert spec.owners == ["team:ivr"], name
            assert spec.code_version, name


def described(tmp_path: Path) -> dict[str, dict[str, object]]:
    """What Dagster is told of every asset, texts and hashes left out."""
    definitions = build_definitions(Settings(), artifacts_dir=tmp_path)
    graph = definitions.resolve_asset_graph()
    found: dict[str, dict[str, object]] = {}
    for spec in sorted(definitions.resolve_all_asset_specs(), key=lambda spec: spec.key):
        key = spec.key
        node = graph.get(key)
        condition = node.automation_condition
        conditions = [child.get_label() or child.name for child in condition.children] if condition else []
        found[key.to_user_string()] = {
            "group": spec.group_name,
            "kinds": sorted(spec.kinds),
            "made of": sorted(parent.to_user_string() for parent in node.parent_keys),
            "settings": sorted(spec.metadata.get(SETTINGS_KEY, ())),
            "checks": sorted(check.name for check in graph.asset_check_keys if check.asset_key == key),
            "pools": sorted(node.pools or ()),
            "made by itself": conditions,
        }
    return found


def test_what_dagster_is_told_of_the_assets_is_as_it_was(tmp_path: Path) -> None:
    """`specs.yaml` is written anew where it is missing: look at the difference before committing it."""
    found = yaml.safe_dump(described(tmp_path), sort_keys=False, width=120)
    if not SPECS.is_file():
        SPECS.write_text(found)
        pytest.fail(f"{SPECS} was missing and is written: commit it if it is right")
    assert found == SPECS.read_text()


def test_every_invariant_is_a_check_and_blocks_and_quality_only_warns(tmp_path: Path) -> None:
    graph = build_definitions(Settings(), artifacts_dir=tmp_path).resolve_asset_graph()
    specs = {key: graph.get_check_spec(key) for key in graph.asset_check_keys}
    found = {(key.asset_key.to_user_string(), key.name, spec.blocking) for key, spec in specs.items()}
    assert found == CHECKS
    assert all(spec.description for spec in specs.values())


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ({"vanilla": False}, set(BASELINES.values())),
        ({"vanilla_compute": False}, {"vanilla_compute_checkpoint"}),
    ],
)
def test_a_baseline_that_is_not_asked_for_is_no_asset(
    given: dict[str, bool], left_out: set[str], tmp_path: Path
) -> None:
    definitions = build_definitions(Settings(**given), artifacts_dir=tmp_path)
    graph = definitions.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == (MADE | SOURCES) - left_out
    for job in ("everything", "tokenizer_side", "training_side"):
        assert definitions.resolve_job_def(job).nodes


def test_no_job_makes_the_search_for_training_settings(tmp_path: Path) -> None:
    definitions = build_definitions(Settings(), artifacts_dir=tmp_path)
    for job in ("everything", "tokenizer_side", "training_side"):
        assert not set(TUNING) & {node.name for node in definitions.resolve_job_def(job).nodes}


@pytest.mark.parametrize("setting", DEPENDENTS)
def test_a_changed_setting_changes_the_code_version_of_what_depends_on_it_only(setting: str, tmp_path: Path) -> None:
    value, expected = DEPENDENTS[setting]
    assert getattr(Settings(), setting) != value
    before, after = (_code_versions(tmp_path, Settings(**given)) for given in ({}, {setting: value}))
    assert {asset for asset in before if before[asset] != after[asset]} == expected


def test_changed_training_settings_change_the_code_version_of_checkpoints_and_tuning_only(tmp_path: Path) -> None:
    before = _code_versions(tmp_path, Settings())
    (tmp_path / "sft_config.yaml").write_text("num_train_epochs: 1\n", encoding="utf-8")
    after = _code_versions(tmp_path, Settings())
    changed = {asset for asset in before if before[asset] != after[asset]}
    assert changed == {*BASELINES.values(), "sft_checkpoint", "tuning_study"}


def test_one_setting_typed_into_the_launchpad_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    definitions = build_definitions(Settings(model_name="sample", max_candidates=7), artifacts_dir=tmp_path)
    seen = []

    @dg.op
    def look(settings: SettingsResource) -> None:
        seen.append(settings)

    @dg.job(resource_defs={"settings": (definitions.resources or {})["settings"]})
    def looks() -> None:
        look()

    looks.execute_in_process(run_config={"resources": {"settings": {"config": {"merge_scope": "across"}}}})
    (settings,) = seen
    assert (settings.merge_scope, settings.model_name, settings.max_candidates) == ("across", "sample", 7)
    assert settings.places.root == tmp_path
