"""Training on several processes, each a real one, beside the same training by one."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.training.blocks import write_blocks
from ivr_dagster.core.training.launch import Launch
from ivr_dagster.core.training.launched import Killed, LaunchFolder, Request, launched_as, requests
from ivr_dagster.core.training.sft import SftResult, Training, TrainingDiverged, Validation, fine_tune, read_sft_config
from ivr_dagster.errors import InputError
from ivr_dagster.processes import machine, member
from ivr_dagster.resources.launcher import train_on_several
from ivr_dagster.storage.atomic import remove

pytestmark = pytest.mark.timeout(200)

BLOCK, END = 16, 256
NEW = {7: string_of("abc"), 11: string_of("bc"), 200: string_of("가나"), 201: string_of("나")}
# 49 blocks, 8 a step: the last step of each epoch has one block, which two processes cannot share; so has the last
# batch of the 5 blocks to validate on
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 2,
    "learning_rate": 5e-3,
    "max_grad_norm": 0.5,
    "logging_steps": 1,
    "save_steps": 5,
    "eval_steps": 5,
    "save_total_limit": 5,
    "new_row_rate": 4.0,
    "shared_row_rate": 3.0,
    "kept_row_rate": 0.5,
    "second_moment_floor": True,
    "embedding_phase": 0.3,
}
OnLog = Callable[[dict[str, float]], None]


@pytest.fixture(scope="module", autouse=True)
def one_thread_each() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def training(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training without dropout, whose places no two numbers of processes leave out alike; `output_dir` is to set."""
    folder = tmp_path_factory.mktemp("training")
    model = GPT2LMHeadModel.from_pretrained(tiny / "model", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    model.save_pretrained(folder / "model")
    ids = np.random.default_rng(5)
    for name, documents in (("blocks", 19), ("validation", 2)):
        texts = (ids.integers(0, 256, 41) for _ in range(documents))
        write_blocks(texts, folder / name, block_size=BLOCK, eos_id=END, vocab_size=END + 1)
    return Training(
        folder / "model",
        folder / "blocks",
        folder,
        read_sft_config(None, **SETTINGS),
        tiny / "tokenizer",
        "a",
        new_tokens=NEW,
        validation=Validation(folder / "validation", 1.7),
    )


def by_one(training: Training, output_dir: Path) -> SftResult:
    return fine_tune(replace(training, output_dir=output_dir))


def by_several(
    training: Training,
    output_dir: Path,
    launch: Launch | None = None,
    on_log: OnLog | None = None,
    launched: Path | None = None,
) -> SftResult:
    results: list[SftResult] = []

    @dg.asset
    def trained(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        results.append(
            train_on_several(
                context,
                launched or output_dir.with_name(f"{output_dir.name}-launched"),
                replace(training, output_dir=output_dir),
                launch or Launch(processes=2),
                on_log or (lambda _: None),
            )
        )
        return dg.MaterializeResult()

    dg.materialize([trained])
    return results[0]


# what Python runs before all else: the second process is killed while it writes its part of a checkpoint
KILLED = """
import os, signal
if os.environ.get("RANK") == "1":
    import torch
    save = torch.save
    def killed(value, path, *rest, **more):
        if "checkpoint-10" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        save(value, path, *rest, **more)
    torch.save = killed
"""


def weights(result: SftResult) -> dict[str, torch.Tensor]:
    return load_file(result.final_model / "model.safetensors")


def same_bits(one: SftResult, other: SftResult) -> bool:
    wanted = weights(one)
    return all(torch.equal(value, wanted[name]) for name, value in weights(other).items())


def until(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())


@pytest.fixture(scope="module")
def one(training: Training, tmp_path_factory: pytest.TempPathFactory) -> SftResult:
    return by_one(training, tmp_path_factory.mktemp("one"))


@dataclass(frozen=True)
class Run:
    result: SftResult
    seen: list[dict[str, float]]


@pytest.fixture(scope="module")
def two(training: Training, tmp_path_factory: pytest.TempPathFactory) -> Run:
    seen: list[dict[str, float]] = []
    return Run(by_several(training, tmp_path_factory.mktemp("several") / "two", on_log=seen.append), seen)


def test_two_processes_come_to_what_one_does(one: SftResult, two: Run) -> None:
    result = two.result
    assert (result.steps, result.tokens) == (one.steps, one.tokens) == (14, 2 * 49 * BLOCK)
    assert [step for step, _ in result.loss_history] == [step for step, _ in one.loss_history] == list(range(1, 15))
    assert dict(result.loss_history) == pytest.approx(dict(one.loss_history), abs=1e-5)
    assert dict(result.validation) == pytest.approx(dict(one.validation), abs=1e-5)


def test_what_is_reported_meanwhile_is_of_the_whole_run(two: Run) -> None:
    losses = [(entry["step"], entry["loss"]) for entry in two.seen if "loss" in entry]
    assert losses == two.result.loss_history
    assert [
        (entry["step"], entry["bits_per_byte"]) for entry in two.seen if "loss" not in entry
    ] == two.result.validation
    assert all(entry["tokens_per_second"] > 0 for entry in two.seen if "loss" in entry)


def test_a_killed_process_ends_all_and_the_next_run_has_the_bits_of_an_undisturbed_one(
    training: Training, one: SftResult, two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = psutil.Process().children(recursive=True)
    (tmp_path / "sitecustomize.py").write_text(KILLED)
    with monkeypatch.context() as patch, pytest.raises(Killed, match="process 1 of 2 was ended by SIGKILL"):
        patch.setenv("PYTHONPATH", str(tmp_path))
        by_several(training, tmp_path / "run")
    assert psutil.Process().children(recursive=True) == before
    assert not (tmp_path / "run" / "final_model").exists()
    assert not list((tmp_path / "run-launched").iterdir())
    whole, half = (tmp_path / "run" / f"checkpoint-{step}" for step in (5, 10))
    assert (whole / "complete.json").exists() and half.exists() and not (half / "complete.json").exists()
    assert (whole / "rng_state_0.pth").read_bytes() != (whole / "rng_state_1.pth").read_bytes()
    shutil.copytree(tmp_path / "run", tmp_path / "by one")
    resumed = by_several(training, tmp_path / "run")
    assert resumed.resumed_from == 5
    assert same_bits(resumed, two.result)
    assert (resumed.loss_history, resumed.validation) == (two.result.loss_history, two.result.validation)
    # one process goes on from there too
    alone = by_one(training, tmp_path / "by one")
    assert (alone.resumed_from, alone.tokens) == (5, one.tokens)
    assert dict(alone.loss_history) == pytest.approx(dict(one.loss_history), abs=1e-5)


@pytest.mark.slow
def test_two_machines_go_on_from_what_one_process_left(training: Training, one: SftResult, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(entry: dict[str, float]) -> None:
        if entry["step"] == 7:
            raise Stopped

    output = tmp_path / "run"
    with pytest.raises(Stopped):
        fine_tune(replace(training, output_dir=output), on_log=stop)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        launch = Launch(processes=2, machines=2, port=probe.getsockname()[1])
    script = (
        "import sys; from pathlib import Path; from ivr_dagster.processes.machine import take_part; "
        "take_part(Path(sys.argv[1]), 1, print)"
    )
    # what a step that was killed left there at the same address is not taken part in
    LaunchFolder(tmp_path / "run-launched" / "dead").write(Request("dead", launch, training))
    other = subprocess.Popen([sys.executable, "-u", "-c", script, tmp_path / "run-launched"], stdout=subprocess.PIPE)
    try:
        result = by_several(training, output, launch)
        lines = [other.stdout.readline().decode() for _ in range(3)]  # type: ignore[union-attr]
    finally:
        other.kill()
        other.wait()
    assert "ended well" in lines[-1]
    assert result.resumed_from == 5
    assert dict(result.loss_history) == pytest.approx(dict(one.loss_history), abs=1e-5)


def test_processes_end_with_the_one_that_started_them_however_that_ends(training: Training, tmp_path: Path) -> None:
    folder = LaunchFolder(tmp_path / "launched")
    endless = replace(training, output_dir=tmp_path / "run", config=read_sft_config(None, num_train_epochs=10**6))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        folder.write(Request("endless", Launch(processes=2, port=probe.getsockname()[1]), endless))
    script = (
        "import subprocess, sys; from pathlib import Path; from ivr_dagster.processes.machine import command; "
        "from ivr_dagster.core.training.launched import LaunchFolder as Folder; "
        "subprocess.run(command(Folder(Path(sys.argv[1]))))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, folder.path], stderr=subprocess.DEVNULL)
    try:
        assert until((tmp_path / "run" / "logs").exists, 60)
        running = psutil.Process(parent.pid).children(recursive=True)
        assert len(running) == 3
    finally:
        parent.kill()
        parent.wait()
    assert until(lambda: not any(each.is_running() for each in running), 10)


def test_a_fault_that_a_process_finds_is_told_with_its_place_and_remedy(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = LaunchFolder(tmp_path / "launched")
    folder.write(Request("faulty", Launch(processes=2), replace(training, model_dir=tmp_path)))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["member", str(folder.path), str(os.getppid())])
    folder.tell(0, ConnectionError("the other process is gone"))
    assert member.main() == 1
    failure = folder.failure()
    assert isinstance(failure, InputError)
    assert (failure.where, "no model there" in failure.message) == (str(tmp_path), True)
    assert failure.remedy


def test_a_process_that_was_killed_is_told_before_those_that_missed_it(tmp_path: Path) -> None:
    folder = LaunchFolder(tmp_path / "launched")
    folder.path.mkdir()
    assert folder.failure() is None
    folder.tell(0, ConnectionError("connection closed by peer"))
    assert str(folder.failure()) == "ConnectionError: connection closed by peer"
    folder.tell(1, Killed("process 1 of 2"))
    assert str(folder.failure()) == "process 1 of 2"
    folder.tell(0, TrainingDiverged("the loss is nan"))
    assert isinstance(folder.failure(), TrainingDiverged)
    remove(folder.path)
    folder.tell(0, TrainingDiverged("told to nobody"))
    assert folder.failure() is None and not folder.path.exists()


def test_only_the_first_machine_launches(training: Training, tmp_path: Path) -> None:
    launch = Launch(processes=2, machines=2, machine_rank=1, source=tmp_path)
    with pytest.raises(InputError, match="machine_rank is 1"):
        train_on_several(dg.build_asset_context(), tmp_path, training, launch, print)


def test_each_training_has_a_place_of_its_own_and_leaves_none(training: Training, tmp_path: Path) -> None:
    one, two = (
        Request(name, Launch(processes=2, port=port), replace(training, output_dir=tmp_path / name))
        for port, name in enumerate(("one", "two"), start=1)
    )
    with launched_as(tmp_path, one) as first:
        with launched_as(tmp_path, two) as second:
            assert requests(tmp_path) == [(first, one), (second, two)]
            assert (first.read(), second.read()) == (one, two)
            second.tell(0, ConnectionError("of the second"))
            assert first.failure() is None
        assert (first.read(), second.read()) == (one, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_trainings_at_once_each_come_to_their_own(training: Training, two: Run, tmp_path: Path) -> None:
    launched = tmp_path / "launched"
    other = replace(training, config=read_sft_config(None, **SETTINGS | {"max_steps": 3}))
    with ThreadPoolExecutor(2) as both:
        runs = [
            both.submit(by_several, each, tmp_path / name, launched=launched)
            for each, name in ((training, "whole"), (other, "short"))
        ]
        whole, short = (run.result() for run in runs)
    assert same_bits(whole, two.result)
    assert (short.steps, short.final_model) == (3, tmp_path / "short" / "final_model")
    assert not list(launched.iterdir())


def test_what_a_killed_step_left_is_removed_by_the_next_and_what_is_at_work_stays(
    training: Training, tmp_path: Path
) -> None:
    dead = LaunchFolder(tmp_path / "dead")
    dead.write(Request("dead", Launch(), training))
    alive, later = (launched_as(tmp_path, Request(name, Launch(), training)) for name in ("alive", "later"))
    with alive as folder, later:
        assert dead.read() is None
        assert folder.read() is not None


def test_other_machines_take_the_last_training_of_an_address_and_none_of_a_single_machine(
    training: Training, tmp_path: Path
) -> None:
    with socket.socket() as first, socket.socket() as second:
        for listening in (first, second):
            listening.bind(("127.0.0.1", 0))
            listening.listen()
        ports = [each.getsockname()[1] for each in (first, second)]
        launches = {
            "dead": Launch(2, 2, port=ports[0]),
            "alive": Launch(2, 2, port=ports[0]),
            "alone": Launch(2, 1, port=ports[1]),
            "not yet": Launch(2, 2, port=1),
        }
        for second_of_writing, (name, launch) in enumerate(launches.items()):
            LaunchFolder(tmp_path / name).write(Request(name, launch, training))
            os.utime(tmp_path / name / "request.json", (second_of_writing, second_of_writing))
        found = machine._to_take_part_in(tmp_path, set())
        assert found is not None and found[1].name == "alive"
        assert machine._to_take_part_in(tmp_path, {"alive"}) is None


def test_another_machines_part_is_ended_once_the_training_is_over(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SECONDS_TO_END", 0.5)
    monkeypatch.setattr(machine, "SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setattr(machine, "command", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"])
    folder = LaunchFolder(tmp_path / "over")
    folder.write(Request("over", Launch(2, 2), training))
    with ThreadPoolExecutor(1) as machines:
        part = machines.submit(machine._run_machine, folder, 1)
        time.sleep(1)
        assert not part.done()
        remove(folder.path)
        assert part.result(20) < 0
