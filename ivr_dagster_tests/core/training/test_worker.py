"""Training with several processes under torchrun, compared with the same training in one process."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from ivr_dagster.core.training.launch_settings import Launch
from ivr_dagster.core.training.memory import TrainingOutOfMemoryError
from ivr_dagster.core.training.sft import SftResult, Training, TrainingDivergedError, fine_tune
from ivr_dagster.core.training.sft_config import read_sft_config
from ivr_dagster.errors import InputError
from ivr_dagster.resources.torchrun import WORKER, WorkersFailedError, train_with_torchrun
from ivr_dagster.resources.training_worker import TrainingRequest, main, read_failure, write_request
from ivr_dagster_tests.small_pipeline import tiny_validation

pytestmark = pytest.mark.timeout(200)

BLOCK, END = 16, 256
NEW = {7: string_of("abc"), 11: string_of("bc"), 200: string_of("가나"), 201: string_of("나")}
# 49 blocks, 8 per step: the last step of each epoch has one block, which two processes cannot share; nor can they
# share the three validation documents
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


@pytest.fixture(scope="module", autouse=True)
def one_thread_each() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def training(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training without dropout, which depends on the number of processes."""
    folder = tmp_path_factory.mktemp("training")
    model = GPT2LMHeadModel.from_pretrained(tiny / "model", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    model.save_pretrained(folder / "model")
    ids = np.random.default_rng(5)
    texts = (ids.integers(0, 256, 41) for _ in range(19))
    write_blocks(texts, folder / "blocks", block_size=BLOCK, eos_id=END, vocab_size=END + 1)
    return Training(
        folder / "model",
        folder / "blocks",
        folder,
        read_sft_config(None, **SETTINGS),
        tiny / "tokenizer",
        "a",
        new_tokens=NEW,
        validation=tiny_validation(3),
    )


def train_with_processes(
    training: Training, output_dir: Path, launch: Launch | None = None, lines: list[str] | None = None
) -> SftResult:
    """Train in a Dagster run; `lines` receives its log."""
    results: list[SftResult] = []

    @dg.asset
    def trained(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        request = TrainingRequest(replace(training, output_dir=output_dir), 1.7)
        results.append(train_with_torchrun(context, request, launch or Launch(processes=2)))
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.materialize([trained], instance=instance)
        if lines is not None:
            lines += [entry.user_message for entry in instance.all_logs(run.run_id)]
    return results[0]


# Python runs this first: rank 1 is killed while it writes its part of a checkpoint
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


def have_same_weights(one: SftResult, other: SftResult) -> bool:
    expected, found = (load_file(each.final_model / "model.safetensors") for each in (one, other))
    return all(torch.equal(value, expected[name]) for name, value in found.items())


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())


@pytest.fixture(scope="module")
def one(training: Training, tmp_path_factory: pytest.TempPathFactory) -> SftResult:
    return fine_tune(replace(training, output_dir=tmp_path_factory.mktemp("one")))


@pytest.fixture(scope="module")
def two(training: Training, tmp_path_factory: pytest.TempPathFactory) -> tuple[SftResult, list[str]]:
    """The result of two processes, and the lines of Dagster's log."""
    lines: list[str] = []
    return train_with_processes(training, tmp_path_factory.mktemp("several") / "two", lines=lines), lines


def test_two_processes_reach_the_losses_of_one(one: SftResult, two: tuple[SftResult, list[str]]) -> None:
    result, _ = two
    assert (result.steps, result.tokens) == (one.steps, one.tokens) == (14, 2 * 49 * BLOCK)
    assert dict(result.loss_history) == pytest.approx(dict(one.loss_history), abs=1e-5)
    assert dict(result.validation) == pytest.approx(dict(one.validation), abs=1e-5)


def test_rank_0_reports_every_step_once_to_the_log_of_dagster(two: tuple[SftResult, list[str]]) -> None:
    result, lines = two
    losses = [match for line in lines if (match := re.search(r"step (\d+) of 14: loss ([\d.]+) nats", line))]
    assert [(int(step), float(loss)) for step, loss in (each.groups() for each in losses)] == [
        (step, round(loss, 4)) for step, loss in result.loss_history
    ]
    assert any(f"step 5 of 14: validation {dict(result.validation)[5]:.4f} bits per byte" in line for line in lines)


def test_killed_rank_ends_all_and_the_next_run_resumes_to_the_same_weights(
    training: Training,
    one: SftResult,
    two: tuple[SftResult, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = psutil.Process().children(recursive=True)
    (tmp_path / "sitecustomize.py").write_text(KILLED)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with monkeypatch.context() as patch, pytest.raises(WorkersFailedError, match=r"torchrun\.log") as error:
        patch.setenv("PYTHONPATH", path)
        train_with_processes(training, tmp_path / "run")
    log = Path(re.search(r"see (.*);", str(error.value))[1])  # type: ignore[index]
    assert "Signal 9 (SIGKILL) received" in log.read_text()
    assert psutil.Process().children(recursive=True) == before
    assert not (tmp_path / "run" / "final_model").exists()
    complete, incomplete = (tmp_path / "run" / f"checkpoint-{step}" for step in (5, 10))
    assert (complete / "complete.json").exists() and not (incomplete / "complete.json").exists()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    result = train_with_processes(training, tmp_path / "run")
    assert result.resumed_from == 5
    assert have_same_weights(result, two[0])
    # a single process resumes the checkpoints of two
    alone = fine_tune(replace(training, output_dir=tmp_path / "copy"))
    assert alone.resumed_from == 5
    assert dict(alone.loss_history) == pytest.approx(dict(one.loss_history), abs=1e-5)


@pytest.mark.slow
def test_printed_torchrun_command_makes_a_second_node_join(training: Training, one: SftResult, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        launch = Launch(processes=2, machines=2, port=probe.getsockname()[1])
    file = tmp_path / "run" / "torchrun" / "request.json"
    command = ["torchrun", *launch.torchrun(1, WORKER, str(file))]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def join() -> int:
        wait_until(file.exists, 60)
        return subprocess.run(command, check=False, env=os.environ | {"PATH": path}).returncode

    lines: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(join)
        result = train_with_processes(training, tmp_path / "run", launch, lines)
        assert code.result(60) == 0
    assert any(shlex.join(command) in line for line in lines)
    assert dict(result.loss_history) == pytest.approx(dict(one.loss_history), abs=1e-5)


ENDLESS = """
import sys
from dataclasses import replace
from pathlib import Path
import dagster as dg
from pydantic import TypeAdapter
from ivr_dagster.core.training.launch_settings import Launch
from ivr_dagster.resources.training_worker import TrainingRequest
from ivr_dagster.resources.torchrun import train_with_torchrun

@dg.asset
def trained(context: dg.AssetExecutionContext) -> None:
    request = TypeAdapter(TrainingRequest).validate_json(Path(sys.argv[1]).read_bytes())
    train_with_torchrun(context, request, Launch(processes=2))

dg.materialize([trained])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_step_however_it_ends(training: Training, tmp_path: Path, how: signal.Signals) -> None:
    endless = replace(training, output_dir=tmp_path / "run", config=read_sft_config(None, num_train_epochs=10**6))
    write_request(TrainingRequest(endless), tmp_path / "request.json")
    with (tmp_path / "output").open("wb") as output:
        step = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, tmp_path / "request.json"], stdout=output, stderr=output
        )
    try:
        assert wait_until((tmp_path / "run" / "logs").exists, 90), (tmp_path / "output").read_text()
        running = psutil.Process(step.pid).children(recursive=True)
        assert len(running) >= 3  # torchrun and two workers
        step.send_signal(how)
        step.wait(60)
    finally:
        step.kill()
        step.wait()
    assert wait_until(lambda: not any(each.is_running() for each in running), 20)


def test_input_error_of_a_worker_keeps_its_place_and_remedy(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "request.json"
    write_request(TrainingRequest(replace(training, model_dir=tmp_path)), file)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["worker", str(file)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "failure-0.json").write_text('{"kind": "TrainingDivergedError", "message": "the loss is nan"}')
    assert main() == 1
    failure = read_failure(tmp_path)
    assert isinstance(failure, InputError)
    assert (failure.where, "no model found" in failure.message) == (str(tmp_path), True)
    assert failure.remedy


@pytest.mark.parametrize("kind", [TrainingDivergedError, TrainingOutOfMemoryError])
def test_failure_of_a_worker_keeps_its_type(kind: type[Exception], tmp_path: Path) -> None:
    assert read_failure(tmp_path) is None
    (tmp_path / "failure-1.json").write_text(f'{{"kind": "{kind.__name__}", "message": "at step 3"}}')
    failure = read_failure(tmp_path)
    assert type(failure) is kind
    assert str(failure) == "at step 3"


def test_machine_that_runs_dagster_must_be_node_0(training: Training, tmp_path: Path) -> None:
    launch = Launch(processes=2, machines=2, machine_rank=1, source=tmp_path)
    with pytest.raises(InputError, match="machine_rank is 1"):
        train_with_torchrun(dg.build_asset_context(), TrainingRequest(training), launch)
