"""The command line on a finished folder of a tiny model, in processes of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from ivr_dagster.cli.workbench import instance_at
from ivr_dagster.pipeline import ASSETS, ArtifactPaths
from ivr_dagster_tests.small_pipeline import SMALL, TINY

IVR = Path(sys.executable).with_name("ivr")
Ivr = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """Artifacts of every stage with the settings they were made with."""
    root = Path(shutil.copytree(tiny, tmp_path / "copy"))
    places = {"raw_corpora_dir": str(root / "raw"), "config_path": str(root / "sft_config.yaml")}
    settings: dict[str, Any] = {**SMALL, **TINY, **places, "model_name": str(tiny.parent / "model")}
    (root / "artifacts" / "ivr.yaml").write_text(yaml.safe_dump(settings))
    return root / "artifacts"


@pytest.fixture
def ivr(folder: Path) -> Ivr:
    """`ivr(…)` on it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("IVR_", "DAGSTER_"))}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [IVR, "--artifacts-dir", folder, *arguments]
        environment = kept | {"HF_HUB_OFFLINE": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)

    return run


def test_what_comes_out_equal_inside_a_stage_trains_nothing(ivr: Ivr) -> None:
    assert json.loads(ivr("--json", "run").stdout)["materialized"] == []
    done = ivr("--json", "run", "--init-strategy", "zeros", "--calibration-bytes", "0")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["materialized"]
    assert made == ["fitted_embeddings", "initialized_model", "training_blocks", "sft_checkpoint", "evaluation_report"]
    assert json.loads(ivr("--json", "run").stdout)["materialized"] == []


def test_run_makes_nothing_behind_a_check_that_failed_before(folder: Path, ivr: Ivr) -> None:
    key = dg.AssetKey("distilled_tokenizer")
    with instance_at(folder / ".dagster") as instance:
        made = instance.fetch_materializations(key, limit=1).records[0]
        target = AssetCheckEvaluationTargetMaterializationData(
            storage_id=made.storage_id, run_id=made.run_id, timestamp=made.timestamp
        )
        failed = dg.AssetCheckEvaluation(
            asset_key=key, check_name="agreement_floor", passed=False, target_materialization_data=target
        )
        instance.report_runless_asset_event(failed)
    candidates, sequences = (folder / ASSETS[name].path for name in ("replacement_candidates", "token_sequences"))
    candidates.unlink()
    shutil.rmtree(sequences)
    refused = ivr("run")
    assert refused.returncode == 2, refused.stderr
    assert "select is next, but a blocking check has failed before it: distilled_tokenizer.agreement_floor" in (
        refused.stderr
    )
    assert sequences.is_dir()  # what comes before the check was made all the same
    assert not candidates.exists()


def test_options_that_were_at_fault_are_not_remembered(folder: Path, ivr: Ivr) -> None:
    before = (folder / "ivr.yaml").read_bytes()
    refused = ivr("init", "--encoding", "klingon")
    assert refused.returncode == 2
    assert "klingon" in refused.stderr
    assert (folder / "ivr.yaml").read_bytes() == before
    assert ivr("run", "--dry-run").returncode == 0


def test_an_experiment_that_changes_nothing_says_so(ivr: Ivr) -> None:
    begun = ivr("experiment", "same", "--max-candidates", str(TINY["max_candidates"]))
    assert begun.returncode == 0, begun.stderr
    assert "Nothing differs" in begun.stderr


def test_checks_that_did_not_pass_are_told_at_the_end(ivr: Ivr) -> None:
    done = ivr("run", "--heldout-floor", "1000")
    assert done.returncode == 0, done.stderr
    again = ivr("init")  # the check is made with its asset
    assert again.returncode == 0, again.stderr
    shown = ivr("run").stdout
    assert "checks that did not pass" in shown
    assert "cleaned_corpus.heldout_floor" in shown
    assert "cleaned_corpus.heldout_floor" in ivr("status").stdout
    assert "cleaned_corpus.heldout_floor" in json.loads(ivr("--json", "status").stdout)["failed_checks"]


@pytest.mark.slow
def test_training_on_several_processes_is_asked_for_by_accelerates_file(folder: Path, ivr: Ivr) -> None:
    before = json.loads((folder / "training" / "sft_checkpoint" / "history.json").read_text())
    alone = ("--no-vanilla", "--no-vanilla-compute")
    (folder / "accelerate_config.yaml").write_text("num_processes: 3\nuse_cpu: true\n")
    refused = ivr("train", *alone)
    assert refused.returncode == 2
    assert "are not divisible by 3 processes" in refused.stderr.splitlines()[-1]
    (folder / "accelerate_config.yaml").write_text("num_processes: 2\nuse_cpu: true\n")
    done = ivr("--json", "train", *alone)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["assets"]["sft_checkpoint"]
    assert (figures["processes"], figures["device"], figures["steps"]) == (2, "cpu", before["steps"])
    assert figures["tokens"] == before["tokens"]


def test_a_damaged_artifact_is_found_refused_and_made_again(folder: Path, ivr: Ivr) -> None:
    tokenizer, report = (folder / ASSETS[name].path for name in ("remapped_tokenizer", "evaluation_report"))
    file = tokenizer / "tokenizer.json"
    before, found = file.read_bytes(), (report / "report.md").stat()
    file.write_bytes(before[:-9])
    (report / "report.md").write_bytes(b"\0" * found.st_size)
    os.utime(report / "report.md", ns=(found.st_atime_ns, found.st_mtime_ns))  # as a failing disk leaves it

    verified = ivr("--json", "status", "--verify")
    assert verified.returncode == 1
    told = json.loads(verified.stdout)["damaged"]
    assert len(told) > 15
    assert {name: faults for name, faults in told.items() if faults} == {
        "remapped_tokenizer": [f"{file} has {len(before) - 9:,} bytes, {len(before):,} were written"],
        "evaluation_report": [f"{report / 'report.md'} holds other bytes than were written"],
    }
    refused = ivr("train")
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert f"remapped_tokenizer is damaged: {file} has" in line
    assert line.endswith("Materialize remapped_tokenizer again: `ivr remap`.")
    mended = ivr("--json", "run")
    assert mended.returncode == 0, mended.stderr
    assert json.loads(mended.stdout)["materialized"] == ["remapped_tokenizer"]  # of the same bytes: nothing follows
    assert file.read_bytes() == before


def test_second_command_is_refused_and_names_the_first(folder: Path, ivr: Ivr) -> None:
    settings = (folder / "ivr.yaml").read_bytes()
    with ArtifactPaths(folder).lock.hold("ivr select"):
        for command in (["analyze"], ["run", "--max-candidates", "3"]):
            refused = ivr(*command)
            assert refused.returncode == 2
            (line,) = refused.stderr.splitlines()
            holder = f"ivr select (process {os.getpid()})"
            assert f"ivr {command[0]} was requested, but the artifacts folder is in use by {holder}" in line
        assert ivr("status").returncode == 0
    assert (folder / "ivr.yaml").read_bytes() == settings
