"""SIGKILL at any moment: every published artifact is complete, and the next run resumes.

Moments are random over all stages, and systematic: before and after each file operation. `FAULTS_KILLS` sets how many
(default 6, about 5 minutes for all tests here and in test_concurrent_runs.py; `make test-faults`: 200).
`FAULTS_SEED` repeats a printed seed.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from ivr_dagster_tests.faults.harness import (
    KILLS,
    PLACES,
    SEED,
    Kill,
    Pipeline,
    Reference,
    Tally,
    broken,
    contents,
    differences,
    final_losses,
    leftovers,
    side_by_side,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]

KILLS_PER_CYCLE = 4
# one cycle in five starts the console script, which takes longer to start
CONSOLE_SCRIPT_EVERY = 5


class Cycle:
    """An artifacts folder that is built with kills in between."""

    def __init__(self, pipeline: Pipeline, first: Reference, later: Reference | None, tally: Tally, name: str) -> None:
        """Start from nothing or, with `later`, from a finished first run whose corpus and settings changed."""
        self.pipeline, self.tally, self.name = pipeline, tally, name
        self.old, self.goal = (first, later) if later else (None, first)
        settings = pipeline.later_settings if later else pipeline.settings
        self.artifacts = pipeline.folder(settings, first.folder if later else None)
        self.killed: list[str] = []
        self.stages: list[str] = []

    def kill_in(self, place: str, rng: random.Random, *, as_command: bool = False) -> bool:
        """Run and kill at a random moment of a stage; False if the run had already ended."""
        step, wait = self.goal.moment(place, rng)
        command = self.pipeline.start(self.artifacts, as_command=as_command)
        if place == "start-up":
            time.sleep(wait * (3 if as_command else 1))  # before the first step
        elif command.reaches(step):
            time.sleep(wait)
        was_running = command.kill()
        moment = f"{step} + {wait:.3f} s" + (" (console script)" if as_command else "")
        return self._check(command.place(), moment, command.left_over(), was_running, command.code, command.said)

    def kill_at(self, kill: Kill) -> bool:
        """Run and kill at a file operation; False if the run ended without it."""
        command = self.pipeline.start(self.artifacts, happening=kill)
        code = command.wait()
        moment = f"{'after' if kill.after else 'before'} {kill.event}"
        if code < 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)
        return self._check(command.place(), moment, command.left_over(), code < 0, code, command.said)

    def _check(
        self, stage: str, moment: str, left_over: list[str], was_killed: bool, code: int | None, said: str
    ) -> bool:
        if not was_killed:
            if code != 0:
                self._violation(stage, f"a run after {self.killed} failed ({code}): {said[-1_500:]}")
            return False
        self.killed.append(moment)
        self.stages.append(stage)
        passing = [version for each in (self.old, self.goal) if each for version in each.passing]
        found = broken(self.artifacts, self.old.contents if self.old else None, self.goal.contents, passing)
        found += [f"still running: {each}" for each in left_over]
        with self.tally.lock:
            self.tally.kills[stage] += 1
        for line in found:
            self._violation(stage, f"killed at {moment}: {line}")
        return True

    def finish(self) -> None:
        """Run to the end and compare everything with an undisturbed run."""
        command = self.pipeline.run(self.artifacts)
        found = []
        if command.code != 0:
            found.append(f"the last run failed ({command.code}): {command.said[-1_500:]}")
        else:
            found += differences(contents(self.artifacts), self.goal.contents)
            losses, undisturbed = final_losses(self.artifacts), final_losses(self.goal.folder)
            if losses.keys() != undisturbed.keys() or any(abs(losses[k] - undisturbed[k]) > 1e-6 for k in losses):
                found.append(f"last losses {losses}, undisturbed {undisturbed}")
            found += [f"{name} is left over" for name in leftovers(self.artifacts)]
            found += [f"{asset} is stale: {why}" for asset, why in self.pipeline.states(self.artifacts).items()]
            damaged = self.pipeline.verified(self.artifacts)
            found += [damaged] if damaged else []
        for line in found:
            self._violation(self.stages[-1] if self.stages else "start-up", f"resumed after {self.killed}: {line}")
        with self.tally.lock:
            self.tally.cycles += 1
            for stage in self.stages:
                self.tally.resumed[stage] += 1
        if not found:
            self.pipeline.discard(self.artifacts)

    def _violation(self, stage: str, line: str) -> None:
        with self.tally.lock:
            self.tally.violations.append((stage, f"{self.name}: {line} [{self.artifacts}]"))


def kill_at_random(cycle: Cycle, plan: list[str], seed: int, *, as_command: bool = False) -> None:
    """A cycle with a kill in each of these stages, in order."""
    rng = random.Random(seed)
    for place in sorted(plan, key=PLACES.index):
        if not cycle.kill_in(place, rng, as_command=as_command):
            break
    cycle.finish()


def kill_at_operations(cycle: Cycle, plan: list[Kill]) -> None:
    """A cycle with a kill at each of these file operations that occurs."""
    for kill in plan:
        cycle.kill_at(kill)
    cycle.finish()


def run_cycles(jobs: Iterator[Callable[[], None]], tally: Tally) -> None:
    """Run cycles on all cores, print the tally and fail if anything was lost."""
    started = time.monotonic()
    side_by_side(jobs, os.cpu_count() or 1)
    tally.seconds = time.monotonic() - started
    print(f"\nseed {SEED}\n{tally.table()}", flush=True)  # noqa: T201
    lost = "\n".join(f"[{stage}] {line}" for stage, line in tally.violations)
    assert not tally.violations, f"seed {SEED}\n{tally.table()}\n{lost}"
    assert sum(tally.resumed.values()) == sum(tally.kills.values())


def test_random_kills_lose_nothing(pipeline: Pipeline, first: Reference, later: Reference) -> None:
    rng, tally = random.Random(SEED), Tally()

    def jobs() -> Iterator[Callable[[], None]]:
        deck: list[str] = []
        count = 0
        while sum(tally.kills.values()) < KILLS:
            while len(deck) < KILLS_PER_CYCLE:
                deck += rng.sample(PLACES, len(PLACES))
            plan = [deck.pop(0) for _ in range(KILLS_PER_CYCLE)]
            count += 1
            name = f"seed {SEED}, cycle {count}"
            cycle = Cycle(pipeline, first, later if count % 2 == 0 else None, tally, name)
            script = count % CONSOLE_SCRIPT_EVERY == 0
            yield partial(kill_at_random, cycle, plan, rng.randrange(1 << 32), as_command=script)

    run_cycles(jobs(), tally)
    assert sum(tally.kills.values()) >= KILLS
    assert all(tally.kills[place] for place in PLACES) or KILLS < 50


def test_kills_at_file_operations_lose_nothing(pipeline: Pipeline, first: Reference, later: Reference) -> None:
    tally = Tally()
    kills = [
        Kill(event, after)
        for event in later.operations
        if changes_artifacts(event)
        for after in ((False, True) if event.startswith("os.rename") else (False,))
    ]
    kills = kills[:: max(1, len(kills) // KILLS)]
    # each cycle takes operations from all over the run, in their order
    cycles = -(-len(kills) // 8)
    plans = [kills[start::cycles] for start in range(cycles)]
    jobs = (
        partial(kill_at_operations, Cycle(pipeline, first, later, tally, f"operations, cycle {number}"), plan)
        for number, plan in enumerate(plans, 1)
    )
    run_cycles(jobs, tally)
    assert sum(tally.kills.values()) > 0.5 * len(kills)


def changes_artifacts(event: str) -> bool:
    """Whether a file operation changes a published name or opens an artifact for writing."""
    kind, _, name = event.partition(" ")
    return kind in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.link", "os.mkdir") or (
        kind == "open" and "tfevents" not in name and "/checkpoint-" not in name
    )
