"""SIGKILL of everything at any moment: what stands under its final name is whole, and the next run goes on.

Moments are random, over all stages alike, and systematic: right before and right after each file operation. How many:
`IVR_KILLS` (make test-faults: 200). The seed is printed; `IVR_FAULTS_SEED` repeats it.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from faults.harness import (
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

KILLS_IN_A_CYCLE = 4
# every so many cycles are of the console script itself, which takes longer to start
AS_COMMAND = 5


class Cycle:
    """An artifacts folder, from its beginning to its end, with kills in between."""

    def __init__(self, pipeline: Pipeline, first: Reference, later: Reference | None, tally: Tally, name: str) -> None:
        """From nothing, or, with `later`, from a finished first run whose corpus and settings changed."""
        self.pipeline, self.tally, self.name = pipeline, tally, name
        self.old, self.goal = (first, later) if later else (None, first)
        settings = pipeline.later_settings if later else pipeline.settings
        self.artifacts = pipeline.folder(settings, first.folder if later else None)
        self.killed: list[str] = []

    def kill_in(self, place: str, rng: random.Random, *, as_command: bool = False) -> bool:
        """Run, kill at a random moment of a stage, look; whether there was something left to kill."""
        step, wait = self.goal.moment(place, rng)
        command = self.pipeline.start(self.artifacts, as_command=as_command)
        if place == "start-up":
            # before the first step, however much slower the console script starts
            time.sleep(wait * (3 if as_command else 1))
        elif command.reaches(step):
            time.sleep(wait)
        was_at_work = command.kill()
        told = f"{step} + {wait:.3f} s" + (" (console script)" if as_command else "")
        return self._look(command.place(), told, command.left_over(), was_at_work, command.code, command.said)

    def kill_at(self, kill: Kill) -> bool:
        """The same at a file operation."""
        command = self.pipeline.start(self.artifacts, happening=kill)
        code = command.wait()
        told = f"{'after' if kill.after else 'before'} {kill.event}"
        if code < 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)
        return self._look(command.place(), told, command.left_over(), code < 0, code, command.said)

    def _look(
        self, place: str, told: str, left_over: list[str], was_at_work: bool, code: int | None, said: str
    ) -> bool:
        if not was_at_work:
            if code != 0:
                self._violation(place, f"a run after {self.killed} failed ({code}): {said[-1_500:]}")
            return False
        self.killed.append(told)
        old = self.old.contents if self.old else None
        passing = [version for each in (self.old, self.goal) if each for version in each.passing]
        found = broken(self.artifacts, old, self.goal.contents, passing)
        found += [f"still lives: {each}" for each in left_over]
        with self.tally.lock:
            self.tally.kills[place] += 1
        for line in found:
            self._violation(place, f"killed at {told}: {line}")
        self.place = place
        return True

    def finish(self) -> None:
        """Run to the end: everything is what an undisturbed run leaves."""
        command = self.pipeline.run(self.artifacts)
        place = getattr(self, "place", "start-up")
        found = []
        if command.code != 0:
            found.append(f"the last run failed ({command.code}): {command.said[-1_500:]}")
        else:
            wanted = self.goal.contents
            found += differences(contents(self.artifacts), wanted)
            losses, undisturbed = final_losses(self.artifacts), final_losses(self.goal.folder)
            if losses.keys() != undisturbed.keys() or any(abs(losses[k] - undisturbed[k]) > 1e-6 for k in losses):
                found.append(f"last losses {losses}, undisturbed {undisturbed}")
            found += [f"{name} is left over" for name in leftovers(self.artifacts)]
            found += [f"{asset} is stale: {why}" for asset, why in self.pipeline.states(self.artifacts).items()]
            damaged = self.pipeline.verified(self.artifacts)
            found += [damaged] if damaged else []
        for line in found:
            self._violation(place, f"resumed after {self.killed}: {line}")
        with self.tally.lock:
            self.tally.cycles += 1
        if not found:
            self.pipeline.discard(self.artifacts)

    def resumed(self, place: str) -> None:
        """Count a kill after which another run began and did its work, or was killed in turn."""
        with self.tally.lock:
            self.tally.resumed[place] += 1

    def _violation(self, place: str, told: str) -> None:
        with self.tally.lock:
            self.tally.violations.append((place, f"{self.name}: {told} [{self.artifacts}]"))


def at_random(cycle: Cycle, plan: list[str], rng: random.Random, *, as_command: bool = False) -> int:
    """A cycle with a kill in each of these stages, in order; how many there were."""
    done: list[str] = []
    for place in sorted(plan, key=PLACES.index):
        if not cycle.kill_in(place, rng, as_command=as_command):
            break
        done.append(cycle.place)
    cycle.finish()
    for place in done:
        cycle.resumed(place)
    return len(done)


def at_operations(cycle: Cycle, plan: list[Kill]) -> int:
    """A cycle with a kill at each of these operations, as far as they come up; how many there were."""
    done: list[str] = []
    for kill in plan:
        if cycle.kill_at(kill):
            done.append(cycle.place)
    cycle.finish()
    for place in done:
        cycle.resumed(place)
    return len(done)


def told(tally: Tally) -> str:
    """What a person reads where something was lost."""
    return "\n".join(f"[{place}] {line}" for place, line in tally.violations)


def worth_a_kill(event: str) -> bool:
    """Operations that change what stands under some name; of opened files the artifacts' own."""
    kind, _, name = event.partition(" ")
    return kind in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.link", "os.mkdir") or (
        kind == "open" and "tfevents" not in name and "/checkpoint-" not in name
    )


def test_killed_at_any_moment_a_few_times_nothing_is_lost(pipeline: Pipeline, first: Reference) -> None:
    rng = random.Random(SEED)
    tally, started = Tally(), time.monotonic()
    at_random(Cycle(pipeline, first, None, tally, "short"), ["select", "train"], rng)
    tally.seconds = time.monotonic() - started
    print(f"\nseed {SEED}\n{tally.table()}")  # noqa: T201
    assert not tally.violations, f"seed {SEED}\n{told(tally)}"


def test_killed_between_two_renames_nothing_is_lost(pipeline: Pipeline, first: Reference, later: Reference) -> None:
    tally = Tally()
    folders = ("corpora/cleaned", "tokenizers/remapped", "evaluation")
    moves = [each for each in later.operations if each.startswith("os.rename ") and each.endswith(folders)]
    assert moves
    at_operations(Cycle(pipeline, first, later, tally, "short"), [Kill(moves[0]), Kill(moves[-1], after=True)])
    assert not tally.violations, told(tally)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_killed_hundreds_of_times_nothing_is_lost(pipeline: Pipeline, first: Reference, later: Reference) -> None:
    rng = random.Random(SEED)
    tally, started = Tally(), time.monotonic()

    def cycles() -> Iterator[Callable[[], None]]:
        deck: list[str] = []
        count = 0
        while sum(tally.kills.values()) < KILLS:
            while len(deck) < KILLS_IN_A_CYCLE:
                deck += rng.sample(PLACES, len(PLACES))
            plan = [deck.pop(0) for _ in range(KILLS_IN_A_CYCLE)]
            count += 1
            seed, changed, script = rng.randrange(1 << 32), count % 2 == 0, count % AS_COMMAND == 0

            def job(
                plan: list[str] = plan, seed: int = seed, changed: bool = changed, script: bool = script, n: int = count
            ) -> None:
                cycle = Cycle(pipeline, first, later if changed else None, tally, f"seed {SEED}, cycle {n}")
                at_random(cycle, plan, random.Random(seed), as_command=script)
                print(f"cycle {n}: {sum(tally.kills.values())} kills, {time.monotonic() - started:.0f} s", flush=True)  # noqa: T201

            yield job

    print(f"\nseed {SEED}", flush=True)  # noqa: T201
    side_by_side(cycles(), os.cpu_count() or 1)
    tally.seconds = time.monotonic() - started
    print(tally.table(), told(tally), sep="\n", flush=True)  # noqa: T201
    assert not tally.violations, f"seed {SEED}\n{tally.table()}\n{told(tally)}"
    assert sum(tally.resumed.values()) == sum(tally.kills.values()) >= KILLS
    assert all(tally.kills[place] for place in PLACES) or KILLS < 50


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_killed_at_each_file_operation_nothing_is_lost(pipeline: Pipeline, first: Reference, later: Reference) -> None:
    tally, started = Tally(), time.monotonic()
    kills = [
        Kill(event, after)
        for event in later.operations
        if worth_a_kill(event)
        for after in ((False, True) if event.startswith("os.rename") else (False,))
    ]
    least = max(1, len(kills) // max(1, KILLS))
    kills = kills[::least]
    # each cycle takes operations from all over the run, in their order
    cycles = -(-len(kills) // 8)
    plans = [kills[start::cycles] for start in range(cycles)]

    def jobs() -> Iterator[Callable[[], None]]:
        for number, plan in enumerate(plans, 1):

            def job(plan: list[Kill] = plan, number: int = number) -> None:
                at_operations(Cycle(pipeline, first, later, tally, f"operations, cycle {number}"), plan)
                print(  # noqa: T201
                    f"cycle {number} of {len(plans)}: {sum(tally.kills.values())} kills, "
                    f"{time.monotonic() - started:.0f} s",
                    flush=True,
                )

            yield job

    side_by_side(jobs(), os.cpu_count() or 1)
    tally.seconds = time.monotonic() - started
    print(tally.table(), told(tally), sep="\n", flush=True)  # noqa: T201
    assert not tally.violations, f"{tally.table()}\n{told(tally)}"
    assert sum(tally.kills.values()) > 0.5 * len(kills)
