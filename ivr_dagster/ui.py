"""The Dagster UI on this machine: web server and daemon as two child processes that end with this one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ivr_dagster.core.errors import InputError

MODULE = "ivr_dagster.definitions"


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
    commands = (
        ["dagster-webserver", "--module-name", MODULE, "--host", "127.0.0.1", "--port", str(port)],
        ["dagster-daemon", "run", "--module-name", MODULE],
    )
    binaries = Path(sys.executable).parent
    children = [
        subprocess.Popen([str(binaries / name), *rest], env=environment, start_new_session=True)
        for name, *rest in commands
    ]
    print(f"Dagster UI: http://127.0.0.1:{port}  (Ctrl-C stops it)", file=sys.stderr, flush=True)  # noqa: T201
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        while not stopped and all(child.poll() is None for child in children):
            time.sleep(0.2)
    finally:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
        for child in children:
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
    return 0 if stopped else 1


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
