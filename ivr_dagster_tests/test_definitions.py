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

from ivr_dagster.cli import ui
from ivr_dagster.cli.ui import LOCATION
from ivr_dagster.definitions import build_definitions
from ivr_dagster.pipeline import ASSETS, STAGES, ArtifactPaths, stage_options
from ivr_dagster.resources.accelerator import Accelerator, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModel, BaseModelResource
from ivr_dagster.resources.settings import InvalidLaunchError, ProjectSettings, SettingsResource
from ivr_dagster.settings import Settings, load_settings
from ivr_dagster.settings.loading import FIELDS, INFO
from ivr_dagster.settings.presets import PRESETS
from ivr_dagster_tests.small_pipeline import BASELINES, TUNING

REPOSITORY = Path(__file__).parents[1]
SOURCES = {"raw_corpus", "base_model", "general_corpus", "retention_corpus"}


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
    assert "Did you mean 'max_candidates'" in result.stdout


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
    assert {spec.key.to_user_string() for spec in specs} == set(ASSETS) | SOURCES
    for spec in specs:
        name = spec.key.to_user_string()
        assert spec.description and len(spec.description) > 60, name
        assert spec.kinds, name
        if name not in SOURCES:  # Dagster's observable sources take neither
            assert spec.owners == ["team:ivr"], name
            assert spec.code_version, name


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ({"vanilla": False}, set(BASELINES)),
        ({"vanilla_compute": False}, {"vanilla_compute_checkpoint"}),
    ],
)
def test_a_baseline_that_is_not_asked_for_is_no_asset(
    given: dict[str, bool], left_out: set[str], tmp_path: Path
) -> None:
    definitions = build_definitions(Settings.of(**given), artifacts_dir=tmp_path)
    graph = definitions.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == (set(ASSETS) | SOURCES) - left_out
    for job in ("everything", "tokenizer_side", "training_side"):
        assert definitions.resolve_job_def(job).nodes


def test_no_job_makes_the_search_for_training_settings(tmp_path: Path) -> None:
    definitions = build_definitions(Settings(), artifacts_dir=tmp_path)
    for job in ("everything", "tokenizer_side", "training_side"):
        assert not set(TUNING) & {node.name for node in definitions.resolve_job_def(job).nodes}


def test_settings_affect_known_assets_and_appear_everywhere(tmp_path: Path) -> None:
    resources = build_definitions(Settings(), artifacts_dir=tmp_path).resources or {}
    launchpad = resources["settings"].config_field.config_type.fields
    offered = {name for command in (*STAGES, "tune", "ui") for name in stage_options(command)}
    for name, info in INFO.items():
        assert set(info.affects) <= set(ASSETS), name
        assert name in launchpad, name
        assert name in offered, name


@pytest.mark.parametrize(
    ("setting", "value"), [("max_candidates", 10), ("max_texts", 10), ("seed", 7), ("heldout_floor", 1)]
)
def test_changed_setting_changes_the_code_versions_of_affected_assets_only(
    setting: str, value: int, tmp_path: Path
) -> None:
    before, after = (_code_versions(tmp_path, Settings.of(**given)) for given in ({}, {setting: value}))
    assert {asset for asset in before if before[asset] != after[asset]} == set(INFO[setting].affects)


def test_changed_training_settings_change_the_code_version_of_checkpoints_and_tuning_only(tmp_path: Path) -> None:
    before = _code_versions(tmp_path, Settings())
    (tmp_path / "sft_config.yaml").write_text("num_train_epochs: 1\n", encoding="utf-8")
    after = _code_versions(tmp_path, Settings())
    changed = {asset for asset in before if before[asset] != after[asset]}
    assert changed == {*BASELINES, "sft_checkpoint", "tuning_study"}


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
    before = _code_versions(tmp_path, Settings.of(**given))
    (tmp_path / "accelerate_config.yaml").write_text(text, encoding="utf-8")
    after = _code_versions(tmp_path, Settings.of(**given))
    changed = {asset for asset in before if before[asset] != after[asset]}
    assert changed == ({*BASELINES, "sft_checkpoint"} if counts else set())


def test_another_precision_in_the_launch_settings_is_another_code_version(tmp_path: Path) -> None:
    versions = []
    for precision in ("'no'", "bf16"):
        (tmp_path / "launch.yaml").write_text(f"mixed_precision: {precision}\n", encoding="utf-8")
        settings = Settings.of(accelerate_config=str(tmp_path / "launch.yaml"))
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
    def seen(self) -> list[tuple[ProjectSettings, BaseModel, Accelerator]]:
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
        assert (settings.selection.merge_scope, settings.tokenizer.model_name, settings.selection.max_candidates) == (
            "across",
            "sample",
            7,
        )
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
        assert (settings.evaluation.evaluation_bytes, settings.tuning.tune_bytes, settings.tokenizer.model_name) == (
            5,
            7,
            "sample",
        )

    def test_one_preset_takes_the_place_of_another_whole(self, launch: Any, seen: list[Any]) -> None:
        laptop = PRESETS["laptop"] | {"preset": "laptop"}
        of_preset = {key: FIELDS[key].default for key in laptop} | PRESETS["gpu"]
        launch(laptop | {"preset": "gpu"}, preset="laptop", seed=7)
        ((settings, _, _),) = seen
        assert {key: settings.get(key) for key in of_preset} == of_preset | {"preset": "gpu"}
        assert settings.compute.seed == 7

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"max_candidates": -4}, "launchpad: max_candidates is -4: input should be greater than or equal to 0"),
            ({"text_split_bytes": 7, "block_size": -1}, "(?s)text_split_bytes is 7.*block_size is -1"),
            ({"vanilla": False}, "launchpad: vanilla: cannot change for a single run.*ivr.yaml"),
            ({"model_name": "sample"}, "launchpad: model_name: cannot change"),
        ],
    )
    def test_a_fault_is_told_before_anything_runs(
        self, launch: Any, seen: list[Any], given: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(InvalidLaunchError, match=told):
            launch(given)
        assert not seen

    def test_a_choice_that_there_is_not_is_dagsters_to_refuse(self, launch: Any, seen: list[Any]) -> None:
        with pytest.raises(dg.DagsterInvalidConfigError, match="sideways"):
            launch({"merge_scope": "sideways"})
        assert not seen


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
