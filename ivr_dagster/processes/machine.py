"""What one machine does in a training on several processes: it starts its own, by torch's launcher, and ends them.

`python -m ivr_dagster.processes.machine FOLDER PARENT [RANK]` takes part in the training whose own folder
this is, as long as the process PARENT lives. :func:`take_part` is for machines that Dagster does not run on.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from ivr_dagster.core.training.launched import Killed, LaunchFolder, Request, requests
from ivr_dagster.storage.parent import end_with

SECONDS_BETWEEN_LOOKS = 1.0
# how long this machine's processes may go on once the training is over where Dagster runs
SECONDS_TO_END = 30.0


def command(folder: LaunchFolder, rank: int = 0) -> list[str]:
    """The command that this module is, ending with the process that starts it."""
    return [sys.executable, "-m", __name__, str(folder.path), str(os.getpid()), str(rank)]


def run_processes(folder: LaunchFolder, request: Request, rank: int) -> bool:
    """Run this machine's processes to their end.

    Args:
        folder: where what failed is noted.
        request: what is in it.
        rank: the machine's number.

    Returns:
        Whether all ended well.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    launch = request.launch.on_machine(rank)
    os.environ.update(launch.environment(os.environ))
    logging.disable(logging.CRITICAL)  # what failed is told by whoever asked for it
    arguments = launch.torchrun(request.name, "ivr_dagster.processes.member", str(folder.path), str(os.getpid()))
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        codes = {process: failure.exitcode for process, failure in error.failures.items()}
        # the launcher itself ends those that are left by SIGTERM
        first = {process: code for process, code in codes.items() if code != -signal.SIGTERM} or codes
        for process, code in first.items():
            if code < 0:
                killed = Killed(
                    f"process {process} of {launch.processes} was ended by {signal.Signals(-code).name} from outside "
                    "(the system does so where memory runs out); the next run goes on from the last complete checkpoint"
                )
                folder.tell(process, killed)
        return False
    except SignalException:  # whoever sent it knows why
        return False
    except Exception as error:
        folder.tell(rank * launch.processes_here, error)
        raise
    return True


def take_part(launched: Path, rank: int, say: Callable[[str], None]) -> None:
    """Take part, on another machine than Dagster's, in every training that is launched, until interrupted.

    Args:
        launched: where each has a folder, on storage that the machines share.
        rank: this machine's number, from 1.
        say: told what happens.

    Raises:
        InputError: a training was launched on so few machines that this is none of them.
    """
    say(f"machine {rank} waits for trainings in {launched}")
    done: set[str] = set()
    while True:
        found = _to_take_part_in(launched, done)
        if found is not None:
            folder, request = found
            request.launch.on_machine(rank)
            done.add(request.name)
            say(f"training of {request.training.output_dir} begins")
            code = _run_machine(folder, rank)
            say("it ended well" if code == 0 else "it ended before its time: the run in Dagster says why")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _to_take_part_in(launched: Path, done: Collection[str]) -> tuple[LaunchFolder, Request] | None:
    """A training whose first machine listens; those of a single machine are not for others."""
    for folder, request in requests(launched):
        launch = request.launch
        if request.name in done or launch.machines == 1 or not _listens(launch.address, launch.port):
            continue
        # what was there before the first machine listened may be of a launch that is gone
        if request.name in {each.name for _, each in requests(launched)}:
            return folder, request
    return None


def _run_machine(folder: LaunchFolder, rank: int) -> int:
    """The exit code of this machine's part, which is ended some time after the training is over."""
    end = time.monotonic() + SECONDS_TO_END
    with subprocess.Popen(command(folder, rank)) as process:
        while process.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if folder.read() is not None:
                end = time.monotonic() + SECONDS_TO_END
            elif time.monotonic() > end:
                process.terminate()
                break
        return process.wait()


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=SECONDS_BETWEEN_LOOKS):
            return True
    except OSError:
        return False


def main() -> int:
    """The command."""
    folder, parent, rank = LaunchFolder(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    end_with(parent)
    request = folder.read()
    return 0 if request is not None and run_processes(folder, request, rank) else 1


if __name__ == "__main__":
    raise SystemExit(main())
