"""A full disk, a folder that cannot be written, a file that cannot be read, no memory: at each stage.

Each time: one clear line, what was there before is whole, and once there is enough again the next run ends with what an
undisturbed run ends with.
"""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ivr_dagster.pipeline import STAGES
from ivr_dagster_tests.faults.harness import (
    Command,
    Fill,
    Limits,
    Pipeline,
    Reference,
    Starve,
    broken,
    contents,
    differences,
    leftovers,
    nothing_is,
)

# the artifact that a stage reads, for what cannot be read
READ_BY = {
    "analyze": "tokenizers/original/tokenizer.json",
    "distill-tokenizer": "analysis/pretoken_counts.parquet",
    "select": "analysis/reports/token_frequency.parquet",
    "remap": "tokenizers/distilled_unigram/tokenizer.json",
    "align": "tokenizers/remapped/tokenizer.json",
    "train": "embeddings/initialized_model/model.safetensors",
    "evaluate": "training/sft_checkpoint/final_model/model.safetensors",
}
# the folder that a stage writes into
WRITTEN_BY = {
    "init": "corpora",
    "analyze": "analysis",
    "distill-tokenizer": "tokenizers",
    "select": "analysis/reports",
    "remap": "tokenizers",
    "align": "embeddings",
    "train": "training",
    "evaluate": ".",
}
SMALL_DISK = "48m"


@pytest.fixture
def artifacts(pipeline: Pipeline, first: Reference, later: Reference) -> Iterator[Path]:
    """A finished folder whose corpus and settings have changed since."""
    folder = pipeline.folder(pipeline.later_settings, first.folder)
    yield folder
    pipeline.discard(folder)


@contextmanager
def small_disk(pipeline: Pipeline, first: Reference) -> Iterator[tuple[Path, Path | None]]:
    """The same on a disk of its own, and what would fill it; None where nothing may be mounted here."""
    folder = pipeline.folder(pipeline.later_settings)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", folder], capture_output=True, check=False
    )
    try:
        subprocess.run(["cp", "-a", f"{first.folder}/.", folder], check=True)
        (folder / "ivr.yaml").write_bytes(pipeline.yaml(pipeline.later_settings))
        # beside the artifacts it would not be on their disk; the name is one that everything passes over
        yield folder, folder / ".dagster" / "ballast" if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)
        pipeline.discard(folder)


def told_clearly(command: Command, *words: str) -> list[str]:
    """What is wrong with how a command that failed told so."""
    wrong = []
    if command.code not in (1, 2):
        wrong.append(f"ended with {command.code}")
    lines = [line for line in command.said.splitlines() if line.startswith("ivr: ")]
    if len(lines) != 1 or not command.said.rstrip().endswith(lines[0]):
        wrong.append(f"{len(lines)} lines of error, or not the last")
    if "Traceback" in command.said:
        wrong.append("a traceback")
    if not any(word in lines[0].lower() for word in words if lines):
        wrong.append(f"none of {words} in what it said")
    return [f"{each}: {command.said[-2_000:]}" for each in wrong]


def goes_on(pipeline: Pipeline, artifacts: Path, first: Reference, later: Reference) -> list[str]:
    """What is wrong with a folder after a run that failed, and after the next."""
    found = broken(artifacts, first.contents, later.contents, first.passing + later.passing)
    wrong = [f"then: {line}" for line in found]
    command = pipeline.run(artifacts, level="WARNING")
    if command.code != 0:
        return [*wrong, f"the next run ended with {command.code}: {command.said[-2_000:]}"]
    wrong += [f"after the next run: {line}" for line in differences(contents(artifacts), later.contents)]
    wrong += [f"after the next run: {name} is left over" for name in leftovers(artifacts)]
    wrong += [f"{asset} is stale: {why}" for asset, why in pipeline.states(artifacts).items()]
    damaged = pipeline.verified(artifacts)
    return [*wrong, damaged] if damaged else wrong


def on_a_full_disk(pipeline: Pipeline, first: Reference, later: Reference, stage: str, free: int) -> list[str]:
    """What is wrong where the disk becomes full in a stage."""
    with small_disk(pipeline, first) as (artifacts, ballast):
        full = Fill(later.operation_before(stage), ballast, free)
        command = pipeline.run(artifacts, level="WARNING", happening=full)
        # so little room may do for what is left of a stage
        wrong = [] if command.code == 0 and free else told_clearly(command, "space", "disk", "full", "too large")
        if ballast:
            ballast.unlink(missing_ok=True)
        return wrong + goes_on(pipeline, artifacts, first, later)


def test_full_disk_is_reported_and_loses_nothing(pipeline: Pipeline, first: Reference, later: Reference) -> None:
    nothing_is(on_a_full_disk(pipeline, first, later, "train", 0))


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 50_000, 300_000])
@pytest.mark.parametrize("stage", STAGES)
def test_full_disk_at_any_stage_loses_nothing(
    pipeline: Pipeline, first: Reference, later: Reference, stage: str, free: int
) -> None:
    nothing_is(on_a_full_disk(pipeline, first, later, stage, free))


def _with_permissions(place: Path, mode: int, then: Callable[[], Command]) -> Command:
    before = place.stat().st_mode
    place.chmod(mode)
    try:
        return then()
    finally:
        place.chmod(before)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_read_only_folder_is_named(
    pipeline: Pipeline, first: Reference, later: Reference, artifacts: Path, stage: str
) -> None:
    place = artifacts / WRITTEN_BY[stage]
    if list(STAGES).index(stage) > 0:
        before = list(STAGES)[list(STAGES).index(stage) - 1]
        assert pipeline.run(artifacts, "run", "--until", before).code == 0
    command = _with_permissions(
        place,
        0o555,
        lambda: pipeline.run(artifacts, level="WARNING", limits=Limits(permissions=True)),
    )
    wrong = told_clearly(command, "permission", "write", "read-only")
    if str(place.resolve()) not in command.said:
        wrong.append(f"{place} is not named: {command.said[-500:]}")
    nothing_is(wrong + goes_on(pipeline, artifacts, first, later))


def test_read_only_artifacts_folder_is_named_and_unchanged(
    pipeline: Pipeline, first: Reference, artifacts: Path
) -> None:
    folders = [artifacts, *(place for place in artifacts.rglob("*") if place.is_dir())]
    before = contents(artifacts)
    for folder in folders:
        folder.chmod(0o555)
    try:
        command = pipeline.run(artifacts, level="WARNING", limits=Limits(permissions=True))
    finally:
        for folder in folders:
            folder.chmod(0o755)
    wrong = told_clearly(command, "permission", "write", "read-only")
    if str(artifacts) not in command.said:
        wrong.append(f"{artifacts} is not named: {command.said[-500:]}")
    nothing_is(wrong + differences(contents(artifacts), before))


@pytest.mark.slow
def test_unreadable_raw_file_is_named(pipeline: Pipeline, first: Reference, later: Reference, artifacts: Path) -> None:
    file = pipeline.root / "raw_later/more.jsonl"
    command = _with_permissions(
        file, 0, lambda: pipeline.run(artifacts, level="WARNING", limits=Limits(permissions=True))
    )
    wrong = told_clearly(command, "permission", "read")
    if "more.jsonl" not in command.said:
        wrong.append(f"the file is not named: {command.said[-500:]}")
    nothing_is(wrong + goes_on(pipeline, artifacts, first, later))


@pytest.mark.slow
@pytest.mark.parametrize("stage", READ_BY)
def test_unreadable_artifact_is_named(
    pipeline: Pipeline, first: Reference, later: Reference, artifacts: Path, stage: str
) -> None:
    before = list(STAGES)[list(STAGES).index(stage) - 1]
    assert pipeline.run(artifacts, "run", "--until", before).code == 0
    file = artifacts / READ_BY[stage]
    command = _with_permissions(
        file, 0, lambda: pipeline.run(artifacts, level="WARNING", limits=Limits(permissions=True))
    )
    wrong = told_clearly(command, "permission", "read")
    asked = file.relative_to(artifacts).as_posix()
    # of a folder, the folder will do
    if asked not in command.said and str(file.parent) not in command.said:
        wrong.append(f"{asked} is not named: {command.said[-500:]}")
    nothing_is(wrong + goes_on(pipeline, artifacts, first, later))


@pytest.mark.slow
# with less than a thread's stack, starting one waits for ever (CPython's Thread.start)
@pytest.mark.parametrize("megabytes", [16, 64])
@pytest.mark.parametrize("stage", STAGES)
def test_lack_of_memory_at_any_stage_loses_nothing(
    pipeline: Pipeline, first: Reference, later: Reference, artifacts: Path, stage: str, megabytes: int
) -> None:
    short = Starve(later.operation_before(stage), megabytes << 20)
    command = pipeline.run(artifacts, level="WARNING", happening=short)
    # work on so little may do with what is there, and polars, in Rust, aborts where it finds no memory
    aborted = command.code == -signal.SIGABRT and "memory allocation of" in command.said
    wrong = [] if command.code == 0 or aborted else told_clearly(command, "memory")
    nothing_is(wrong + goes_on(pipeline, artifacts, first, later))
