"""Two runs on one folder at the same time: what is there in the end is that of one whole run."""

import random
import time

import pytest
import yaml

from faults.harness import (
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

TIMES = 20
CANDIDATES = (30, 20)


def alone(pipeline: Pipeline, first: Reference, until: str) -> dict[int, Reference]:
    """What each of the two leaves that runs alone, whatever ran before: no rules stay because they are in force."""
    settings = pipeline.settings | {"sticky": False}
    return {
        most: pipeline.reference(
            settings | {"max_candidates": most}, first.folder, f"alone-{most}-{until}", until=until
        )
        for most in CANDIDATES
    }


def at_once(
    pipeline: Pipeline, first: Reference, undisturbed: dict[int, Reference], until: str, delay: float
) -> list[str]:
    """What is wrong after two runs, of which the second begins so many seconds after the first."""
    artifacts = pipeline.folder(pipeline.settings | {"sticky": False}, first.folder)
    commands: dict[int, Command] = {}
    for most in CANDIDATES:
        asked = ("run", "--until", until, "--max-candidates", str(most))
        commands[most] = pipeline.start(artifacts, *asked, level="WARNING")
        if most == CANDIDATES[0]:
            time.sleep(delay)
    codes = {most: command.wait() for most, command in commands.items()}
    wrong = []
    for most, code in codes.items():
        said = commands[most].said
        lines = [line for line in said.splitlines() if line.startswith("ivr: ")]
        if code not in (0, 2) or "Traceback" in said or (code == 2 and len(lines) != 1):
            wrong.append(f"{most} ended with {code}: {said[-1_500:]}")
        if commands[most].left_over():
            wrong.append(f"something of {most} lives on")
    done = [most for most, code in codes.items() if code == 0]
    settings = yaml.safe_load((artifacts / "ivr.yaml").read_text())
    found = contents(artifacts)
    unlike = {
        most: differences(_all_but_settings(found), _all_but_settings(undisturbed[most].contents)) for most in done
    }
    whole = [most for most in done if not unlike[most]]
    if len(done) == 0:
        wrong.append(f"neither of the two was done: {[command.said[-700:] for command in commands.values()]}")
    elif not whole:
        wrong.append(f"what is there is no whole run's, of {done}: {unlike}")
    elif settings["max_candidates"] != whole[0]:
        wrong.append(f"artifacts are of {whole[0]}, ivr.yaml says {settings['max_candidates']}")
    wrong += [f"{name} is left over" for name in leftovers(artifacts)]
    if until == "evaluate":
        wrong += [f"{asset} is stale: {why}" for asset, why in pipeline.states(artifacts).items()]
    damaged = pipeline.verified(artifacts)
    wrong += [damaged] if damaged else []
    if not wrong:
        pipeline.discard(artifacts)
    return [f"delay {delay:.3f} s, exit codes {codes} [{artifacts}]: {line}" for line in wrong]


def _all_but_settings(found: Contents) -> Contents:
    # what is kept of shards is as it was; the file of settings is looked at by itself
    return {unit: files for unit, files in found.items() if unit != "ivr.yaml"}


def test_of_two_runs_at_once_one_whole_run_is_left(pipeline: Pipeline, first: Reference) -> None:
    nothing_is(at_once(pipeline, first, alone(pipeline, first, "remap"), "remap", 0.0))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_two_runs_at_once_twenty_times_one_whole_run_is_left(pipeline: Pipeline, first: Reference) -> None:
    rng = random.Random(SEED)
    undisturbed = alone(pipeline, first, "evaluate")
    whole = sum(undisturbed[CANDIDATES[0]].seconds.values())
    wrong: list[str] = []
    for number in range(TIMES):
        delay = 0.0 if number % 4 == 0 else rng.uniform(0, whole)
        wrong += at_once(pipeline, first, undisturbed, "evaluate", delay)
    nothing_is([f"seed {SEED}", *wrong] if wrong else [])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_command_beside_a_run_of_dagster_itself_leaves_whole_artifacts(
    pipeline: Pipeline, first: Reference, later: Reference
) -> None:
    artifacts = pipeline.folder(pipeline.later_settings, first.folder)
    environment = {"IVR_ARTIFACTS_DIR": str(artifacts), "DAGSTER_HOME": str(artifacts / ".dagster")}
    # the sources first, as the UI's daemon looks at them
    pipeline.states(artifacts)
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
