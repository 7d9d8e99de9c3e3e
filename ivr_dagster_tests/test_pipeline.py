"""The whole pipeline through Dagster, on real if small input: the packaged model and a part of the sample corpus."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ivr_dagster.cli.workbench import StageFailed
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import ASSETS
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster_tests.small_pipeline import BASELINES, SMALL, TUNING, stale, workbench


@pytest.fixture(scope="module")
def folder(built: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what was built, to do with as one likes."""
    return Path(shutil.copytree(built[0], tmp_path_factory.mktemp("pipeline") / "copy"))


@pytest.fixture(scope="module")
def finished(built: tuple[Path, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures by asset after every stage has run once, in order."""
    return built[1]


def contents(artifacts: Path) -> dict[Path, bytes]:
    """Every file but what lies in hidden folders and files at the top: Dagster's instance, locks, what is kept."""
    visible = (place for place in artifacts.iterdir() if not place.name.startswith("."))
    files = (file for place in visible for file in [place, *place.rglob("*")] if file.is_file())
    return {file: file.read_bytes() for file in files}


def test_every_artifact_lies_where_the_design_says(folder: Path, finished: dict[str, dict[str, Any]]) -> None:
    made = set(ASSETS) - {*TUNING}
    assert made == set(finished)
    for name in made:
        assert (folder / "artifacts" / ASSETS[name].path).exists(), name
    for split in ("train", "heldout"):
        assert list((folder / "artifacts/corpora/cleaned" / split).glob("*.parquet"))
    assert (folder / "artifacts/training/sft_checkpoint/final_model/model.safetensors").is_file()
    assert list((folder / "artifacts/training/sft_checkpoint").glob("checkpoint-*"))
    assert list((folder / "artifacts/training/sft_checkpoint/logs").rglob("events.out.tfevents*"))


def test_the_report_has_every_variant_and_figure(folder: Path, finished: dict[str, dict[str, Any]]) -> None:
    report = json.loads((folder / "artifacts/evaluation/report.json").read_text())
    assert {"base", "distilled", "initialized", "sft", "vanilla_sft"} <= set(report["variants"])
    for variant in report["variants"].values():
        assert 0 < variant["bpb"] < 10
        assert 1 < variant["bytes_per_token"] < 20
    assert len({variant["bytes"] for variant in report["variants"].values()}) == 1
    assert 0 < report["token_saving"] < 1
    assert report["agreement"] > 0.99
    assert report["round_trip"] == 1.0
    assert "vanilla" in (folder / "artifacts/evaluation/report.md").read_text()
    pairs = {(each["variant"], each["against"]): each for each in report["differences"]}
    assert {("sft", "base"), ("sft", "vanilla_sft"), ("distilled", "base")} <= set(pairs)
    assert all(each["low"] <= each["difference"] <= each["high"] for each in pairs.values())
    assert set(report["variants"]["sft"]["token_groups"]) == {"kept", "new"}
    # at most a hundredth, but the longest context for which that holds is short in so short a text
    for variant in report["variants"].values():
        assert variant["shortened_tokens"] <= 0.01 * variant["tokens"]
    retention = report["retention"]
    assert 0 < retention["bytes"] <= 4_096  # one piece at least
    assert {"base", "sft", "vanilla_sft"} <= set(retention["variants"])
    assert {"base", "sft"} == set(report["timings"])


@pytest.mark.slow
def test_the_same_models_evaluated_again_make_the_same_report_and_nothing_stale(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    bench = workbench(folder)
    before = bench.data_version("evaluation_report")
    card = folder / "artifacts/evaluation/model_card.md"
    assert card.read_text(encoding="utf-8").startswith("---\nlibrary_name: transformers\n")
    bench.run(["evaluation_report"])
    assert bench.data_version("evaluation_report") == before
    assert stale(workbench(folder)) == {}


def test_tokenizer_and_model_load_with_transformers_and_agree_on_sizes(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    final = folder / "artifacts/training/sft_checkpoint/final_model"
    tokenizer, model = AutoTokenizer.from_pretrained(final), AutoModelForCausalLM.from_pretrained(final)
    saved = AutoTokenizer.from_pretrained(folder / "artifacts/tokenizers/remapped")
    text = "The tokenizer <|endoftext|> gives  back\tevery text: 한국어 é́ 🙂\n"
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 50_257
    assert tokenizer(text)["input_ids"] == saved(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == model.config.eos_token_id == 50_256


LOAD_AND_WRITE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
written = pipeline("text-generation", model=folder, device="cpu")("The file", max_new_tokens=5, do_sample=False)
configs = [tokenizer, model.config, GenerationConfig.from_pretrained(folder)]
print(json.dumps({
    "faults": sum(len(found) for found in report.values()),
    "tokens": len(tokenizer),
    "rows": len(model.get_input_embeddings().weight),
    "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
    "special ids": [[config.bos_token_id, config.eos_token_id] for config in configs],
    "written": written[0]["generated_text"],
}))
"""


@pytest.mark.parametrize("place", ["embeddings/initialized_model", "training/sft_checkpoint/final_model"])
def test_a_finished_folder_is_all_that_transformers_needs(
    folder: Path, finished: dict[str, dict[str, Any]], tmp_path: Path, place: str
) -> None:
    offline = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "IVR_", "DAGSTER_"))}
    offline |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    asked = subprocess.run(
        [sys.executable, "-c", LOAD_AND_WRITE, folder / "artifacts" / place],
        env=offline,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    told = json.loads(asked.stdout)
    assert told["written"].startswith("The file")
    assert len(told["written"]) > len("The file")
    del told["written"]
    assert told == {"faults": 0, "tokens": 50_257, "rows": 50_257, "tied": True, "special ids": [[50_256] * 2] * 3}
    assert (folder / "artifacts" / place / "tokenizer.json").is_file()


def test_the_initialized_model_has_its_configuration_from_the_base_byte_for_byte(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    for name in ("config.json", "generation_config.json"):
        made = folder / "artifacts/embeddings/initialized_model" / name
        assert made.read_bytes() == (SAMPLE_MODEL / name).read_bytes()


def test_nothing_is_stale_after_a_full_run(folder: Path, finished: dict[str, dict[str, Any]]) -> None:
    assert stale(workbench(folder)) == {}


def test_a_changed_setting_makes_its_asset_and_what_follows_stale(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    found = stale(workbench(folder, max_candidates=140))
    assert found["replacement_candidates"] == "settings or code changed"
    assert not {"cleaned_corpus", "token_stats", "distilled_tokenizer", "original_embeddings"} & set(found)
    assert {"remap_rules", "remapped_tokenizer", "sft_checkpoint", "evaluation_report"} <= set(found)


def test_changed_training_settings_make_only_training_and_evaluation_stale(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    other = folder / "other.yaml"
    other.write_text((folder / "sft_config.yaml").read_text() + "weight_decay: 0.2\n")
    found = stale(workbench(folder, config_path=str(other)))
    assert set(found) == {*BASELINES, "sft_checkpoint", "evaluation_report"}


def test_a_new_document_that_leaves_the_result_as_it_was_stops_where_nothing_changes(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    # a duplicate: the raw corpus is another one, the cleaned corpus is not
    extra = folder / "raw" / "again.jsonl"
    extra.write_text((folder / "raw" / "documents.jsonl").read_text().splitlines()[0] + "\n")
    try:
        bench = workbench(folder)
        assert stale(bench)["cleaned_corpus"] == "raw_corpus changed"
        bench.run(["cleaned_corpus"])
        assert stale(workbench(folder)) == {}
    finally:
        extra.unlink()
    bench = workbench(folder)
    bench.run(["cleaned_corpus"])
    assert stale(bench) == {}


def test_rules_edited_by_hand_are_noticed_honoured_and_kept(folder: Path, finished: dict[str, dict[str, Any]]) -> None:
    file = folder / "artifacts/tokenizers/remap_rules.yaml"
    computed = file.read_text()
    content = yaml.safe_load(computed)
    dropped = content["rules"].pop()
    try:
        file.write_text("# mine\n" + yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
        bench = workbench(folder)
        assert stale(bench)["remap_rules"] == "edited by hand"
        result = bench.run(bench.stage_assets("remap"))
        assert result.figures["remap_rules"]["edited_by_hand"] is True
        assert file.read_text().startswith("# mine\n")
        assert result.figures["remapped_tokenizer"]["tokens_reassigned"] == len(content["rules"])

        content["rules"][0]["id"] = 50_256
        file.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
        with pytest.raises(InputError, match=r"50256.*protected"):
            bench.run(bench.stage_assets("remap"))
        tokenizer = json.loads((folder / "artifacts/tokenizers/remapped/tokenizer.json").read_text())
        assert tokenizer["model"]["vocab"][dropped["id"]][0] == dropped["sacrificed_token"]
    finally:
        file.write_text(computed)
        bench = workbench(folder)
        bench.run(bench.stage_assets("remap"))
    assert stale(workbench(folder)) == {}


def test_a_failed_blocking_check_fails_the_stage_and_names_figure_and_remedy(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    bench = workbench(folder, agreement_floor=1.0, exceptions=0)
    with pytest.raises(StageFailed, match=r"agreement_floor.*floor 1\.0.*worst divergences"):
        bench.run(["distilled_tokenizer"])
    assert "agreement_floor" in bench.failed_blocking_checks("select")
    mended = workbench(folder)
    mended.run(["distilled_tokenizer"])
    assert mended.failed_blocking_checks("select") == ""


def ivr(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ivr_dagster.cli.app", *arguments]
    clean = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
    return subprocess.run(command, capture_output=True, text=True, env=clean | environment, check=False)


def test_stages_without_what_they_need_exit_with_two_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_text("some text")
    asked = ivr(
        "--artifacts-dir",
        str(tmp_path / "a"),
        "analyze",
        IVR_RAW_CORPORA_DIR=str(tmp_path / "raw"),
        IVR_MODEL_NAME="sample",
    )
    assert asked.returncode == 2, asked.stderr
    assert asked.stderr.count("\n") == 1
    assert "cleaned_corpus" in asked.stderr
    assert asked.stdout == ""


def test_a_model_out_of_reach_exits_with_two_and_names_the_ways_out(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_text("some text")
    asked = ivr(
        "--artifacts-dir", str(tmp_path / "a"), "init", "--raw-corpora-dir", str(tmp_path / "raw"),
        HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"),
    )  # fmt: skip
    assert asked.returncode == 2, asked.stderr
    assert "openai-community/gpt2" in asked.stderr
    assert "--model-name FOLDER" in asked.stderr


def test_json_is_one_object_on_standard_output(folder: Path, finished: dict[str, dict[str, Any]]) -> None:
    settings = {f"IVR_{key.upper()}": str(value) for key, value in SMALL.items()}
    settings |= {"IVR_RAW_CORPORA_DIR": str(folder / "raw"), "IVR_CONFIG_PATH": str(folder / "sft_config.yaml")}
    asked = ivr("--artifacts-dir", str(folder / "artifacts"), "--json", "status", **settings)
    assert asked.returncode == 0, asked.stderr
    rows = {row["asset"]: row for row in json.loads(asked.stdout)["assets"]}
    assert all(row["fresh"] for row in rows.values())
    assert rows["remapped_tokenizer"]["figures"]["tokens_reassigned"] == 150


def test_a_dry_selection_shows_the_saving_by_number_of_new_tokens_and_writes_nothing(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    settings = {f"IVR_{key.upper()}": str(value) for key, value in SMALL.items() if key != "max_candidates"}
    settings |= {"IVR_RAW_CORPORA_DIR": str(folder / "raw"), "IVR_CONFIG_PATH": str(folder / "sft_config.yaml")}
    artifacts = folder / "artifacts"
    before = {
        file: file.read_bytes() for file in artifacts.rglob("*") if file.is_file() and ".dagster" not in file.parts
    }
    dry = ("--artifacts-dir", str(artifacts), "--json", "select", "--dry-run", "--max-candidates")
    asked = ivr(*dry, "300", "--merge-scope", "across", "--least-documents", "2", **settings)
    assert asked.returncode == 0, asked.stderr
    plan = json.loads(asked.stdout)
    assert plan["candidates"] == 300
    assert [point["new_tokens"] for point in plan["curve"]] == [100, 200, 300]
    assert plan["curve"][0]["heldout"] < plan["curve"][-1]["heldout"] == pytest.approx(plan["token_saving_heldout"])
    assert plan["rules_kept"] > 75  # of the 150 in force
    fewer = json.loads(ivr(*dry, "auto", "--least-saving", "0.05", **settings).stdout)
    assert 0 < fewer["candidates"] < 300
    assert fewer["candidates"] % 100 == 0
    after = {
        file: file.read_bytes() for file in artifacts.rglob("*") if file.is_file() and ".dagster" not in file.parts
    }
    assert before == after


def test_a_selection_that_finds_nothing_to_read_names_the_stage_to_run(tmp_path: Path) -> None:
    asked = ivr("--artifacts-dir", str(tmp_path / "artifacts"), "select", "--dry-run", IVR_MODEL_NAME="sample")
    assert asked.returncode == 2
    assert "cleaned_corpus is not there yet. Run `ivr init` first" in asked.stderr
    wrong = ivr("--artifacts-dir", str(tmp_path / "artifacts"), "select", "--max-candidates", "lots")
    assert wrong.returncode == 2
    assert "'lots' is neither a whole number nor auto" in wrong.stderr


def test_what_is_distilled_is_exact_on_the_train_split_and_certified(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    certificate = json.loads((folder / "artifacts/tokenizers/distilled_unigram/agreement.json").read_text())
    assert certificate["train"]["agreement"] == finished["distilled_tokenizer"]["agreement"] == 1.0
    assert certificate["train"]["divergences"] == []
    assert certificate["exceptions"] == finished["distilled_tokenizer"]["exceptions"] > 0
    remapped = json.loads((folder / "artifacts/tokenizers/remapped/agreement.json").read_text())
    assert remapped["untouched_occurrences_identical"] > 0.999 * remapped["untouched_occurrences"]
    assert remapped["heldout_lengths"]["longer"] == finished["remapped_tokenizer"]["documents_longer"]


def test_a_training_killed_with_sigkill_goes_on_from_its_last_checkpoint(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    config = folder / "slow.yaml"
    config.write_text("num_train_epochs: 12\nper_device_train_batch_size: 4\nsave_steps: 2\nlogging_steps: 1\n")
    changed = {"config_path": str(config), "vanilla": False}
    settings = {f"IVR_{key.upper()}": str(value) for key, value in (SMALL | changed).items()}
    settings |= {"IVR_RAW_CORPORA_DIR": str(folder / "raw"), "DAGSTER_HOME": str(folder / "artifacts/.dagster")}
    place = folder / "artifacts/training/sft_checkpoint"
    before = (place / "final_model/model.safetensors").read_bytes()
    command = [
        sys.executable,
        "-m",
        "ivr_dagster.cli.app",
        "--artifacts-dir",
        str(folder / "artifacts"),
        "run",
        "--until",
        "train",
    ]
    child = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    # of this training, not the one before, which had fewer steps
    while (
        not any(int(p.name.rpartition("-")[2]) > 8 for p in place.glob("checkpoint-*")) and time.monotonic() < deadline
    ):
        assert child.poll() is None, "the training ended before it could be killed"
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (place / "final_model/model.safetensors").read_bytes() == before

    bench = workbench(folder, **changed)
    assert "sft_checkpoint" in stale(bench)
    result = bench.run(["sft_checkpoint"])
    assert result.figures["sft_checkpoint"]["resumed_from_step"] >= 8
    workbench(folder).run(["training_blocks", "sft_checkpoint", *BASELINES])


@pytest.mark.slow
def test_a_search_for_training_settings_leaves_the_best_and_everything_else_as_it_was(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    changed = {"tune_bytes": 6_000, "tune_new_tokens": True}
    settings = {f"IVR_{key.upper()}": str(value) for key, value in (SMALL | changed).items()}
    settings |= {"IVR_RAW_CORPORA_DIR": str(folder / "raw"), "IVR_CONFIG_PATH": str(folder / "sft_config.yaml")}
    before = {file: found for file, found in contents(folder / "artifacts").items() if "tuning" not in file.parts}
    asked = ivr("--artifacts-dir", str(folder / "artifacts"), "--json", "tune", "--trials", "4", **settings)
    assert asked.returncode == 0, asked.stderr
    told = json.loads(asked.stdout)
    figures = told["assets"]["tuning_study"]
    assert figures["trials"] == len(told["trials"]) == 4
    assert figures["best_bits_per_byte"] <= figures["default_bits_per_byte"] == told["trials"][0]["value"]
    assert {trial["parameters"]["new_tokens"] for trial in told["trials"]} > {150}
    lengths = {
        trial["parameters"]["new_tokens"]: trial["figures"]["tokens_per_byte"]
        for trial in told["trials"]
        if trial["state"] == "complete"
    }
    assert sorted(lengths, key=lengths.__getitem__) == sorted(lengths, reverse=True)

    place = folder / "artifacts/training/tuning"
    assert {file.name for file in place.iterdir() if not file.name.startswith(".")} - {"settings.yaml"} == {
        "study.db",
        "study.json",
        "sft_config.yaml",
        "history.png",
        "settings.png",
    }
    written = yaml.safe_load((place / "sft_config.yaml").read_text())
    assert written.items() >= told["settings"].items()
    assert (place / "settings.yaml").exists() == (told["new_tokens"] != 150)
    # `--trials` was remembered
    now = {file: found for file, found in contents(folder / "artifacts").items() if "tuning" not in file.parts}
    assert {file.name for file in now if now[file] != before.get(file)} <= {"ivr.yaml"}

    bench = workbench(folder, **changed, tune_trials=4)
    assert stale(bench) == {}
    again = bench.run(TUNING).figures["tuning_study"]
    assert (again["trials"], again["trials_done_before"]) == (4, 4)
    assert again["best_bits_per_byte"] == figures["best_bits_per_byte"]
