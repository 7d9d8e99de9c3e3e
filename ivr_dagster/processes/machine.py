"""What one machine does in a training on several processes: it starts its own, by torch's launcher, and ends them.

`python -m ivr_dagster.processes.machine FOLDER PARENT [RANK]` takes part in the training that is requested in the
folder, as long as the process PARENT lives. :func:`take_part` is for machines that Dagster does not run on.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ivr_dagster.core.training.launched import Killed, LaunchFolder, Request
from ivr_dagster.processes import end_with

SECONDS_BETWEEN_LOOKS = 1.0


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


def take_part(folder: LaunchFolder, rank: int, say: Callable[[str], None]) -> None:
    """Take part, on another machine than Dagster's, in every training launched in the folder, until interrupted.

    Args:
        folder: on storage that the machines share.
        rank: this machine's number, from 1.
        say: told what happens.

    Raises:
        InputError: a training was launched on so few machines that this is none of them.
    """
    say(f"machine {rank} waits for trainings in {folder.path}")
    done = ""
    while True:
        request = folder.read()
        if request is not None and request.name != done and _listens(request.launch.address, request.launch.port):
            # what was there before the first machine listened may be of a launch that is gone
            request = folder.read()
            if request is not None:
                request.launch.on_machine(rank)
                done = request.name
                say(f"training of {request.training.output_dir} begins")
                code = subprocess.run(command(folder, rank), check=False).returncode
                say("it ended well" if code == 0 else "it ended before its time: the run in Dagster says why")
        time.sleep(SECONDS_BETWEEN_LOOKS)


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
