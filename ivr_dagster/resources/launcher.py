"""Training on several processes: a step starts them, hears from the first of them, and ends them with itself."""

import os
import secrets
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.core.training.launch import Launch
from ivr_dagster.core.training.launched import (
    ProcessesFailed,
    Request,
    launched_as,
    result_from_json,
)
from ivr_dagster.core.training.sft import SftResult, Training
from ivr_dagster.errors import InputError
from ivr_dagster.processes.machine import command
from ivr_dagster.resources.accelerator import Accelerator

SECONDS_BETWEEN_LOOKS = 0.2
# how long processes may take to end when they are told to
SECONDS_TO_END = 20.0


def accelerator_for(launch: Launch, accelerator: Accelerator) -> Accelerator:
    """Device and arithmetic: those of the settings, and what these leave open as the launch settings have it.

    Raises:
        InputError: so many processes cannot train on this machine's device.
    """
    device = launch.device if accelerator.device == "auto" and launch.device else accelerator.device
    dtype = launch.dtype if accelerator.dtype == "auto" and launch.dtype else accelerator.dtype
    chosen = Accelerator(device, dtype)
    if launch.processes > 1:
        _check_devices(launch, chosen.found_device())
    return chosen


def train_on_several(
    context: dg.AssetExecutionContext,
    launched: Path,
    training: Training,
    launch: Launch,
    on_log: Callable[[dict[str, float]], None],
) -> SftResult:
    """Fine-tune on several processes, and machines.

    Args:
        context: of the step, which the first process reports to.
        launched: where the training gets a folder, which tells the processes what to do; other machines look there too.
        training: what to do.
        launch: on how many, this machine being the first.
        on_log: as for :func:`~ivr_dagster.core.training.sft.fine_tune`.

    Raises:
        InputError, TrainingDiverged: as of :func:`~ivr_dagster.core.training.sft.fine_tune`, in whichever process.
        ProcessesFailed: a process was killed, or failed otherwise. All others are ended then, and checkpoints stay.
    """
    if launch.machine_rank:
        raise InputError(
            f"machine_rank is {launch.machine_rank}, but Dagster's machine is the first, 0",
            where=launch.source,
            remedy="Set machine_rank: 0; on the other machines run `ivr join --machine-rank N`",
        )
    if not launch.port:
        launch = replace(launch, port=_free_port())
    if launch.machines > 1:
        context.log.info(
            f"training begins once all {launch.machines} machines take part, within ten minutes; on the others: "
            "`ivr --artifacts-dir DIR join --machine-rank N`, N from 1"
        )
    results: list[str] = []

    def hear(message: Mapping[str, Any]) -> None:
        if "log" in message:
            on_log(message["log"])
        else:
            results.append(message["result"])

    with (
        launched_as(launched, Request(secrets.token_hex(8), launch, training)) as folder,
        warnings.catch_warnings(action="ignore", category=dg.PreviewWarning),  # Dagster's, of its own code
        dg.open_pipes_session(context, dg.PipesTempFileContextInjector(), dg.PipesTempFileMessageReader()) as session,
    ):
        heard = 0
        process = subprocess.Popen(
            command(folder),
            env={**os.environ, **session.get_bootstrap_env_vars()},
            stdout=2,  # standard output is for figures
            start_new_session=True,  # what interrupts the step reaches them once, through the step
        )
        try:
            while process.poll() is None:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                messages = session.message_handler.get_custom_messages()
                for message in messages[heard:]:
                    heard += 1
                    hear(message)
        finally:
            _end(process)
        failure = folder.failure()
    for message in session.message_handler.get_custom_messages()[heard:]:
        hear(message)
    if process.returncode or not results:
        raise failure or ProcessesFailed(
            f"the processes ended before their time, with exit code {process.returncode}; what they said is in the "
            "step's standard error, and the next run goes on from the last complete checkpoint"
        )
    return result_from_json(results[-1])


def _check_devices(launch: Launch, device: str) -> None:
    import torch

    if device == "mps":
        raise InputError(
            f"{launch.processes} processes were asked for, and mps is one device",
            where=launch.source,
            remedy="Set num_processes: 1, or use_cpu: true",
        )
    if device == "cuda" and torch.cuda.device_count() < launch.processes_here:
        raise InputError(
            f"{launch.processes_here} processes a machine were asked for, and there are {torch.cuda.device_count()} "
            "GPUs here",
            where=launch.source,
            remedy="Each process takes one: set num_processes to that number, times num_machines",
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the machine's launcher, and with it its processes, if it has not ended by itself."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
