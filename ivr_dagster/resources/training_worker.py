"""One process of a training that torchrun starts: `python -m ivr_dagster.resources.training_worker REQUEST.json [PID]`.

Rank 0 reports to Dagster through Pipes: log lines, and the result. Any rank writes why it failed beside the request.
With PID, the process of the Dagster step on this machine, the worker ends when the step does.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from dagster_pipes import open_dagster_pipes
from pydantic import TypeAdapter

from ivr_dagster.core.training.memory import TrainingOutOfMemoryError
from ivr_dagster.core.training.progress import describe_progress
from ivr_dagster.core.training.sft import SftResult, Training, TrainingDivergedError, fine_tune
from ivr_dagster.errors import InputError
from ivr_dagster.storage.allocator import keep_freed_memory
from ivr_dagster.storage.atomic import atomic_write
from ivr_dagster.storage.parent import end_with


@dataclass(frozen=True)
class TrainingRequest:
    """A training for several processes.

    Attributes:
        training: the arguments of :func:`~ivr_dagster.core.training.sft.fine_tune`.
        bytes_per_token: UTF-8 bytes per token of the text, for the log; None if unknown.
    """

    training: Training
    bytes_per_token: float | None = None


def write_request(request: TrainingRequest, file: Path) -> None:
    """Write a request for :func:`main`."""
    with atomic_write(file) as staged:
        staged.write_bytes(TypeAdapter(TrainingRequest).dump_json(request))


def read_failure(folder: Path) -> Exception | None:
    """Why a worker whose request is in `folder` failed; None if no worker could say.

    An InputError takes precedence: other ranks may have failed in consequence of it.
    """
    failures = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("failure-*.json"))]
    for kind in (InputError, TrainingDivergedError, TrainingOutOfMemoryError):
        for failure in failures:
            if failure["kind"] == kind.__name__:
                where = {name: failure[name] for name in ("where", "remedy") if name in failure}
                return kind(failure["message"], **where)
    return None


def result_from_json(text: str) -> SftResult:
    """The result that rank 0 reported."""
    return TypeAdapter(SftResult).validate_json(text)


def train_one_rank(request: TrainingRequest, rank: int) -> None:
    """Train this rank's share; rank 0 reports to Dagster."""
    training = request.training
    if training.device == "cpu":
        keep_freed_memory()
    if rank:
        fine_tune(training)
        return
    with open_dagster_pipes() as pipes:
        result = fine_tune(
            training, on_log=lambda entry: pipes.log.info(describe_progress(entry, request.bytes_per_token))
        )
        pipes.report_custom_message(TypeAdapter(SftResult).dump_json(result).decode())


def main() -> int:
    """Train one rank.

    Returns:
        The exit code.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end at once, without a traceback
    file, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    end_with(os.getppid(), *map(int, sys.argv[2:]))
    try:
        train_one_rank(TypeAdapter(TrainingRequest).validate_json(file.read_bytes()), rank)
    except (InputError, TrainingDivergedError, TrainingOutOfMemoryError) as error:
        failure: dict[str, str | None] = {"kind": type(error).__name__, "message": str(error)}
        if isinstance(error, InputError):
            where = None if error.where is None else str(error.where)
            failure |= {"message": error.message, "where": where, "remedy": error.remedy}
        with atomic_write(file.with_name(f"failure-{rank}.json")) as staged:
            staged.write_text(json.dumps(failure) + "\n", encoding="utf-8")
        print(error, file=sys.stderr)  # noqa: T201 torchrun's log
        return 1
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
