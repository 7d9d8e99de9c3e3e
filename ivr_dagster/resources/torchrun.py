"""Training with several processes: runs torchrun through Dagster Pipes."""

import os
import shlex
import sys
import warnings

import dagster as dg

from ivr_dagster.core.training.launch_settings import Launch
from ivr_dagster.core.training.sft import SftResult
from ivr_dagster.errors import InputError
from ivr_dagster.resources.accelerator import Accelerator
from ivr_dagster.resources.training_worker import TrainingRequest, read_failure, result_from_json, write_request
from ivr_dagster.storage.atomic import remove

WORKER = "ivr_dagster.resources.training_worker"
# the shell gives way to torchrun, whose output goes to a file: standard output is for figures
_SHELL = ["sh", "-c", 'exec "$@" >"$0" 2>&1']


class WorkersFailedError(RuntimeError):
    """torchrun failed, and no worker could say why."""


def accelerator_for(launch: Launch, accelerator: Accelerator) -> Accelerator:
    """Device and dtype of a training: those of the settings, or those of the launch settings for `auto`.

    Raises:
        InputError: this machine has too few devices for the processes.
    """
    device = launch.device if accelerator.device == "auto" and launch.device else accelerator.device
    dtype = launch.dtype if accelerator.dtype == "auto" and launch.dtype else accelerator.dtype
    chosen = Accelerator(device, dtype)
    if launch.processes > 1:
        _check_devices(launch, chosen.find_device())
    return chosen


def train_with_torchrun(context: dg.AssetExecutionContext, request: TrainingRequest, launch: Launch) -> SftResult:
    """Fine-tune in several processes; this machine is node 0.

    The folder `torchrun/` in the training's folder holds the request and torchrun's output.

    Args:
        context: receives log lines and the result from rank 0.
        request: the training.
        launch: number of processes and nodes.

    Raises:
        InputError, TrainingDivergedError, TrainingOutOfMemoryError: raised by
            :func:`~ivr_dagster.core.training.sft.fine_tune` in any rank.
        WorkersFailedError: a rank failed otherwise or was killed. torchrun ends all ranks; checkpoints are kept.
    """
    if launch.machine_rank:
        raise InputError(
            f"machine_rank is {launch.machine_rank}, but the machine that runs Dagster is node 0",
            where=launch.source,
            remedy="Set machine_rank: 0, and run the torchrun command from the log on the other nodes",
        )
    folder = request.training.output_dir / "torchrun"
    remove(folder)
    folder.mkdir(parents=True)
    file, log = folder / "request.json", folder / "torchrun.log"
    write_request(request, file)
    for rank in range(1, launch.machines):
        command = shlex.join(["torchrun", *launch.torchrun(rank, WORKER, str(file))])
        context.log.info(f"training starts when all nodes have joined; run this on node {rank}: {command}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", *launch.torchrun(0, WORKER, str(file), str(os.getpid()))]
    try:
        with warnings.catch_warnings(action="ignore", category=dg.PreviewWarning):
            done = dg.PipesSubprocessClient(env=launch.environment(os.environ)).run(
                context=context, command=[*_SHELL, str(log), *torchrun]
            )
    except Exception as error:  # DagsterPipesExecutionError, which is not public
        raise read_failure(folder) or WorkersFailedError(
            f"training with {launch.processes} processes failed, see {log}; the next run resumes from the last "
            "complete checkpoint"
        ) from error
    return result_from_json(done.get_custom_messages()[-1])


def _check_devices(launch: Launch, device: str) -> None:
    import torch

    if device == "mps":
        raise InputError(
            f"{launch.processes} processes requested, but mps is one device",
            where=launch.source,
            remedy="Set num_processes: 1, or use_cpu: true",
        )
    if device == "cuda" and torch.cuda.device_count() < launch.processes_per_node:
        raise InputError(
            f"{launch.processes_per_node} processes per node requested, but this machine has "
            f"{torch.cuda.device_count()} GPUs",
            where=launch.source,
            remedy="Set num_processes to the number of GPUs per machine times num_machines",
        )
