"""A full disk, a read-only folder, an unreadable file, too little memory, at each stage.

Each time one line reports the problem, earlier artifacts stay complete, and the next run with enough resources produces
the artifacts of an undisturbed run.
"""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ivr_dagster.pipeline import requested_stages
from ivr_dagster_tests.faults.artifact_hashes import compare, hash_artifacts
from ivr_dagster_tests.faults.commands import Command
from ivr_dagster_tests.faults.harness import Pipeline, Reference, assert_no_problems, find_inconsistencies
from ivr_dagster_tests.faults.injection import FillDisk, LimitMemory, Limits

# a file that the stage reads
INPUT_OF = {
    "analyze": "tokenizers/original/tokenizer.json",
    "distill-tokenizer": "analysis/pretoken_counts.parquet",
    "select": "analysis/reports/token_frequency.parquet",
    "remap": "tokenizers/distilled_unigram/tokenizer.json",
    "align": "tokenizers/remapped/tokenizer.json",
    "train": "embeddings/initialized_model/model.safetensors",
    "evaluate": "training/sft_checkpoint/final_model/model.safetensors",
}
# the folder that the stage writes into
OUTPUT_OF = {
    "init": "corpora",
    "analyze": "analysis",
    "distill-tokenizer": "tokenizers",
    "select": "analysis/reports",
    "remap": "tokenizers",
    "align": "embeddings",
    "train": "training",
    "evaluate": ".",
}
DISK_SIZE = "48m"
PERMISSIONS = Limits(permissions=True)


@pytest.fixture
def artifacts(pipeline: Pipeline, first: Reference, later: Reference) -> Iterator[Path]:
    """A finished artifacts folder whose corpus and settings have changed since."""
    folder = pipeline.create_folder(pipeline.later_settings, first.folder)
    yield folder
    pipeline.delete_folder(folder)


@contextmanager
def small_disk(pipeline: Pipeline, first: Reference) -> Iterator[tuple[Path, Path | None]]:
    """Such a folder on a small disk, and the file that can fill the disk; None if mounting is not allowed."""
    folder = pipeline.create_folder(pipeline.later_settings)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "tmpfs", folder], capture_output=True, check=False
    )
    try:
        subprocess.run(["cp", "-a", f"{first.folder}/.", folder], check=True)
        pipeline.write_settings(folder, pipeline.later_settings)
        # inside the mount, in a folder that all checks ignore
        yield folder, folder / ".dagster" / "ballast" if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)
        pipeline.delete_folder(folder)


def check_error(command: Command, words: tuple[str, ...], path: str = "") -> list[str]:
    """Problems with the error of a failed command: one last line with one of these words and this path."""
    lines = command.error_lines
    problems = []
    if command.exit_code not in (1, 2):
        problems.append(f"exit code {command.exit_code}")
    if len(lines) != 1 or not command.stderr.rstrip().endswith(lines[0]):
        problems.append(f"{len(lines)} error lines, or the error is not last")
    if "Traceback" in command.stderr:
        problems.append("a traceback")
    if lines and not any(word in lines[0].lower() for word in words):
        problems.append(f"the error contains none of {words}")
    if path not in command.stderr:
        problems.append(f"the error does not contain {path}")
    return [f"{each}: {command.stderr[-2_000:]}" for each in problems]


def check_recovery(pipeline: Pipeline, artifacts: Path, first: Reference, later: Reference) -> list[str]:
    """Problems with the artifacts after a failed run, and after the next run."""
    problems = find_inconsistencies(artifacts, first, later)
    command = pipeline.run(artifacts, level="WARNING")
    if command.exit_code != 0:
        return [*problems, f"the next run failed ({command.exit_code}): {command.stderr[-2_000:]}"]
    return problems + [f"after the next run: {each}" for each in pipeline.find_problems(artifacts, later.hashes)]


def check_full_disk(pipeline: Pipeline, first: Reference, later: Reference, stage: str, free: int) -> list[str]:
    """Problems after the disk fills up at the start of a stage."""
    with small_disk(pipeline, first) as (artifacts, ballast):
        fault = FillDisk(later.operation_before(stage), ballast, free)
        command = pipeline.run(artifacts, level="WARNING", fault=fault)
        # a few free bytes can be enough for the remaining work
        enough = command.exit_code == 0 and free
        problems = [] if enough else check_error(command, ("space", "disk", "full", "too large"))
        if ballast:
            ballast.unlink(missing_ok=True)
        return problems + check_recovery(pipeline, artifacts, first, later)


def test_full_disk_is_reported_and_loses_nothing(pipeline: Pipeline, first: Reference, later: Reference) -> None:
    assert_no_problems(check_full_disk(pipeline, first, later, "train", 0))


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 50_000, 300_000])
@pytest.mark.parametrize("stage", requested_stages())
def test_full_disk_at_any_stage_loses_nothing(
    pipeline: Pipeline, first: Reference, later: Reference, stage: str, free: int
) -> None:
    assert_no_problems(check_full_disk(pipeline, first, later, stage, free))


@contextmanager
def permissions(mode: int, *paths: Path) -> Iterator[None]:
    """Change the permissions of these paths for a while."""
    before = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(mode)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(before[path])


def run_earlier_stages(pipeline: Pipeline, artifacts: Path, stage: str) -> None:
    """Run all stages before this one."""
    if (index := requested_stages().index(stage)) > 0:
        assert pipeline.run(artifacts, "run", "--until", requested_stages()[index - 1]).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", requested_stages())
def test_read_only_folder_is_named(
    pipeline: Pipeline, first: Reference, later: Reference, artifacts: Path, stage: str
) -> None:
    folder = artifacts / OUTPUT_OF[stage]
    run_earlier_stages(pipeline, artifacts, stage)
    with permissions(0o555, folder):
        command = pipeline.run(artifacts, level="WARNING", limits=PERMISSIONS)
    problems = check_error(command, ("permission", "write", "read-only"), str(folder.resolve()))
    assert_no_problems(problems + check_recovery(pipeline, artifacts, first, later))


def test_read_only_artifacts_folder_is_named_and_unchanged(
    pipeline: Pipeline, first: Reference, artifacts: Path
) -> None:
    before = hash_artifacts(artifacts)
    with permissions(0o555, artifacts, *(path for path in artifacts.rglob("*") if path.is_dir())):
        command = pipeline.run(artifacts, level="WARNING", limits=PERMISSIONS)
    problems = check_error(command, ("permission", "write", "read-only"), str(artifacts))
    assert_no_problems(problems + compare(hash_artifacts(artifacts), before))


@pytest.mark.slow
@pytest.mark.parametrize("stage", requested_stages())
def test_unreadable_input_is_named(
    pipeline: Pipeline, first: Reference, later: Reference, artifacts: Path, stage: str
) -> None:
    run_earlier_stages(pipeline, artifacts, stage)
    file = artifacts / INPUT_OF[stage] if stage in INPUT_OF else pipeline.root / "raw_later/more.jsonl"
    with permissions(0, file):
        command = pipeline.run(artifacts, level="WARNING", limits=PERMISSIONS)
    # the error names the file relative to the artifacts folder or the corpus folder, or the folder that contains it
    named = str(file.parent)
    if stage not in INPUT_OF:
        named = file.name
    elif INPUT_OF[stage] in command.stderr:
        named = INPUT_OF[stage]
    problems = check_error(command, ("permission", "read"), named)
    assert_no_problems(problems + check_recovery(pipeline, artifacts, first, later))


@pytest.mark.slow
# with less memory than a thread's stack, starting a thread waits forever (CPython's Thread.start)
@pytest.mark.parametrize("megabytes", [16, 64])
@pytest.mark.parametrize("stage", requested_stages())
def test_lack_of_memory_at_any_stage_loses_nothing(
    pipeline: Pipeline, first: Reference, later: Reference, artifacts: Path, stage: str, megabytes: int
) -> None:
    fault = LimitMemory(later.operation_before(stage), megabytes << 20)
    command = pipeline.run(artifacts, level="WARNING", fault=fault)
    # so little data may need no more memory; polars, in Rust, aborts when an allocation fails
    aborted = command.exit_code == -signal.SIGABRT and "memory allocation of" in command.stderr
    problems = [] if command.exit_code == 0 or aborted else check_error(command, ("memory",))
    assert_no_problems(problems + check_recovery(pipeline, artifacts, first, later))
