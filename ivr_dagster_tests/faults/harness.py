"""A tiny pipeline, its undisturbed runs, and the checks after a disturbed run."""

import contextlib
import json
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ivr_dagster.pipeline import ASSETS, requested_stages
from ivr_dagster_tests import small_pipeline
from ivr_dagster_tests.faults.artifact_hashes import (
    Hashes,
    compare,
    find_inconsistent,
    find_leftovers,
    hash_artifacts,
    hash_checkpoint,
)
from ivr_dagster_tests.faults.commands import STAGE_OF, START_UP, Command, fork_server

KILLS = int(os.environ.get("FAULTS_KILLS", "6"))
SEED = int(os.environ.get("FAULTS_SEED", "20261128"))

PHASES = (START_UP, *requested_stages())
SETTINGS = small_pipeline.TINY | {"token_distillation_bytes": 3_000}
TRAINING = f"{small_pipeline.TRAINING}save_total_limit: 2\n"


@dataclass(frozen=True)
class Reference:
    """An undisturbed run.

    Attributes:
        folder: its artifacts. Copy it, never change it.
        hashes: hashes of the artifacts.
        seconds: time until the next step started, by step in order; `start-up` comes first.
        intermediate: checkpoints that were removed later, each separately.
        operations: distinct file operations, in order.
    """

    folder: Path
    hashes: Hashes
    seconds: dict[str, float]
    intermediate: list[Hashes] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)

    def random_moment(self, phase: str, rng: random.Random) -> tuple[str, float]:
        """A random moment of a phase: the step, and seconds since its start."""
        steps = [step for step in self.seconds if STAGE_OF.get(step, START_UP) == phase]
        step = rng.choices(steps, [self.seconds[each] for each in steps])[0]
        return step, rng.uniform(0, self.seconds[step])

    def operation_before(self, stage: str) -> str:
        """The last file operation before a stage writes its first artifact."""
        paths = [asset.path for asset in ASSETS.values() if asset.stage == stage]
        for before, operation in zip(self.operations, self.operations[1:], strict=False):
            if any(_writes(operation, path) for path in paths):
                return before
        raise AssertionError(f"{stage} writes no artifact")


def _writes(operation: str, path: str) -> bool:
    """Whether a file operation touches an artifact, its temporary name or its manifest."""
    parent, _, name = path.rpartition("/")
    prefix = rf"{re.escape(parent)}/" if parent else ""
    return re.search(rf"[ ]{prefix}\.*{re.escape(name)}(\.ivr\.json)?(\.N\.tmp|\.old)?(/|$| )", operation) is not None


def _prepare(root: Path) -> None:
    small_pipeline.write_tiny_model(root / "model", 600)
    small_pipeline.write_inputs(root, 60)
    shutil.copytree(root / "raw", root / "raw_later")
    small_pipeline.write_documents(root / "raw_later/more.jsonl", small_pipeline.documents()[60:75])
    (root / "sft_config.yaml").write_text(TRAINING)


class Pipeline:
    """A tiny model, two corpora and training settings, with artifacts folders built from them.

    Args:
        root: folder of the model and the corpora, shared by all test processes.
        fast: parent of the artifacts folders, in memory if possible.
    """

    def __init__(self, root: Path, fast: Path) -> None:
        self.root, self.fast = root, fast
        self._count = 0

    def prepare(self) -> None:
        """Write model, corpora and training settings."""
        process = fork_server().Process(target=_prepare, args=(self.root,))
        process.start()
        process.join()
        assert process.exitcode == 0

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the first run."""
        paths = {"model_name": "model", "raw_corpora_dir": "raw", "config_path": "sft_config.yaml"}
        return SETTINGS | {key: str(self.root / name) for key, name in paths.items()}

    @property
    def later_settings(self) -> dict[str, Any]:
        """Settings of the second run: more text, fewer new tokens."""
        return self.settings | {"raw_corpora_dir": str(self.root / "raw_later"), "max_candidates": 30}

    def create_folder(self, settings: Mapping[str, Any], start: Path | None = None) -> Path:
        """An artifacts folder with these settings, empty or a copy of `start`."""
        self._count += 1
        folder = self.fast / f"{os.getpid()}-{threading.get_ident()}-{self._count}" / "artifacts"
        if start is None:
            folder.mkdir(parents=True)
        else:
            shutil.copytree(start, folder)
        self.write_settings(folder, settings)
        return folder

    def write_settings(self, artifacts: Path, settings: Mapping[str, Any]) -> None:
        """Write the settings file."""
        (artifacts / "ivr.yaml").write_text(yaml.safe_dump(dict(settings)))

    def delete_folder(self, artifacts: Path) -> None:
        """Delete a folder made by :meth:`create_folder`."""
        shutil.rmtree(artifacts.parent)

    def start(self, artifacts: Path, *arguments: str, level: str = "DEBUG", **options: Any) -> Command:
        """Start a command, by default `ivr run`."""
        common = ["--artifacts-dir", str(artifacts), "--log-level", level]
        return Command([*common, *(arguments or ["run"])], artifacts.parent / f"{time.monotonic_ns()}", **options)

    def run(self, artifacts: Path, *arguments: str, **options: Any) -> Command:
        """Start a command and wait for its end."""
        command = self.start(artifacts, *arguments, **options)
        command.wait()
        return command

    def run_reference(
        self, settings: Mapping[str, Any], start: Path | None = None, name: str = "first", *, until: str = "evaluate"
    ) -> Reference:
        """Run undisturbed and keep the artifacts in `root/name`."""
        artifacts = self.create_folder(settings, start)
        operations = artifacts.parent / "operations"
        command = self.start(artifacts, "run", "--until", until, operations=operations)
        started: dict[str, float] = {START_UP: command.started}
        checkpoints: dict[tuple[str, int], Hashes] = {}
        while command.exit_code is None:
            for step in command.steps():
                started.setdefault(step, time.monotonic())
            for marker in artifacts.glob("training/*/checkpoint-*/complete.json"):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    version = marker.parent.relative_to(artifacts).as_posix(), marker.stat().st_mtime_ns
                    if version not in checkpoints:
                        hashes = hash_checkpoint(artifacts, version[0])
                        marker.stat()  # still complete
                        checkpoints[version] = hashes
            time.sleep(0.004)
        ends = [*list(started.values())[1:], time.monotonic()]
        assert command.exit_code == 0, command.stderr[-3_000:]
        assert self.stale_assets(artifacts) == {} or until != "evaluate"
        seconds = {step: end - start for (step, start), end in zip(started.items(), ends, strict=True)}
        kept = self.root / name
        shutil.copytree(artifacts, kept)
        distinct = list(dict.fromkeys(operations.read_text().splitlines()))
        reference = Reference(kept, hash_artifacts(artifacts), seconds, [*checkpoints.values()], distinct)
        self.delete_folder(artifacts)
        return reference

    def stale_assets(self, artifacts: Path) -> dict[str, str]:
        """Assets that are not fresh, and why."""
        status = self.run(artifacts, "--json", "status", level="WARNING")
        assert status.exit_code == 0, status.stderr[-3_000:]
        return {row["asset"]: row["stale"] for row in json.loads(status.stdout)["assets"] if not row["fresh"]}

    def find_problems(self, artifacts: Path, expected: Hashes | None = None, *, complete: bool = True) -> list[str]:
        """Problems after a run that succeeded, one line each.

        Args:
            artifacts: the folder.
            expected: hashes of an undisturbed run.
            complete: the run reached the last stage, so no asset may be stale.
        """
        problems = compare(hash_artifacts(artifacts), expected) if expected else []
        problems += [f"{name} is left over" for name in find_leftovers(artifacts)]
        if complete:
            problems += [f"{asset} is stale: {reason}" for asset, reason in self.stale_assets(artifacts).items()]
        verify = self.run(artifacts, "status", "--verify", level="WARNING")
        if verify.exit_code != 0:
            problems.append(f"`ivr status --verify` failed ({verify.exit_code}): {verify.stdout}{verify.stderr}")
        return problems


def find_inconsistencies(artifacts: Path, old: Reference | None, new: Reference) -> list[str]:
    """Artifacts that are neither those of `old` nor those of `new`, or are lost, one line each."""
    intermediate = [*(old.intermediate if old else []), *new.intermediate]
    return find_inconsistent(artifacts, old.hashes if old else None, new.hashes, intermediate)


def assert_no_problems(problems: list[str]) -> None:
    """Fail with all problems."""
    assert not problems, "\n".join(problems)


def final_losses(artifacts: Path) -> dict[str, float]:
    """The last loss of each training, nats per token."""
    histories = sorted(artifacts.glob("training/*/history.json"))
    return {file.parent.name: json.loads(file.read_text())["losses"][-1][1] for file in histories}


def run_parallel(jobs: Iterator[Callable[[], None]], workers: int) -> None:
    """Run jobs in threads, drawing each when a thread is free; the first error stops all threads."""
    lock, failed = threading.Lock(), threading.Event()

    def work() -> None:
        while not failed.is_set():
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            try:
                job()
            except BaseException:
                failed.set()
                raise

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(work) for _ in range(workers)]:
            future.result()
