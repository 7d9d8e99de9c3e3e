"""What Dagster loads: complete, quick to import, without warnings of our making, and stale when settings change."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import yaml

from ivr_dagster.pipeline import ArtifactPaths
from ivr_dagster.cli import ui
from ivr_dagster.cli.ui import LOCATION
from ivr_dagster.definitions import build_definitions
from ivr_dagster.io_managers.artifacts import SETTINGS_KEY
from ivr_dagster.resources.accelerator import Accelerator, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModel, BaseModelResource
from ivr_dagster.resources.settings import LaunchRefused, SettingsResource
from ivr_dagster.settings import PRESETS, Settings, load_settings


REPOSITORY = Path(__file__).parents[1]
SPECS = Path(__file__).with_name("specs.yaml")
GROUPS = {"corpus", "tokens", "tokenizer", "vocabulary", "embedding", "training", "evaluation"}
SOURCES = {"raw_corpus", "base_model", "general_corpus", "retention_corpus"}
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
    ("remapped_tokenizer", "token_saving_floor", False),
    ("cleaned_corpus", "heldout_floor", False),
    ("sft_checkpoint", "loss_falls", False),
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
    "encoding_errors": ("replace", {"cleaned_corpus", "training_blocks"}),
    "on_bad_input": ("skip", {"cleaned_corpus", "training_blocks"}),
    "normalization": ("none", {"cleaned_corpus", "training_blocks"}),
    "heldout_fraction": (0.1, {"cleaned_corpus"}),
    "text_split_bytes": (0, {"cleaned_corpus", "training_blocks"}),
    "model_name": ("sample", set()),  # as with the raw corpus, what is there counts
    "revision": ("main", set()),
    "max_texts": (
        10,
        {
            "pretoken_counts",
            "token_stats",
            "token_sequences",
            "replacement_candidates",
            "fitted_embeddings",
            "tuning_study",
        },
    ),
    "max_pretoken_types": (9, {"pretoken_counts"}),
    "agreement_floor": (0.5, {"distilled_tokenizer"}),
    "exceptions": (0, {"distilled_tokenizer", "remapped_tokenizer", "tuning_study"}),
    "longer_documents_ceiling": (0.5, {"remapped_tokenizer"}),
    "saving_floor": (0.2, {"remapped_tokenizer", "selection_log"}),
    # thresholds of warnings on what is dear to make: they count from the next time on, or `Execute` on Checks
    "heldout_floor": (1, set()),
    "distilled_tolerance": (0.1, set()),
    "retention_tolerance": (0.1, set()),
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
    "general_corpora_dir": ("elsewhere", set()),  # as with the raw corpus, the content counts
    "general_share": (0.5, {"training_blocks"}),
    "warm_start": (True, {"sft_checkpoint"}),
    "dtype": ("bfloat16", {"fitted_embeddings", *BASELINES.values(), "sft_checkpoint", "tuning_study"}),
    "tune_trials": (3, {"tuning_study"}),
    "tune_bytes": (1000, {"tuning_study"}),
    "tune_seconds": (1.0, {"tuning_study"}),
    "tune_new_tokens": (True, {"tuning_study"}),
    "evaluation_bytes": (1000, {"evaluation_report"}),
    "retention_bytes": (1000, {"evaluation_report", "training_blocks"}),
    "retention_corpora_dir": ("elsewhere", {"training_blocks"}),  # what is measured on is not trained on
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


@pytest.mark.parametrize(
    ("text", "given", "counts"),
    [
        ("num_processes: 4\n", {}, False),
        ("num_processes: 4\nmixed_precision: bf16\n", {}, True),
        ("mixed_precision: 'no'\n", {}, True),
        ("mixed_precision: bf16\n", {"dtype": "float32"}, False),  # the setting goes before the file
        ("use_cpu: true\n", {}, True),  # auto is another dtype there
        ("use_cpu: true\n", {"device": "cpu"}, False),
        ("use_cpu: true\n", {"dtype": "float32"}, False),
        ("mixed_precision: [\n", {}, False),  # told by what trains
    ],
)
def test_launch_settings_change_the_code_version_of_checkpoints_where_they_decide_arithmetic(
    text: str, given: dict[str, Any], counts: bool, tmp_path: Path
) -> None:
    before = _code_versions(tmp_path, Settings(**given))
    (tmp_path / "accelerate_config.yaml").write_text(text, encoding="utf-8")
    after = _code_versions(tmp_path, Settings(**given))
    changed = {asset for asset in before if before[asset] != after[asset]}
    assert changed == ({*BASELINES.values(), "sft_checkpoint"} if counts else set())


def test_another_precision_in_the_launch_settings_is_another_code_version(tmp_path: Path) -> None:
    versions = []
    for precision in ("'no'", "bf16"):
        (tmp_path / "launch.yaml").write_text(f"mixed_precision: {precision}\n", encoding="utf-8")
        settings = Settings(accelerate_config=str(tmp_path / "launch.yaml"))
        versions.append(_code_versions(tmp_path, settings)["sft_checkpoint"])
    assert versions[0] != versions[1]


def test_the_uis_servers_load_changed_launch_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "SECONDS_BETWEEN_LOOKS", 0.0)
    (tmp_path / "ivr.yaml").write_text(f"accelerate_config: {tmp_path / 'named.yaml'}\n", encoding="utf-8")
    for name in ("accelerate_config.yaml", "named.yaml"):
        watched = ui._watched(tmp_path, None)
        assert not next(watched)
        (tmp_path / name).write_text("mixed_precision: bf16\n", encoding="utf-8")
        assert [next(watched) for _ in range(3)] == [False, True, False]


class TestTheLaunchpad:
    """What is typed into it, for one run."""

    @pytest.fixture
    def seen(self) -> list[tuple[SettingsResource, BaseModel, Accelerator]]:
        return []

    @pytest.fixture
    def launch(self, seen: list[Any], tmp_path: Path) -> Callable[..., None]:
        """`launch(given, key=value…)`: an op that looks at the resources, under the settings file's `key=value`."""

        def launch(given: dict[str, Any], **settings: Any) -> None:
            known = load_settings(tmp_path, options=settings, environ={})
            definitions = build_definitions(known, artifacts_dir=tmp_path)
            resources = definitions.resources or {}

            @dg.op
            def look(settings: SettingsResource, base: BaseModelResource, accelerator: AcceleratorResource) -> None:
                seen.append((settings, base, accelerator))

            @dg.job(resource_defs={key: resources[key] for key in ("settings", "base", "accelerator")})
            def looks() -> None:
                look()

            config = {"resources": {"settings": {"config": given}}} if given else {}
            looks.execute_in_process(run_config=config)

        return launch

    def test_one_setting_leaves_the_others_as_they_are(self, launch: Any, seen: list[Any], tmp_path: Path) -> None:
        launch({"merge_scope": "across"}, model_name="sample", max_candidates=7)
        ((settings, base, _),) = seen
        assert (settings.selection.merge_scope, settings.tokenizer.model_name, settings.selection.max_candidates) == ("across", "sample", 7)
        assert base.model_name == "sample"
        assert settings.paths.root == tmp_path

    def test_the_device_reaches_what_trains(self, launch: Any, seen: list[Any]) -> None:
        launch({"device": "cpu", "dtype": "bfloat16"})
        ((_, _, accelerator),) = seen
        assert (accelerator.resolved_device(), accelerator.resolved_dtype()) == ("cpu", "bfloat16")

    def test_a_preset_changes_what_the_settings_file_leaves_at_its_default(self, launch: Any, seen: list[Any]) -> None:
        launch({"preset": "laptop", "tune_bytes": 7}, evaluation_bytes=5, model_name="sample")
        ((settings, _, _),) = seen
        assert settings.training.train_bytes == PRESETS["laptop"]["train_bytes"]
        assert (settings.evaluation.evaluation_bytes, settings.tuning.tune_bytes, settings.tokenizer.model_name) == (5, 7, "sample")

    def test_one_preset_takes_the_place_of_another_whole(self, launch: Any, seen: list[Any]) -> None:
        laptop = PRESETS["laptop"] | {"preset": "laptop"}
        of_preset = {key: Settings.model_fields[key].default for key in laptop} | PRESETS["gpu"]
        launch({**Settings(**laptop, seed=7).model_dump(include=set(laptop)), "preset": "gpu"}, preset="laptop", seed=7)
        ((settings, _, _),) = seen
        assert {key: getattr(settings, key) for key in of_preset} == of_preset | {"preset": "gpu"}
        assert settings.compute.seed == 7

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"max_candidates": -4}, "launchpad: max_candidates is -4: input should be greater than or equal to 0"),
            ({"text_split_bytes": 7, "block_size": -1}, "(?s)text_split_bytes is 7.*block_size is -1"),
            ({"vanilla": False}, "launchpad: vanilla: cannot be changed for one run alone.*ivr.yaml"),
            ({"model_name": "sample"}, "launchpad: model_name: cannot be changed"),
        ],
    )
    def test_a_fault_is_told_before_anything_runs(
        self, launch: Any, seen: list[Any], given: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(LaunchRefused, match=told):
            launch(given)
        assert not seen

    def test_a_choice_that_there_is_not_is_dagsters_to_refuse(self, launch: Any, seen: list[Any]) -> None:
        with pytest.raises(dg.DagsterInvalidConfigError, match="sideways"):
            launch({"merge_scope": "sideways"})
        assert not seen

    def test_there_is_one_place_for_settings(self, tmp_path: Path) -> None:
        resources = build_definitions(Settings(), artifacts_dir=tmp_path).resources or {}
        fields = {
            key: list(resources[key].config_field.config_type.fields or {})
            for key in resources
            if hasattr(resources[key].config_field.config_type, "fields")
        }
        assert list(fields) == ["settings"]
        assert fields["settings"] == list(Settings.model_fields)


@pytest.mark.parametrize(
    ("asset", "read"),
    [
        ("cleaned_corpus", lambda place: pl.read_parquet(place / "train" / "*.parquet")),
        ("pretoken_counts", pl.read_parquet),
        ("token_stats", pl.read_parquet),
        ("token_sequences", lambda place: pl.read_parquet(place / "*.parquet")),
        ("replacement_candidates", pl.read_csv),
    ],
)
def test_the_columns_that_the_ui_shows_are_those_of_the_table(
    asset: str, read: Any, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    graph = build_definitions(Settings(), artifacts_dir=tmp_path).resolve_asset_graph()
    schema = graph.get(dg.AssetKey(asset)).metadata["dagster/column_schema"]
    table = read(ArtifactPaths(built[0] / "artifacts")[asset])
    assert [column.name for column in schema.columns] == table.columns
    assert all(column.description for column in schema.columns)
