"""The whole pipeline through Dagster: with a tiny model, and in the slow tier with the packaged sample model."""

import json
import os
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

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.cli.project import Project, StageFailedError
from ivr_dagster.definitions import build_definitions
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import ASSETS
from ivr_dagster.settings import Settings
from ivr_dagster_tests.small_pipeline import SMALL, TINY, TUNING, Figures, open_project, stale, write_documents

# below the artifacts folder; DESIGN.md promises them to other programs
CONTRACT = (
    "analysis/pretoken_counts.parquet",
    "analysis/reports/replacement_candidates.csv",
    "analysis/reports/selection_log.md",
    "analysis/reports/token_frequency.parquet",
    "analysis/token_sequences/*.parquet",
    "corpora/cleaned/heldout/*.parquet",
    "corpora/cleaned/train/*.parquet",
    "embeddings/fitted_embeddings.safetensors",
    "embeddings/initialized_model/model.safetensors",
    "embeddings/original_embeddings.safetensors",
    "embeddings/reordered_embeddings.safetensors",
    "evaluation/model_card.md",
    "evaluation/report.json",
    "evaluation/report.md",
    "tokenizers/distilled_unigram/tokenizer.json",
    "tokenizers/original/tokenizer.json",
    "tokenizers/remap_rules.yaml",
    "tokenizers/remapped/tokenizer.json",
    "training/blocks",
    "training/sft_checkpoint/checkpoint-*",
    "training/sft_checkpoint/final_model/model.safetensors",
    "training/sft_checkpoint/logs/**/events.out.tfevents*",
    "training/vanilla_sft_checkpoint/final_model/model.safetensors",
)


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny pipeline. Tests leave its artifacts fresh."""
    return Path(shutil.copytree(tiny, tmp_path_factory.mktemp("pipeline") / "copy"))


@pytest.fixture(scope="module")
def figures(tiny_run: tuple[Path, Figures]) -> Figures:
    """Figures of the tiny pipeline by asset."""
    return tiny_run[1]


@pytest.fixture(scope="module")
def settings(tiny: Path, folder: Path) -> dict[str, Any]:
    """The settings of the tiny pipeline."""
    places = {"raw_corpora_dir": str(folder / "raw"), "config_path": str(folder / "sft_config.yaml")}
    return SMALL | TINY | places | {"model_name": str(tiny.parent / "model")}


@pytest.fixture(scope="module")
def sample(sample_run: tuple[Path, Figures], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sample model's pipeline."""
    return Path(shutil.copytree(sample_run[0], tmp_path_factory.mktemp("sample") / "copy"))


def open_with(folder: Path, settings: dict[str, Any], **changed: Any) -> Project:
    """The project in `folder` with the settings `settings | changed`."""
    return open_project(folder, **settings | changed)


def visible_files(artifacts: Path) -> dict[Path, bytes]:
    """Files outside hidden folders, and their contents."""
    visible = (place for place in artifacts.iterdir() if not place.name.startswith("."))
    files = (file for place in visible for file in [place, *place.rglob("*")] if file.is_file())
    return {file: file.read_bytes() for file in files}


def ivr(*arguments: str | Path, settings: dict[str, Any] | None = None, **environment: str) -> Any:
    """Run the command line with settings from the environment."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("IVR_", "DAGSTER_"))}
    variables = {f"IVR_{key.upper()}": str(value) for key, value in (settings or {}).items()}
    command = [sys.executable, "-m", "ivr_dagster.cli.app", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=kept | variables | environment, check=False, timeout=250
    )


def test_pipeline_writes_every_artifact_of_the_contract(folder: Path, figures: Figures) -> None:
    exported = {asset.name for asset in ASSETS.values() if asset.stage == "export"}
    assert set(figures) == set(ASSETS) - {*TUNING, *exported, "vanilla_compute_checkpoint"}
    assert [path for path in CONTRACT if not list((folder / "artifacts").glob(path))] == []


def test_column_schemas_match_the_tables(tiny: Path) -> None:
    tables: dict[str, Callable[[Path], pl.DataFrame]] = {
        "cleaned_corpus": lambda place: pl.read_parquet(place / "train" / "*.parquet"),
        "pretoken_counts": pl.read_parquet,
        "token_stats": pl.read_parquet,
        "token_sequences": lambda place: pl.read_parquet(place / "*.parquet"),
        "replacement_candidates": pl.read_csv,
    }
    paths = ArtifactPaths(tiny / "artifacts")
    specs = build_definitions(Settings(), artifacts_dir=paths.root).resolve_all_asset_specs()
    schemas = {spec.key.to_user_string(): spec.metadata.get("dagster/column_schema") for spec in specs}
    for asset, read in tables.items():
        columns = schemas[asset].columns
        assert [column.name for column in columns] == read(paths[asset]).columns
        assert all(column.description for column in columns)


def test_report_covers_every_variant(folder: Path) -> None:
    report = json.loads((folder / "artifacts/evaluation/report.json").read_text())
    assert {"base", "distilled", "initialized", "sft", "vanilla_sft"} <= set(report["variants"])
    for variant in report["variants"].values():
        assert 0 < variant["bpb"] < 20
        assert 1 < variant["bytes_per_token"] < 20
        assert variant["shortened_tokens"] <= 0.01 * variant["tokens"]
    assert len({variant["bytes"] for variant in report["variants"].values()}) == 1
    parts = report["diagnosis"].values()
    for name in set(report["variants"]) - {"distilled"}:
        bits, size = sum(part["bits"][name] for part in parts), sum(part["bytes"] for part in parts)
        assert bits / size == pytest.approx(report["variants"][name]["bpb"])
    assert 0 < report["token_saving"] < 1
    assert report["agreement"] > 0.99
    assert report["round_trip"] == 1.0
    pairs = {(each["variant"], each["against"]): each for each in report["differences"]}
    assert {("sft", "base"), ("sft", "vanilla_sft"), ("distilled", "base")} <= set(pairs)
    assert all(each["low"] <= each["difference"] <= each["high"] for each in pairs.values())
    assert set(report["variants"]["sft"]["token_groups"]) == {"kept", "new"}
    assert "vanilla" in (folder / "artifacts/evaluation/report.md").read_text()


def test_sample_report_measures_forgetting_and_speed(sample_run: tuple[Path, Figures]) -> None:
    report = json.loads((sample_run[0] / "artifacts/evaluation/report.json").read_text())
    assert 0 < report["retention"]["bytes"] <= 4_096  # at least one piece of text
    assert {"base", "sft", "vanilla_sft"} <= set(report["retention"]["variants"])
    assert set(report["timings"]) == {"base", "sft"}


@pytest.mark.slow
def test_repeated_evaluation_gives_the_same_report(folder: Path, settings: dict[str, Any]) -> None:
    project = open_with(folder, settings)
    before = project.data_version("evaluation_report")
    project.run(["evaluation_report"])
    assert project.data_version("evaluation_report") == before
    assert stale(open_with(folder, settings)) == {}


LOAD_MODELS = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    text = "The tokenizer <|endoftext|> gives  back\\tevery text: 한국어 é́ 🙂\\n"
    generated = pipeline("text-generation", model=folder, device="cpu")("The file", max_new_tokens=5, do_sample=False)
    configs = [tokenizer, model.config, GenerationConfig.from_pretrained(folder)]
    print(json.dumps({
        "faults": sum(len(found) for found in loading.values()),
        "sizes": [len(tokenizer), len(model.get_input_embeddings().weight)],
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "special ids": [[config.bos_token_id, config.eos_token_id] for config in configs],
        "round trip": tokenizer.decode(tokenizer(text)["input_ids"]) == text,
        "generates": len(generated[0]["generated_text"]) > len("The file"),
    }))
"""


@pytest.mark.slow
def test_model_folders_load_offline_with_transformers(folder: Path, tmp_path: Path) -> None:
    places = [folder / "artifacts" / name for name in ("embeddings/initialized_model", ASSETS["sft_checkpoint"].path)]
    places[1] /= "final_model"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "IVR_", "DAGSTER_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    result = subprocess.run(
        [sys.executable, "-c", LOAD_MODELS, *places],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    expected = {
        "faults": 0,
        "sizes": [1_057, 1_057],
        "tied": True,
        "special ids": [[1_056, 1_056]] * 3,
        "round trip": True,
        "generates": True,
    }
    assert [json.loads(line) for line in result.stdout.splitlines()] == [expected, expected]


def test_models_keep_the_configuration_of_the_base_model(folder: Path, tiny: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        written = folder / "artifacts/embeddings/initialized_model" / name
        assert written.read_bytes() == (tiny.parent / "model" / name).read_bytes()


def test_full_run_leaves_nothing_stale(folder: Path, settings: dict[str, Any]) -> None:
    assert stale(open_with(folder, settings)) == {}


def test_changed_setting_makes_its_asset_and_descendants_stale(folder: Path, settings: dict[str, Any]) -> None:
    found = stale(open_with(folder, settings, max_candidates=30))
    assert "max_candidates" in found["replacement_candidates"]
    assert not {"cleaned_corpus", "token_stats", "distilled_tokenizer", "original_embeddings"} & set(found)
    assert {"remap_rules", "remapped_tokenizer", "sft_checkpoint", "evaluation_report"} <= set(found)


def test_changed_training_settings_make_only_training_and_evaluation_stale(
    folder: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text((folder / "sft_config.yaml").read_text() + "weight_decay: 0.2\n")
    found = stale(open_with(folder, settings, config_path=str(other)))
    assert set(found) == {"vanilla_sft_checkpoint", "sft_checkpoint", "evaluation_report"}


@pytest.mark.slow
def test_duplicate_document_rebuilds_only_the_cleaned_corpus(folder: Path, settings: dict[str, Any]) -> None:
    extra = folder / "raw" / "again.jsonl"
    document = json.loads((folder / "raw" / "documents.jsonl").read_text().splitlines()[0])["text"]
    write_documents(extra, [document])
    try:
        project = open_with(folder, settings)
        assert stale(project)["cleaned_corpus"].startswith("raw_corpus: data version")
        project.run(["cleaned_corpus"])
        assert stale(open_with(folder, settings)) == {}
    finally:
        extra.unlink()
    open_with(folder, settings).run(["cleaned_corpus"])


@pytest.mark.slow
def test_edited_rules_are_used_and_kept(folder: Path, settings: dict[str, Any]) -> None:
    file = folder / "artifacts/tokenizers/remap_rules.yaml"
    computed = file.read_text()
    content = yaml.safe_load(computed)
    dropped = content["rules"].pop()
    try:
        file.write_text("# mine\n" + yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
        project = open_with(folder, settings)
        assert stale(project)["remap_rules"] == "remap_rules.yaml edited by hand"
        result = project.run(project.stage_assets("remap"))
        assert result.figures["remap_rules"]["edited_by_hand"] is True
        assert file.read_text().startswith("# mine\n")
        assert result.figures["remapped_tokenizer"]["tokens_reassigned"] == len(content["rules"])

        content["rules"][0]["id"] = 1_056
        file.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
        with pytest.raises(InputError, match=r"1056.*protected"):
            project.run(project.stage_assets("remap"))
        tokenizer = json.loads((folder / "artifacts/tokenizers/remapped/tokenizer.json").read_text())
        assert tokenizer["model"]["vocab"][dropped["id"]][0] == dropped["sacrificed_token"]
    finally:
        file.write_text(computed)
        project = open_with(folder, settings)
        project.run(project.stage_assets("remap"))
    assert stale(open_with(folder, settings)) == {}


@pytest.mark.slow
def test_failed_blocking_check_fails_the_stage_with_figure_and_remedy(folder: Path, settings: dict[str, Any]) -> None:
    project = open_with(folder, settings, agreement_floor=1.0, exceptions=0)
    with pytest.raises(StageFailedError, match=r"agreement_floor.*floor 1\.0.*worst divergences"):
        project.run(["distilled_tokenizer"])
    assert "agreement_floor" in project.failed_blocking_checks("select")
    repaired = open_with(folder, settings)
    repaired.run(["distilled_tokenizer"])
    assert repaired.failed_blocking_checks("select") == ""


def test_distilled_tokenizer_is_exact_on_the_train_split(folder: Path, figures: Figures) -> None:
    certificate = json.loads((folder / "artifacts/tokenizers/distilled_unigram/agreement.json").read_text())
    assert certificate["train"]["agreement"] == figures["distilled_tokenizer"]["agreement"] == 1.0
    assert certificate["train"]["divergences"] == []
    assert certificate["exceptions"] == figures["distilled_tokenizer"]["exceptions"]
    remapped = json.loads((folder / "artifacts/tokenizers/remapped/agreement.json").read_text())
    assert remapped["untouched_occurrences_identical"] > 0.999 * remapped["untouched_occurrences"]
    assert remapped["heldout_lengths"]["longer"] == figures["remapped_bpe_tokenizer"]["documents_longer"]


@pytest.mark.slow
def test_unavailable_model_exits_with_two_and_names_the_remedies(tmp_path: Path) -> None:
    write_documents(tmp_path / "raw" / "a.jsonl", ["some text"])
    options = ("--artifacts-dir", tmp_path / "a", "init", "--raw-corpora-dir", tmp_path / "raw")
    found = ivr(*options, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert found.returncode == 2, found.stderr
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert "openai-community/gpt2" in found.stderr
    assert "--model-name FOLDER" in found.stderr


def test_json_status_is_one_object_on_standard_output(folder: Path, settings: dict[str, Any]) -> None:
    found = ivr("--artifacts-dir", folder / "artifacts", "--json", "status", settings=settings)
    assert found.returncode == 0, found.stderr
    rows = {row["asset"]: row for row in json.loads(found.stdout)["assets"]}
    assert all(row["fresh"] for row in rows.values())
    assert rows["remapped_tokenizer"]["figures"]["tokens_reassigned"] == 40


@pytest.mark.slow
def test_dry_selection_shows_the_saving_and_writes_nothing(folder: Path, settings: dict[str, Any]) -> None:
    before = visible_files(folder / "artifacts")
    dry = ("--artifacts-dir", folder / "artifacts", "--json", "select", "--dry-run", "--max-candidates")
    given = {key: value for key, value in settings.items() if key != "max_candidates"}
    found = ivr(*dry, "300", "--merge-scope", "across", "--least-documents", "2", settings=given)
    assert found.returncode == 0, found.stderr
    plan = json.loads(found.stdout)
    assert plan["candidates"] == 300
    assert [point["new_tokens"] for point in plan["curve"]] == [100, 200, 300]
    assert plan["curve"][-1]["heldout"] == pytest.approx(plan["token_saving_heldout"])
    assert plan["curve"][0]["last_hundred"] == plan["curve"][0]["heldout"]
    assert plan["rules_kept"] > 20  # of 40 current rules
    assert visible_files(folder / "artifacts") == before


def test_selection_without_a_corpus_names_the_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cleaned_corpus does not exist yet. Run `ivr init` first"):
        open_project(tmp_path, observe=False).plan_selection()


@pytest.mark.slow
def test_tuning_finds_the_best_settings_and_changes_nothing_else(sample: Path) -> None:
    changed = {"tune_bytes": 6_000, "tune_new_tokens": True}
    places = {"raw_corpora_dir": sample / "raw", "config_path": sample / "sft_config.yaml"}
    before = {file: found for file, found in visible_files(sample / "artifacts").items() if "tuning" not in file.parts}
    command = ("--artifacts-dir", sample / "artifacts", "--json", "tune", "--trials", "4")
    found = ivr(*command, settings=SMALL | changed | places)
    assert found.returncode == 0, found.stderr
    output = json.loads(found.stdout)
    figures = output["assets"]["tuning_study"]
    trials = output["trials"]
    assert figures["trials"] == len(trials) == 4
    assert figures["best_bits_per_byte"] <= figures["default_bits_per_byte"] == trials[0]["value"]
    assert {trial["parameters"]["new_tokens"] for trial in trials} > {150}
    lengths = {
        trial["parameters"]["new_tokens"]: trial["figures"]["tokens_per_byte"]
        for trial in trials
        if trial["state"] == "complete"
    }
    assert sorted(lengths, key=lengths.__getitem__) == sorted(lengths, reverse=True)

    place = sample / "artifacts/training/tuning"
    names = {file.name for file in place.iterdir() if not file.name.startswith(".")}
    assert names - {"settings.yaml"} == {"study.db", "study.json", "sft_config.yaml", "history.png", "settings.png"}
    assert yaml.safe_load((place / "sft_config.yaml").read_text()).items() >= output["settings"].items()
    assert (place / "settings.yaml").exists() == (output["new_tokens"] != 150)
    after = {file: found for file, found in visible_files(sample / "artifacts").items() if "tuning" not in file.parts}
    changed_files = {file.name for file in after if after[file] != before.get(file)}
    assert changed_files <= {"ivr.yaml"}  # remembers --trials

    project = open_project(sample, **changed, tune_trials=4)
    assert stale(project) == {}
    again = project.run(TUNING).figures["tuning_study"]
    assert (again["trials"], again["trials_done_before"]) == (4, 4)
    assert again["best_bits_per_byte"] == figures["best_bits_per_byte"]


def test_trial_from_the_launchpad_leaves_the_current_rules(folder: Path, settings: dict[str, Any]) -> None:
    project = open_project(folder, observe=False, **settings)
    key, rules = dg.AssetKey("replacement_candidates"), project.paths["remap_rules"]
    before = rules.read_text()

    def made_with() -> str:
        record = project.instance.fetch_materializations(key, limit=1).records[0]
        assert record.asset_materialization is not None
        found = record.asset_materialization.metadata.get("one-off settings")
        return "" if found is None else str(found.value)

    trial = [key, dg.AssetKey("remap_rules")]
    typed = {"resources": {"settings": {"config": {"max_candidates": 10}}}}
    for _ in range(2):
        project.job.execute_in_process(instance=project.instance, asset_selection=trial, run_config=typed)
    assert rules.read_text().count("new_token:") == 10
    assert "`max_candidates: 40 -> 10`" in made_with()
    assert "one-off settings (max_candidates: 10 -> 40)" in stale(project)["replacement_candidates"]
    project.run(["replacement_candidates", "remap_rules"])
    assert (rules.read_text(), made_with()) == (before, "")
