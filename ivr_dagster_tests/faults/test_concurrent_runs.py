"""Two runs on one folder at the same time leave the artifacts of one complete run."""

import random
import time

import pytest
import yaml

from ivr_dagster_tests.faults.harness import (
    KILLS,
    SEED,
    Command,
    Contents,
    Pipeline,
    Reference,
    broken,
    contents,
    differences,
    leftovers,
    nothing_is,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TIMES = max(1, KILLS // 10)
CANDIDATES = (30, 20)


def run_both(
    pipeline: Pipeline, first: Reference, undisturbed: dict[int, Reference], until: str, delay: float
) -> list[str]:
    """What is wrong after two runs, the second started `delay` seconds after the first."""
    artifacts = pipeline.folder(pipeline.settings | {"sticky": False}, first.folder)
    commands: dict[int, Command] = {}
    for most in CANDIDATES:
        arguments = ("run", "--until", until, "--max-candidates", str(most))
        commands[most] = pipeline.start(artifacts, *arguments, level="WARNING")
        if most == CANDIDATES[0]:
            time.sleep(delay)
    codes = {most: command.wait() for most, command in commands.items()}
    print(f"\ntwo concurrent runs, delay {delay:.3f} s: exit codes {[*codes.values()]}")  # noqa: T201
    wrong = []
    for most, code in codes.items():
        said = commands[most].said
        lines = [line for line in said.splitlines() if line.startswith("ivr: ")]
        refused = code == 2 and len(lines) == 1 and "in use by ivr run (process " in lines[0]
        if "Traceback" in said or not (code == 0 or refused):
            wrong.append(f"{most} ended with {code}: {said[-1_500:]}")
        if commands[most].left_over():
            wrong.append(f"processes of {most} are still running")
    done = [most for most, code in codes.items() if code == 0]
    settings = yaml.safe_load((artifacts / "ivr.yaml").read_text())
    found = contents(artifacts)
    unlike = {
        most: differences(_without_settings(found), _without_settings(undisturbed[most].contents)) for most in done
    }
    complete = [most for most in done if not unlike[most]]
    if not done:
        wrong.append(f"neither run succeeded: {[command.said[-700:] for command in commands.values()]}")
    elif not complete:
        wrong.append(f"the artifacts are not those of one run, of {done}: {unlike}")
    elif settings["max_candidates"] != complete[0]:
        wrong.append(f"artifacts are of {complete[0]}, ivr.yaml says {settings['max_candidates']}")
    wrong += [f"{name} is left over" for name in leftovers(artifacts)]
    if until == "evaluate":
        wrong += [f"{asset} is stale: {why}" for asset, why in pipeline.states(artifacts).items()]
    damaged = pipeline.verified(artifacts)
    wrong += [damaged] if damaged else []
    if not wrong:
        pipeline.discard(artifacts)
    return [f"seed {SEED}, delay {delay:.3f} s, exit codes {codes} [{artifacts}]: {line}" for line in wrong]


def _without_settings(found: Contents) -> Contents:
    return {unit: files for unit, files in found.items() if unit != "ivr.yaml"}


def test_two_concurrent_runs_leave_one_complete_run(pipeline: Pipeline, first: Reference) -> None:
    rng = random.Random(SEED)
    until = "evaluate" if TIMES > 1 else "remap"
    settings = pipeline.settings | {"sticky": False}  # results must not depend on earlier rules
    undisturbed = {
        most: pipeline.reference(
            settings | {"max_candidates": most}, first.folder, f"alone-{most}-{until}", until=until
        )
        for most in CANDIDATES
    }
    seconds = sum(undisturbed[CANDIDATES[0]].seconds.values())
    wrong: list[str] = []
    for number in range(TIMES):
        delay = 0.0 if number % 4 == 0 else rng.uniform(0, seconds)
        wrong += run_both(pipeline, first, undisturbed, until, delay)
    nothing_is(wrong)


def test_command_beside_a_dagster_run_leaves_complete_artifacts(
    pipeline: Pipeline, first: Reference, later: Reference
) -> None:
    artifacts = pipeline.folder(pipeline.later_settings, first.folder)
    environment = {"IVR_ARTIFACTS_DIR": str(artifacts), "DAGSTER_HOME": str(artifacts / ".dagster")}
    pipeline.states(artifacts)  # observes the sources, as the UI's daemon does
    theirs = Command(
        ["asset", "materialize", "--select", "*", "-m", "ivr_dagster.definitions"],
        artifacts.parent / "theirs",
        program="dagster",
        environment=environment,
    )
    time.sleep(random.Random(SEED).uniform(0, 5))
    ours = pipeline.start(artifacts, level="WARNING")
    codes = ours.wait(), theirs.wait()
    assert codes[0] in (0, 2), ours.said[-2_000:]
    assert "Traceback" not in ours.said
    wrong = broken(artifacts, first.contents, later.contents, first.passing + later.passing)
    last = pipeline.run(artifacts)
    assert last.code == 0, last.said[-2_000:]
    wrong += differences(contents(artifacts), later.contents) + leftovers(artifacts)
    nothing_is([*wrong, f"exit codes {codes}: {theirs.said[-2_000:]}"] if wrong else [])
    pipeline.discard(artifacts)
