"""SIGKILL at any moment: every published artifact is complete, and the next run resumes.

Moments are random over all stages, and systematic: before and after each file operation. `FAULTS_KILLS` sets how many
(default 6, about 5 minutes for all tests here and in test_concurrent_runs.py; `make test-faults`: 200).
`FAULTS_SEED` repeats a printed seed.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest

from ivr_dagster_tests.faults.commands import START_UP, Command
from ivr_dagster_tests.faults.harness import (
    KILLS,
    PHASES,
    SEED,
    Pipeline,
    Reference,
    final_losses,
    find_inconsistencies,
    run_parallel,
)
from ivr_dagster_tests.faults.injection import Kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]

KILLS_PER_CYCLE = 4
# one cycle in five starts the console script, which takes longer to start
CONSOLE_SCRIPT_EVERY = 5


@dataclass
class Tally:
    """Kills, resumed kills and violations, by phase."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    resumed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    violations: list[tuple[str, str]] = field(default_factory=list)
    cycles: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def table(self) -> str:
        """A table by phase."""
        lost = [phase for phase, _ in self.violations]
        rows = [(phase, self.kills[phase], self.resumed[phase], lost.count(phase)) for phase in PHASES]
        rows.append(("all", sum(self.kills.values()), sum(self.resumed.values()), len(lost)))
        lines = [f"{phase:18}{kills:7}{resumed:9}{violations:6}" for phase, kills, resumed, violations in rows]
        return "\n".join([f"{'stage':18}{'kills':>7}{'resumed':>9}{'lost':>6}", *lines, f"{self.cycles} cycles"])


class Cycle:
    """An artifacts folder that is built with kills in between."""

    def __init__(self, pipeline: Pipeline, first: Reference, later: Reference | None, tally: Tally, name: str) -> None:
        """Start from nothing or, with `later`, from a finished first run whose corpus and settings changed."""
        self.pipeline, self.tally, self.name = pipeline, tally, name
        self.old, self.goal = (first, later) if later else (None, first)
        settings = pipeline.later_settings if later else pipeline.settings
        self.artifacts = pipeline.create_folder(settings, first.folder if later else None)
        self.killed: list[str] = []
        self.phases: list[str] = []

    def kill_in(self, phase: str, rng: random.Random, *, console_script: bool = False) -> bool:
        """Run and kill at a random moment of a phase; False if the run had already ended."""
        step, delay = self.goal.random_moment(phase, rng)
        command = self.pipeline.start(self.artifacts, console_script=console_script)
        if phase == START_UP:
            time.sleep(delay * (3 if console_script else 1))
        elif command.wait_for_step(step):
            time.sleep(delay)
        was_killed = command.kill()
        return self._check(command, f"{step} + {delay:.3f} s, console script: {console_script}", was_killed)

    def kill_at(self, kill: Kill) -> bool:
        """Run and kill at a file operation; False if the run ended without it."""
        command = self.pipeline.start(self.artifacts, fault=kill)
        was_killed = command.wait() < 0
        if was_killed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)
        return self._check(command, f"{'after' if kill.after else 'before'} {kill.event}", was_killed)

    def _check(self, command: Command, moment: str, was_killed: bool) -> bool:
        phase, survivors = command.stage(), command.kill_survivors()
        if not was_killed:
            if command.exit_code != 0:
                message = f"a run after {self.killed} failed ({command.exit_code}): {command.stderr[-1_500:]}"
                self._add_violation(phase, message)
            return False
        self.killed.append(moment)
        self.phases.append(phase)
        with self.tally.lock:
            self.tally.kills[phase] += 1
        problems = find_inconsistencies(self.artifacts, self.old, self.goal)
        for problem in [*problems, *(f"still running: {each}" for each in survivors)]:
            self._add_violation(phase, f"killed at {moment}: {problem}")
        return True

    def finish(self) -> None:
        """Run to the end and compare everything with an undisturbed run."""
        command = self.pipeline.run(self.artifacts)
        if command.exit_code != 0:
            problems = [f"the last run failed ({command.exit_code}): {command.stderr[-1_500:]}"]
        else:
            problems = self.pipeline.find_problems(self.artifacts, self.goal.hashes)
            losses, expected = final_losses(self.artifacts), final_losses(self.goal.folder)
            if losses.keys() != expected.keys() or any(abs(losses[k] - expected[k]) > 1e-6 for k in losses):
                problems.append(f"last losses {losses}, undisturbed {expected}")
        for problem in problems:
            self._add_violation(self.phases[-1] if self.phases else START_UP, f"resumed after {self.killed}: {problem}")
        with self.tally.lock:
            self.tally.cycles += 1
            for phase in self.phases:
                self.tally.resumed[phase] += 1
        if not problems:
            self.pipeline.delete_folder(self.artifacts)

    def _add_violation(self, phase: str, message: str) -> None:
        with self.tally.lock:
            self.tally.violations.append((phase, f"{self.name}: {message} [{self.artifacts}]"))


def kill_at_random(cycle: Cycle, phases: list[str], seed: int, *, console_script: bool = False) -> None:
    """A cycle with a kill in each of these phases, in order."""
    rng = random.Random(seed)
    for phase in sorted(phases, key=PHASES.index):
        if not cycle.kill_in(phase, rng, console_script=console_script):
            break
    cycle.finish()


def kill_at_operations(cycle: Cycle, kills: list[Kill]) -> None:
    """A cycle with a kill at each of these file operations that occurs."""
    for kill in kills:
        cycle.kill_at(kill)
    cycle.finish()


def run_cycles(jobs: Iterator[Callable[[], None]], tally: Tally) -> None:
    """Run cycles on all cores, print the tally and fail if anything was lost."""
    run_parallel(jobs, os.cpu_count() or 1)
    print(f"\nseed {SEED}\n{tally.table()}", flush=True)  # noqa: T201
    lost = "\n".join(f"[{phase}] {message}" for phase, message in tally.violations)
    assert not tally.violations, f"seed {SEED}\n{tally.table()}\n{lost}"
    assert sum(tally.resumed.values()) == sum(tally.kills.values())


def test_random_kills_lose_nothing(pipeline: Pipeline, first: Reference, later: Reference) -> None:
    rng, tally = random.Random(SEED), Tally()

    def jobs() -> Iterator[Callable[[], None]]:
        deck: list[str] = []
        count = 0
        while sum(tally.kills.values()) < KILLS:
            while len(deck) < KILLS_PER_CYCLE:
                deck += rng.sample(PHASES, len(PHASES))
            phases = [deck.pop(0) for _ in range(KILLS_PER_CYCLE)]
            count += 1
            cycle = Cycle(pipeline, first, later if count % 2 == 0 else None, tally, f"seed {SEED}, cycle {count}")
            script = count % CONSOLE_SCRIPT_EVERY == 0
            yield partial(kill_at_random, cycle, phases, rng.randrange(1 << 32), console_script=script)

    run_cycles(jobs(), tally)
    assert sum(tally.kills.values()) >= KILLS
    assert all(tally.kills[phase] for phase in PHASES) or KILLS < 50


def test_kills_at_file_operations_lose_nothing(pipeline: Pipeline, first: Reference, later: Reference) -> None:
    tally = Tally()
    kills = [
        Kill(event, after)
        for event in later.operations
        if changes_artifacts(event)
        for after in ((False, True) if event.startswith("os.rename") else (False,))
    ]
    kills = kills[:: max(1, len(kills) // KILLS)]
    # each cycle kills at operations from the whole run, in order
    cycles = -(-len(kills) // 8)
    jobs = (
        partial(
            kill_at_operations, Cycle(pipeline, first, later, tally, f"operations, cycle {start}"), kills[start::cycles]
        )
        for start in range(cycles)
    )
    run_cycles(jobs, tally)
    assert sum(tally.kills.values()) > 0.5 * len(kills)


def changes_artifacts(event: str) -> bool:
    """Whether a file operation changes a published name or opens an artifact for writing."""
    kind, _, name = event.partition(" ")
    return kind != "open" or ("tfevents" not in name and "/checkpoint-" not in name)
