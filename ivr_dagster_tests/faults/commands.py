"""`ivr` commands as processes that can be killed together with their children.

Commands are forked from a server process that has imported the heavy libraries. Each one leads its own session and runs
`ivr_dagster.cli.app.main`. With `console_script` the real script starts instead, which takes longer.
"""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, cast

import psutil

from ivr_dagster.pipeline import ASSETS, STAGES
from ivr_dagster_tests.faults.injection import Fault, Limits, watch_operations

# step name -> stage; a step is an asset or a multi-asset
STAGE_OF = {asset.name: asset.stage for asset in ASSETS.values() if asset.stage in STAGES}
STAGE_OF["token_statistics"] = "analyze"
# before the first step: imports, observing sources, deciding what is stale
START_UP = "start-up"

PRELOADED = [
    "ivr_dagster.cli.project",
    "ivr_dagster.cli.rendering",
    "ivr_dagster.core.training.sft",
    "ivr_dagster.core.training.row_trainer",
    "ivr_dagster.core.evaluation.plots",
    "torch.utils.tensorboard",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.trainer",
    "transformers.integrations.integration_utils",
    "datasets",
    "ruamel.yaml",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
]
# read when libraries are imported; results are bitwise reproducible on one thread
LIBRARY_VARIABLES = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
MARK = "FAULT_HARNESS"
TIMEOUT_SECONDS = 240.0


class Command:
    """A running command."""

    def __init__(
        self,
        arguments: Iterable[str],
        streams: Path,
        *,
        program: str = "ivr",
        environment: Mapping[str, str] | None = None,
        console_script: bool = False,
        limits: Limits | None = None,
        fault: Fault | None = None,
        operations: Path | None = None,
    ) -> None:
        """Start the command.

        Args:
            arguments: command line without the program.
            streams: folder for standard output and standard error.
            program: ivr or dagster.
            environment: variables to add to the minimal environment.
            console_script: start the console script; limits, faults and operations do not apply.
            limits: resource limits.
            fault: triggered at a file operation.
            operations: file that receives the names of the file operations, one per line.
        """
        self.arguments = [*arguments]
        streams.mkdir(parents=True, exist_ok=True)
        self._out, self._err = streams / "stdout", streams / "stderr"
        self.mark = os.urandom(8).hex()
        inherited = {
            name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "HOME", "TMPDIR") if name in os.environ
        }
        variables = inherited | LIBRARY_VARIABLES | {"HF_HOME": str(streams / "hub"), MARK: self.mark}
        variables |= dict(environment or {})
        self._popen: subprocess.Popen[bytes] | None = None
        self._process: Any = None
        if console_script:
            script = str(Path(sys.executable).with_name(program))
            with self._out.open("wb") as out, self._err.open("wb") as err:
                self._popen = subprocess.Popen(
                    [script, *self.arguments], env=variables, stdout=out, stderr=err, start_new_session=True
                )
            self.pid = self._popen.pid
        else:
            self._out.touch()
            self._err.touch()
            given = (self.arguments, program, variables, str(self._out), str(self._err), limits, fault, operations)
            self._process = fork_server().Process(target=_run_command, args=given)
            self._process.start()
            self.pid = self._process.pid
        self.started = time.monotonic()

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal, None while running."""
        if self._popen is not None:
            return self._popen.poll()
        return cast("int | None", self._process.exitcode)

    @property
    def stderr(self) -> str:
        """Standard error so far."""
        return self._err.read_text(encoding="utf-8", errors="replace")

    @property
    def stdout(self) -> str:
        """Standard output so far."""
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def error_lines(self) -> list[str]:
        """The lines of standard error that report the command's failure."""
        return [line for line in self.stderr.splitlines() if line.startswith("ivr: ")]

    def wait(self) -> int:
        """Wait for the end and return the exit code; an endless command is killed and fails the test."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while (code := self.exit_code) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"ivr {' '.join(self.arguments)} does not end:\n{self.stderr[-3_000:]}")
            time.sleep(0.01)
        return code

    def kill(self) -> bool:
        """Send SIGKILL to the process group; returns whether the command was still running."""
        was_running = self.exit_code is None
        deadline = time.monotonic() + 10
        while was_running and self.exit_code is None and time.monotonic() < deadline:
            try:
                if os.getpgid(self.pid) == self.pid:
                    os.killpg(self.pid, signal.SIGKILL)
                    break
            except ProcessLookupError:
                break
            time.sleep(0.001)  # the process does not lead its session yet
        if was_running:
            self.wait()
        return was_running

    def kill_survivors(self, seconds: float = 5.0) -> list[str]:
        """Kill child processes that still run after this time; returns their command lines."""
        deadline = time.monotonic() + seconds
        while (found := self._children()) and time.monotonic() < deadline:
            time.sleep(0.05)
        survivors = []
        for process in found:
            try:
                survivors.append(" ".join(process.cmdline()))
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return survivors

    def _children(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == self.pid:
                    continue
                if os.getsid(process.pid) == self.pid or process.environ().get(MARK) == self.mark:
                    found.append(process)
            except (psutil.Error, ProcessLookupError, PermissionError):
                continue
        return found

    def steps(self) -> list[str]:
        """The steps started so far, in order; needs `--log-level DEBUG`."""
        return [name for name in re.findall(r'Started execution of step "(\w+)"', self.stderr) if name in STAGE_OF]

    def stage(self) -> str:
        """The current or last stage."""
        steps = self.steps()
        return STAGE_OF[steps[-1]] if steps else START_UP

    def wait_for_step(self, step: str) -> bool:
        """Wait until this step starts; False if the command ended without it."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            ended = self.exit_code is not None
            if step in self.steps():
                return True
            if ended:
                return False
            time.sleep(0.004)
        self.kill()
        raise AssertionError(f"{step} does not start:\n{self.stderr[-3_000:]}")


_server: Any = None
_server_lock = threading.Lock()


def fork_server() -> Any:
    """A multiprocessing context whose processes start with the libraries imported."""
    global _server
    with _server_lock:
        if _server is None:
            _server = multiprocessing.get_context("forkserver")
            _server.set_forkserver_preload(PRELOADED)
            before = dict(os.environ)
            for name in before:
                if name.startswith(("IVR_", "DAGSTER_")):  # settings of whoever runs the tests
                    del os.environ[name]
            os.environ |= LIBRARY_VARIABLES
            try:
                forkserver.ensure_running()
            finally:
                os.environ.clear()
                os.environ.update(before)
        return _server


def _run_command(
    arguments: list[str],
    program: str,
    environment: dict[str, str],
    out: str,
    err: str,
    limits: Limits | None,
    fault: Fault | None,
    operations: Path | None,
) -> None:
    os.setsid()
    for number, name in ((0, os.devnull), (1, out), (2, err)):
        descriptor = os.open(name, (os.O_RDONLY if number == 0 else os.O_WRONLY) | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        setattr(sys, name, open(number, "w", encoding="utf-8", errors=errors, buffering=1, closefd=False))  # noqa: SIM115
    # as in a console script; the fork server's locks would outlive killed commands
    multiprocessing.set_start_method("fork", force=True)
    os.environ.clear()
    os.environ.update(environment)
    if fault is not None or operations is not None:
        watch_operations(Path(arguments[arguments.index("--artifacts-dir") + 1]), fault, operations)
    if limits is not None:
        limits.apply()
    sys.argv = [program, *arguments]
    if program == "dagster":
        from dagster._cli import main as dagster_main

        dagster_main()
    else:
        from ivr_dagster.cli.app import main

        main()
