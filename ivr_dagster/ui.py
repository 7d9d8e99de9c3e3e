"""The Dagster UI on this machine: web server and daemon as two child processes that end with this one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ivr_dagster.core.errors import InputError

WORKSPACE = Path(__file__).with_name("workspace.yaml")
# both children get so long, together, to end by themselves
STOP_SECONDS = 8.0


def serve(artifacts_dir: Path, config: Path | None, port: int) -> int:
    """Run web server and daemon until one ends or this process is told to stop; returns an exit code.

    Raises:
        InputError: the port is taken.
    """
    _check_port(port)
    from ivr_dagster.materialize import open_instance
    from ivr_dagster.settings import Settings

    open_instance(Settings().paths(artifacts_dir)).dispose()
    environment = os.environ | {"IVR_ARTIFACTS_DIR": str(artifacts_dir)}
    if config is not None:
        environment["IVR_CONFIG"] = str(config.resolve())
    servers = (
        ["dagster-webserver", "--workspace", str(WORKSPACE), "--host", "127.0.0.1", "--port", str(port)],
        ["dagster-daemon", "run", "--workspace", str(WORKSPACE)],
    )
    binaries = Path(sys.executable).parent
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    children: list[subprocess.Popen[bytes]] = []
    try:
        for name, *rest in servers:
            # in a session of its own: Ctrl-C reaches it through us, once
            children.append(subprocess.Popen([str(binaries / name), *rest], env=environment, start_new_session=True))
        _say(f"Dagster UI: http://127.0.0.1:{port}  (Ctrl-C stops it)")
        while not stopped and all(child.poll() is None for child in children):
            time.sleep(0.2)
        for (name, *_), child in zip(servers, children, strict=True):
            if not stopped and child.poll() is not None:
                _say(f"ivr: {name} has ended by itself, exit code {child.returncode}; what it said stands above")
    finally:
        _end(children)
    return 0 if stopped else 1


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Interrupt the children; those that are still there after `STOP_SECONDS` are killed."""
    deadline = time.monotonic() + STOP_SECONDS
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
    for child in children:
        try:
            child.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _check_port(port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"port {port} is taken on 127.0.0.1", where="--port", remedy="Give another one with --port."
            ) from error
