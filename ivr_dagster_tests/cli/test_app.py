"""Commands on a built folder of a tiny model."""

import json
import os
import re
import shutil
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.cli import app
from ivr_dagster.cli.instance import instance_at
from ivr_dagster.errors import InputError
from ivr_dagster.orchestration.dagster_internals import check_target
from ivr_dagster.pipeline import ASSETS, STAGES, stage_options
from ivr_dagster.settings.loading import option_name
from ivr_dagster_tests.cli.conftest import Ivr


@pytest.mark.parametrize("command", [*STAGES, "tune", "ui"])
def test_help_lists_every_setting_of_a_command(command: str) -> None:
    shown = CliRunner().invoke(app.cli, [command, "--help"], terminal_width=200)
    assert shown.exit_code == 0
    for name in stage_options(command):
        assert f"{option_name(name, command)}" in shown.output


class Unexplained(Exception):
    """An error that nobody expects."""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("bad\x1b[1m value", where="a.txt:3"), 2, "ivr: a.txt:3: bad�[1m value"),
        (InputError("too large: out of memory"), 2, "ivr: too large: out of memory"),
        (KeyboardInterrupt(), 1, "ivr: interrupted; run the same command again to resume"),
        (Unexplained("why"), 1, "ivr: Unexplained: why (--log-level DEBUG shows the traceback)"),
    ],
)
def test_error_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(app.cli, "main", fail)
    monkeypatch.setattr("sys.argv", ["ivr", "status"])
    with pytest.raises(SystemExit) as exit_:
        app.main()
    assert exit_.value.code == code
    assert capsys.readouterr().err.splitlines() == [line]


@pytest.mark.slow
def test_run_builds_only_what_a_setting_changes_and_then_nothing(ivr: Ivr) -> None:
    assert json.loads(ivr("--json", "run").stdout)["materialized"] == []
    done = ivr("--json", "run", "--init-strategy", "zeros", "--calibration-bytes", "0")
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)["materialized"]
    assert built[:2] == ["fitted_embeddings", "initialized_model"]
    assert "vanilla_sft_checkpoint" not in built
    assert json.loads(ivr("--json", "run").stdout)["materialized"] == []


@pytest.mark.slow
def test_run_stops_at_a_failed_blocking_check(folder: Path, ivr: Ivr) -> None:
    key = dg.AssetKey("distilled_tokenizer")
    with instance_at(folder / ".dagster") as instance:
        target = check_target(instance.fetch_materializations(key, limit=1).records[0])
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=key, check_name="agreement_floor", passed=False, target_materialization_data=target
            )
        )
    candidates, tokenizer = (folder / ASSETS[name].path for name in ("replacement_candidates", "original_tokenizer"))
    candidates.unlink()
    shutil.rmtree(tokenizer)
    refused = ivr("run")
    assert refused.returncode == 2, refused.stderr
    message = "select is next, but a blocking check before it failed: distilled_tokenizer.agreement_floor"
    assert message in refused.stderr
    assert tokenizer.is_dir()  # assets before the check are built
    assert not candidates.exists()


def test_status_of_a_missing_folder_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"typo: no artifacts folder\. Check --artifacts-dir"):
        app.cli.main(["--artifacts-dir", str(tmp_path / "typo"), "status"], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--json", "status"], ["status", "--json"], ["status", "--verify", "--json"]])
def test_json_is_accepted_anywhere(arguments: list[str]) -> None:
    context = app.cli.make_context("ivr", list(arguments))
    assert context.params["as_json"] is True
    assert "--json" not in context.args


@pytest.mark.slow
def test_invalid_options_are_not_saved(folder: Path, ivr: Ivr) -> None:
    before = (folder / "ivr.yaml").read_bytes()
    refused = ivr("init", "--encoding", "klingon")
    assert refused.returncode == 2
    assert "klingon" in refused.stderr
    assert (folder / "ivr.yaml").read_bytes() == before


@pytest.mark.slow
def test_failed_checks_are_shown_by_status(folder: Path, ivr: Ivr) -> None:
    done = ivr("init", "--heldout-floor", "1000")
    assert done.returncode == 0, done.stderr
    assert "failed checks: cleaned_corpus.heldout_floor" in ivr("status").stdout
    assert "cleaned_corpus.heldout_floor" in json.loads(ivr("--json", "status").stdout)["failed_checks"]


@pytest.mark.slow
def test_damaged_artifact_is_found_refused_and_rebuilt(folder: Path, ivr: Ivr) -> None:
    tokenizer, report = (folder / ASSETS[name].path for name in ("remapped_tokenizer", "evaluation_report"))
    file = tokenizer / "tokenizer.json"
    before, stat = file.read_bytes(), (report / "report.md").stat()
    file.write_bytes(before[:-9])
    (report / "report.md").write_bytes(b"\0" * stat.st_size)
    os.utime(report / "report.md", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a failing disk leaves it

    verified = ivr("--json", "status", "--verify")
    assert verified.returncode == 1
    damage = json.loads(verified.stdout)["damaged"]
    assert len(damage) > 15
    damaged = {name: problems for name, problems in damage.items() if problems}
    assert {name: problems[0].split(" ")[0] for name, problems in damaged.items()} == {
        "remapped_tokenizer": str(file),
        "evaluation_report": str(report / "report.md"),
    }
    refused = ivr("align")
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert f"remapped_tokenizer is damaged: {file} has" in line
    rebuilt = ivr("--json", "run", "--until", "remap")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert json.loads(rebuilt.stdout)["materialized"] == ["remapped_tokenizer"]
    assert file.read_bytes() == before


@pytest.mark.slow
def test_second_command_is_refused_and_names_the_first(folder: Path, ivr: Ivr) -> None:
    settings = (folder / "ivr.yaml").read_bytes()
    with ArtifactPaths(folder).lock.hold("ivr select"):
        refused = ivr("run", "--max-candidates", "3")
        assert refused.returncode == 2
        (line,) = refused.stderr.splitlines()
        holder = f"ivr select (process {os.getpid()})"
        assert f"ivr run was requested, but the artifacts folder is in use by {holder}" in line
        assert ivr("status").returncode == 0
    assert (folder / "ivr.yaml").read_bytes() == settings


@pytest.mark.slow
def test_accelerate_config_selects_the_number_of_processes(folder: Path, ivr: Ivr) -> None:
    before = json.loads((folder / "training" / "sft_checkpoint" / "history.json").read_text())
    adapted_only = ("--no-vanilla", "--no-vanilla-compute")
    (folder / "accelerate_config.yaml").write_text("num_processes: 3\nuse_cpu: true\n")
    refused = ivr("train", *adapted_only)
    assert refused.returncode == 2
    assert "are not divisible by 3 processes" in refused.stderr.splitlines()[-1]
    (folder / "accelerate_config.yaml").write_text("num_processes: 2\nuse_cpu: true\n")
    done = ivr("--json", "train", *adapted_only)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["assets"]["sft_checkpoint"]
    assert (figures["processes"], figures["device"], figures["steps"]) == (2, "cpu", before["steps"])
    assert figures["tokens"] == before["tokens"]


def test_help_groups_the_settings() -> None:
    shown = CliRunner().invoke(app.cli, ["run", "--help"]).output
    sections = re.findall(r"^(\w[\w ]*):$", shown, flags=re.MULTILINE)
    assert sections[:2] == ["Options", "Corpus settings"]
    assert len(sections) == len(set(sections)) > 6
    own, corpus = shown.index("\n  --until"), shown.index("\nCorpus settings:")
    assert own < corpus < shown.index("\n  --raw-corpora-dir") < shown.index("\nTraining settings:")
