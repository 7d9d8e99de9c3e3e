"""Two runs on one folder at the same time leave the artifacts of one complete run."""

import random
import time

import pytest
import yaml

from ivr_dagster_tests.faults.artifact_hashes import Hashes, compare, find_leftovers, hash_artifacts
from ivr_dagster_tests.faults.commands import Command
from ivr_dagster_tests.faults.harness import (
    KILLS,
    SEED,
    Pipeline,
    Reference,
    assert_no_problems,
    find_inconsistencies,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

REPEATS = max(1, KILLS // 10)
MAX_CANDIDATES = (30, 20)
# what `ivr run` builds
NOT_ON_REQUEST = 'not group:"export"'


def run_both(
    pipeline: Pipeline, first: Reference, references: dict[int, Reference], until: str, delay: float
) -> list[str]:
    """Problems after two runs, the second started `delay` seconds after the first."""
    artifacts = pipeline.create_folder(pipeline.settings | {"sticky": False}, first.folder)
    commands: dict[int, Command] = {}
    for count in MAX_CANDIDATES:
        arguments = ("run", "--until", until, "--max-candidates", str(count))
        commands[count] = pipeline.start(artifacts, *arguments, level="WARNING")
        if count == MAX_CANDIDATES[0]:
            time.sleep(delay)
    codes = {count: command.wait() for count, command in commands.items()}
    print(f"\ntwo concurrent runs, delay {delay:.3f} s: exit codes {[*codes.values()]}")  # noqa: T201
    problems = []
    for count, command in commands.items():
        lines = command.error_lines
        refused = codes[count] == 2 and len(lines) == 1 and "in use by ivr run (process " in lines[0]
        if "Traceback" in command.stderr or not (codes[count] == 0 or refused):
            problems.append(f"{count} ended with {codes[count]}: {command.stderr[-1_500:]}")
        if command.kill_survivors():
            problems.append(f"child processes of {count} are still running")
    succeeded = [count for count, code in codes.items() if code == 0]
    found = _without_settings(hash_artifacts(artifacts))
    differences = {count: compare(found, _without_settings(references[count].hashes)) for count in succeeded}
    complete = [count for count in succeeded if not differences[count]]
    setting = yaml.safe_load((artifacts / "ivr.yaml").read_text())["max_candidates"]
    if not succeeded:
        problems.append(f"neither run succeeded: {[command.stderr[-700:] for command in commands.values()]}")
    elif not complete:
        problems.append(f"the artifacts are not those of one run, of {succeeded}: {differences}")
    elif setting != complete[0]:
        problems.append(f"the artifacts are those of {complete[0]}, ivr.yaml says {setting}")
    problems += pipeline.find_problems(artifacts, complete=until == "evaluate")
    if not problems:
        pipeline.delete_folder(artifacts)
    return [f"seed {SEED}, delay {delay:.3f} s, exit codes {codes} [{artifacts}]: {each}" for each in problems]


def _without_settings(hashes: Hashes) -> Hashes:
    return {artifact: files for artifact, files in hashes.items() if artifact != "ivr.yaml"}


def test_two_concurrent_runs_leave_one_complete_run(pipeline: Pipeline, first: Reference) -> None:
    rng = random.Random(SEED)
    until = "evaluate" if REPEATS > 1 else "remap"
    settings = pipeline.settings | {"sticky": False}  # results must not depend on earlier rules
    references = {
        count: pipeline.run_reference(
            settings | {"max_candidates": count}, first.folder, f"alone-{count}-{until}", until=until
        )
        for count in MAX_CANDIDATES
    }
    seconds = sum(references[MAX_CANDIDATES[0]].seconds.values())
    problems: list[str] = []
    for number in range(REPEATS):
        delay = 0.0 if number % 4 == 0 else rng.uniform(0, seconds)
        problems += run_both(pipeline, first, references, until, delay)
    assert_no_problems(problems)


def test_command_beside_a_dagster_run_leaves_complete_artifacts(
    pipeline: Pipeline, first: Reference, later: Reference
) -> None:
    artifacts = pipeline.create_folder(pipeline.later_settings, first.folder)
    pipeline.stale_assets(artifacts)  # observes the sources, as the UI's daemon does
    dagster = Command(
        ["asset", "materialize", "--select", NOT_ON_REQUEST, "-m", "ivr_dagster.definitions"],
        artifacts.parent / "dagster",
        program="dagster",
        environment={"IVR_ARTIFACTS_DIR": str(artifacts), "DAGSTER_HOME": str(artifacts / ".dagster")},
    )
    time.sleep(random.Random(SEED).uniform(0, 5))
    command = pipeline.start(artifacts, level="WARNING")
    codes = command.wait(), dagster.wait()
    assert codes[0] in (0, 2), command.stderr[-2_000:]
    assert "Traceback" not in command.stderr
    problems = find_inconsistencies(artifacts, first, later)
    last = pipeline.run(artifacts)
    assert last.exit_code == 0, last.stderr[-2_000:]
    problems += compare(hash_artifacts(artifacts), later.hashes) + find_leftovers(artifacts)
    if problems:
        problems.append(f"exit codes {codes}: {dagster.stderr[-2_000:]}")
    assert_no_problems(problems)
    pipeline.delete_folder(artifacts)
