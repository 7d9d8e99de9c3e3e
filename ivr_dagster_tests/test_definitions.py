"""What Dagster loads: complete, quick to import, stale when settings change."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ivr_dagster.cli import ui
from ivr_dagster.definitions import build_definitions
from ivr_dagster.pipeline import ASSETS, LOCATION, MODULE, STAGES, stage_options
from ivr_dagster.resources.accelerator import Accelerator, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModel, BaseModelResource
from ivr_dagster.resources.settings import InvalidLaunchError, ProjectSettings, SettingsResource
from ivr_dagster.settings import Settings, load_settings
from ivr_dagster.settings.loading import FIELDS, INFO
from ivr_dagster.settings.presets import PRESETS
from ivr_dagster_tests.small_pipeline import BASELINES, TUNING, project_settings

REPOSITORY = Path(__file__).parents[1]
SOURCES = {"raw_corpus", "base_model"}
JOBS = ("everything", "tokenizer_side", "training_side")


def run(command: list[Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with `folder/artifacts` as the artifacts folder."""
    environment = {key: value for key, value in os.environ.items() if key not in ("DAGSTER_HOME", "IVR_CONFIG")}
    environment |= {"IVR_ARTIFACTS_DIR": str(folder / "artifacts"), "PYTHONWARNINGS": "always"}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )


def asset_specs(settings: Settings, artifacts: Path) -> dict[str, dg.AssetSpec]:
    specs = build_definitions(settings, artifacts_dir=artifacts).resolve_all_asset_specs()
    return {spec.key.to_user_string(): spec for spec in specs}


def setting_values(folder: Path, **given: Any) -> dict[str, dict[str, Any]]:
    """The setting values that enter each asset's code version."""
    project = project_settings(folder, **given)
    return {asset: project.values_for(asset) for asset in ASSETS}


def changed_assets(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {asset for asset in before if before[asset] != after[asset]}


@pytest.mark.slow
def test_definitions_are_valid_and_free_of_warnings(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "workspace.yaml", tmp_path)
    result = run([Path(sys.executable).with_name("dagster"), "definitions", "validate"], tmp_path)
    assert result.returncode == 0, result.stdout
    assert "Validation successful for code location ivr_dagster" in result.stdout
    assert not re.findall(
        r"^(?!.*site-packages).*\bivr_dagster/\S*:\d+: \w*Warning.*$", result.stdout, flags=re.MULTILINE
    )


@pytest.mark.slow
def test_dg_checks_the_definitions_and_launches_assets(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    (tmp_path / "ivr_dagster").symlink_to(REPOSITORY / "ivr_dagster")
    folder = tmp_path / "artifacts"
    folder.mkdir()
    (folder / "ivr.yaml").write_text("preset: sample\nmodel_name: sample\n", encoding="utf-8")
    dg_command = Path(sys.executable).with_name("dg")
    checked = run([dg_command, "check", "defs"], tmp_path)
    assert checked.returncode == 0, checked.stdout
    launched = run([dg_command, "launch", "--assets", "original_tokenizer"], tmp_path)
    assert launched.returncode == 0, launched.stdout
    assert (folder / "tokenizers" / "original" / "tokenizer.json").is_file()


def test_import_of_the_definitions_is_lazy(tmp_path: Path) -> None:
    heavy = ("torch", "transformers", "datasets", "accelerate", "matplotlib", "safetensors")
    load = "import sys; from ivr_dagster.definitions import build_definitions; build_definitions()"
    code = f"{load}; print([name for name in {heavy} if name in sys.modules])"
    result = run([sys.executable, "-W", "ignore", "-c", code], tmp_path)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_loading_the_definitions_reports_invalid_settings(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "ivr.yaml").write_text("preset: none\nmax_candidate: 7\n", encoding="utf-8")
    result = run([sys.executable, "-c", "from ivr_dagster.definitions import defs; defs()"], tmp_path)
    assert result.returncode != 0
    assert "ivr.yaml:2: unknown setting 'max_candidate'" in result.stdout
    assert "Did you mean 'max_candidates'" in result.stdout


def test_resources_have_readable_types(tmp_path: Path) -> None:
    definitions = build_definitions(Settings.of(model_name="sample"), artifacts_dir=tmp_path)
    resources = definitions.get_repository_def().get_top_level_resources()
    types = {name: f"{each.resource_fn.__module__}.{each.resource_fn.__name__}" for name, each in resources.items()}
    assert types["settings"] == "ivr_dagster.resources.settings.ProjectSettings"
    assert types["tokenizer_io"] == "ivr_dagster.io_managers.tokenizers.TokenizerIOManager"
    assert not [kind for kind in types.values() if "<" in kind]


def test_ui_and_workspace_file_name_the_same_code_location() -> None:
    """Dagster stores which sensors are on by that name."""
    names = re.findall(r"_name: (\S+)", (REPOSITORY / "workspace.yaml").read_text())
    assert names == [MODULE, LOCATION]
    tools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]
    assert tools["dagster"]["code_location_name"] == tools["dg"]["project"]["code_location_name"] == LOCATION


def test_every_asset_is_described(tmp_path: Path) -> None:
    specs = asset_specs(Settings(), tmp_path)
    assert set(specs) == set(ASSETS) | SOURCES
    for name, spec in specs.items():
        assert spec.description and len(spec.description) > 60, name
        assert spec.kinds, name
        if name not in SOURCES:  # Dagster's observable sources accept neither
            assert spec.owners == ["team:ivr"], name
            assert spec.code_version, name


@pytest.mark.parametrize(
    ("given", "disabled"),
    [
        ({"vanilla": False}, set(BASELINES)),
        ({"vanilla_compute": False}, {"vanilla_compute_checkpoint"}),
    ],
)
def test_disabled_baseline_is_not_an_asset(given: dict[str, bool], disabled: set[str], tmp_path: Path) -> None:
    definitions = build_definitions(Settings.of(**given), artifacts_dir=tmp_path)
    graph = definitions.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == (set(ASSETS) | SOURCES) - disabled
    for job in JOBS:
        nodes = {node.name for node in definitions.resolve_job_def(job).nodes}
        assert nodes
        assert not nodes & set(TUNING)


@pytest.mark.parametrize(
    ("setting", "source", "reader"),
    [
        ("general_corpora_dir", "general_corpus", "training_blocks"),
        ("retention_corpora_dir", "retention_corpus", "evaluation_report"),
    ],
)
def test_out_of_domain_source_exists_if_a_setting_names_its_folder(
    setting: str, source: str, reader: str, tmp_path: Path
) -> None:
    settings = Settings.of(**{setting: str(tmp_path)})
    definitions = build_definitions(settings, artifacts_dir=tmp_path)
    graph = definitions.resolve_asset_graph()
    assert definitions.resolve_job_def("training_side").nodes
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == set(ASSETS) | SOURCES | {source}
    assert graph.get(dg.AssetKey(source)).child_keys == {dg.AssetKey(reader)}


def test_external_tokenizer_is_a_dependency_of_training(tmp_path: Path) -> None:
    settings = Settings.of(tokenizer_path=str(tmp_path))
    definitions = build_definitions(settings, artifacts_dir=tmp_path)
    assert definitions.resolve_job_def("training_side").nodes
    graph = definitions.resolve_asset_graph()
    readers = {key.to_user_string() for key in graph.get(dg.AssetKey("external_train_tokenizer")).child_keys}
    assert "training_blocks" in readers


def test_new_python_makes_only_the_evaluation_of_its_documentation_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_settings(tmp_path)
    before = {name: project.values_for(name) for name in ASSETS}
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    assert [name for name in ASSETS if project.values_for(name) != before[name]] == ["evaluation_report"]


def test_training_less_text_changes_the_selection_only_if_it_chooses_the_number(tmp_path: Path) -> None:
    for number, expected in ((4000, set()), (0, {"replacement_candidates"})):
        before, after = (setting_values(tmp_path, max_candidates=number, train_bytes=size) for size in (0, 10**6))
        assert changed_assets(before, after) - {"fitted_embeddings", "training_blocks"} == expected


def test_every_setting_has_an_option_and_a_launchpad_field(tmp_path: Path) -> None:
    resources = build_definitions(Settings(), artifacts_dir=tmp_path).resources or {}
    launchpad = resources["settings"].config_field.config_type.fields
    offered = {name for command in (*STAGES, "tune", "ui") for name in stage_options(command)}
    for name, info in INFO.items():
        assert set(info.affects) <= set(ASSETS), name
        assert name in launchpad, name
        assert name in offered, name


def test_code_versions_follow_the_settings_of_their_assets(tmp_path: Path) -> None:
    before, after = (asset_specs(Settings.of(**given), tmp_path) for given in ({}, {"max_candidates": 10}))
    versions = [{name: specs[name].code_version for name in ASSETS} for specs in (before, after)]
    assert changed_assets(*versions) == set(INFO["max_candidates"].affects)


def test_changed_training_settings_affect_checkpoints_and_tuning(tmp_path: Path) -> None:
    before = setting_values(tmp_path)
    (tmp_path / "sft_config.yaml").write_text("num_train_epochs: 1\n", encoding="utf-8")
    assert changed_assets(before, setting_values(tmp_path)) == {*BASELINES, "sft_checkpoint", "tuning_study"}


@pytest.mark.parametrize(
    ("text", "given", "counts"),
    [
        ("num_processes: 4\n", {}, False),
        ("num_processes: 4\nmixed_precision: bf16\n", {}, True),
        ("mixed_precision: 'no'\n", {}, True),
        ("mixed_precision: bf16\n", {"dtype": "float32"}, False),  # the setting takes precedence
        ("use_cpu: true\n", {}, True),  # where auto means another dtype
        ("use_cpu: true\n", {"device": "cpu"}, False),
        ("use_cpu: true\n", {"dtype": "float32"}, False),
        ("mixed_precision: [\n", {}, False),  # reported when training starts
    ],
)
def test_launch_settings_affect_checkpoints_if_they_choose_the_dtype(
    text: str, given: dict[str, Any], counts: bool, tmp_path: Path
) -> None:
    before = setting_values(tmp_path, **given)
    (tmp_path / "accelerate_config.yaml").write_text(text, encoding="utf-8")
    changed = changed_assets(before, setting_values(tmp_path, **given))
    assert changed == ({*BASELINES, "sft_checkpoint"} if counts else set())


def test_ui_reloads_changed_launch_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "SECONDS_BETWEEN_LOOKS", 0.0)
    (tmp_path / "ivr.yaml").write_text(f"accelerate_config: {tmp_path / 'named.yaml'}\n", encoding="utf-8")
    for name in ("accelerate_config.yaml", "named.yaml"):
        watcher = ui._SettingsWatcher(tmp_path, None)
        assert not watcher.changed()
        (tmp_path / name).write_text("mixed_precision: bf16\n", encoding="utf-8")
        assert [watcher.changed() for _ in range(3)] == [False, True, False]


class TestLaunchpad:
    """Settings changed for one run."""

    @staticmethod
    def launch(folder: Path, given: dict[str, Any], **settings: Any) -> tuple[ProjectSettings, BaseModel, Accelerator]:
        """The resources of a run; `given` is typed into the launchpad, `settings` are those of the settings file."""
        known = load_settings(folder, options=settings, environ={})
        resources = build_definitions(known, artifacts_dir=folder).resources or {}
        recorded: list[Any] = []

        @dg.op
        def record(settings: SettingsResource, base: BaseModelResource, accelerator: AcceleratorResource) -> None:
            recorded.append((settings, base, accelerator))

        @dg.job(resource_defs={key: resources[key] for key in ("settings", "base", "accelerator")})
        def recording() -> None:
            record()

        recording.execute_in_process(run_config={"resources": {"settings": {"config": given}}} if given else {})
        return recorded[0]

    def test_launch_setting_leaves_the_others_unchanged(self, tmp_path: Path) -> None:
        settings, base, _ = self.launch(tmp_path, {"merge_scope": "across"}, model_name="sample", max_candidates=7)
        expected = {"merge_scope": "across", "model_name": "sample", "max_candidates": 7}
        assert {key: settings.get(key) for key in expected} == expected
        assert base.model_name == "sample"
        assert settings.paths.root == tmp_path

    def test_launch_device_reaches_the_accelerator(self, tmp_path: Path) -> None:
        _, _, accelerator = self.launch(tmp_path, {"device": "cpu", "dtype": "bfloat16"})
        assert (accelerator.resolved_device(), accelerator.resolved_dtype()) == ("cpu", "bfloat16")

    def test_launch_preset_changes_only_settings_at_their_default(self, tmp_path: Path) -> None:
        given = {"preset": "laptop", "tune_bytes": 7}
        settings, _, _ = self.launch(tmp_path, given, evaluation_bytes=5, model_name="sample")
        expected = {"evaluation_bytes": 5, "tune_bytes": 7, "model_name": "sample"}
        expected["train_bytes"] = PRESETS["laptop"]["train_bytes"]
        assert {key: settings.get(key) for key in expected} == expected

    def test_launch_preset_replaces_another_preset(self, tmp_path: Path) -> None:
        laptop = PRESETS["laptop"] | {"preset": "laptop"}
        settings, _, _ = self.launch(tmp_path, laptop | {"preset": "gpu"}, preset="laptop", seed=7)
        expected = {key: FIELDS[key].default for key in laptop} | PRESETS["gpu"] | {"preset": "gpu", "seed": 7}
        assert {key: settings.get(key) for key in expected} == expected

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"max_candidates": -4}, InvalidLaunchError, "launchpad: max_candidates is -4: input should be greater"),
            (
                {"text_split_bytes": 7, "block_size": -1},
                InvalidLaunchError,
                "(?s)text_split_bytes is 7.*block_size is -1",
            ),
            ({"vanilla": False}, InvalidLaunchError, "launchpad: vanilla: cannot change for a single run.*ivr.yaml"),
            ({"model_name": "sample"}, InvalidLaunchError, "launchpad: model_name: cannot change"),
            ({"merge_scope": "sideways"}, dg.DagsterInvalidConfigError, "sideways"),
        ],
    )
    def test_invalid_launch_setting_fails_before_the_run(
        self, given: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(error, match=message):
            self.launch(tmp_path, given)
