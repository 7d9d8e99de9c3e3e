"""The Dagster UI on this machine: servers as child processes that end with this one.

Web server and daemon load the assets from one code server, through a socket that only this user can open. When settings
change, the code server reloads, so that the UI and automation use the current settings.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import LOCATION, MODULE
from ivr_dagster.settings.loading import INFO, Settings, load_settings, read_settings_file
from ivr_dagster.storage.lock import LockedError

STOP_SECONDS = 8.0  # for all children together; then they are killed
SECONDS_BETWEEN_LOOKS = 1.0
RELOAD_SECONDS = 120


def serve(artifacts_dir: Path, config: Path | None, port: int) -> int:
    """Run the servers until one of them ends or this process is stopped; returns an exit code.

    Raises:
        InputError: the port is in use, or a UI already serves this folder.
    """
    lock = ArtifactPaths(artifacts_dir).ui_lock
    try:  # servers that are stopping need time to end their runs
        with lock.hold(f"http://127.0.0.1:{port}", STOP_SECONDS + 2):
            _check_port(port)
            return _serve(artifacts_dir, config, port)
    except LockedError as error:
        raise InputError(
            f"the UI already serves this folder: {error.holder}",
            where=artifacts_dir,
            remedy="Open its address, or stop it first: two daemons would rebuild everything twice.",
        ) from None


def _serve(artifacts_dir: Path, config: Path | None, port: int) -> int:
    _fail_dead_runs(artifacts_dir)
    environment = os.environ | {"IVR_ARTIFACTS_DIR": str(artifacts_dir)}
    if config is not None:
        environment["IVR_CONFIG"] = str(config.resolve())
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    children: dict[str, subprocess.Popen[bytes]] = {}
    watcher = _SettingsWatcher(artifacts_dir, config)
    with tempfile.TemporaryDirectory(prefix="ivr-") as folder:  # a socket's path must be short
        code_socket = Path(folder) / "code.sock"
        try:
            for name, *arguments in _server_commands(Path(folder), code_socket, port):
                command = [str(Path(sys.executable).parent / name), *arguments]
                # in its own session, so that Ctrl-C reaches it only through this process
                children[name] = subprocess.Popen(command, env=environment, start_new_session=True)
                if name == "dagster" and not _wait_until_ready(code_socket, children[name], lambda: stopped):
                    break
            else:
                _print(f"Dagster UI: http://127.0.0.1:{port}  (Ctrl-C stops it)")
            while not stopped and all(child.poll() is None for child in children.values()):
                time.sleep(0.2)
                if watcher.changed():
                    _reload(code_socket, artifacts_dir, config)
            for name, child in children.items():
                if not stopped and child.poll() is not None:
                    _print(f"ivr: {name} ended with exit code {child.returncode}; its messages are above")
        finally:
            _end(list(children.values()))
    return 0 if stopped else 1


def _fail_dead_runs(artifacts_dir: Path) -> None:
    from ivr_dagster.cli.instance import open_instance
    from ivr_dagster.orchestration.dead_runs import fail_dead_runs

    instance = open_instance(ArtifactPaths.of(Settings(), artifacts_dir))
    fail_dead_runs(instance)
    instance.dispose()


def _server_commands(folder: Path, code_socket: Path, port: int) -> list[list[str]]:
    """The commands of code server, web server and daemon; `folder` gets their workspace file."""
    workspace = folder / "workspace.yaml"
    server = f"{{socket: {code_socket}, location_name: {LOCATION}}}"
    workspace.write_text(f"load_from:\n  - grpc_server: {server}\n", encoding="utf-8")
    code = ["code-server", "start", "--socket", str(code_socket), "--location-name", LOCATION]
    web = ["--workspace", str(workspace), "--host", "127.0.0.1", "--port", str(port)]
    return [
        ["dagster", *code, "--module-name", MODULE, "--log-level", "warning"],
        ["dagster-webserver", *web, "--dagster-log-level", "warning"],
        ["dagster-daemon", "run", "--workspace", str(workspace), "--log-level", "warning"],
    ]


def _wait_until_ready(code_socket: Path, server: subprocess.Popen[bytes], is_stopped: Callable[[], bool]) -> bool:
    """Whether the code server started; without it the other servers show an error at first."""
    from ivr_dagster.orchestration.dagster_internals import code_server_client

    client = code_server_client(code_socket)
    while server.poll() is None and not is_stopped():
        try:
            client.ping("")
            return True
        except Exception:  # noqa: BLE001 (gRPC's own errors, until the server listens)
            time.sleep(0.1)
    return False


class _SettingsWatcher:
    """Detects changes of the settings files, once they have stayed the same from one look to the next."""

    def __init__(self, artifacts_dir: Path, config: Path | None) -> None:
        self._paths = ArtifactPaths(artifacts_dir)
        self._file = config or self._paths.settings_file
        self._loaded = self._seen = self._identities()
        self._last_look = time.monotonic()

    def changed(self) -> bool:
        """Whether there is a change that no earlier call reported."""
        if time.monotonic() - self._last_look < SECONDS_BETWEEN_LOOKS:
            return False
        before, self._seen, self._last_look = self._seen, self._identities(), time.monotonic()
        if self._seen != before or self._seen == self._loaded:
            return False
        self._loaded = self._seen
        return True

    def _identities(self) -> dict[str, tuple[int, int]]:
        files = [self._file, self._paths.sft_config, self._paths.accelerate_config]
        with suppress(InputError, OSError):  # reported when the code is loaded
            values = read_settings_file(self._file)[0]
            named = (values.get(name) for name, info in INFO.items() if info.kind == "path")
            files += [Path(str(path)).expanduser() for path in named if path]
        stats = {str(file): file.stat() for file in files if file.is_file()}
        return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}


def _reload(code_socket: Path, artifacts_dir: Path, config: Path | None) -> None:
    from ivr_dagster.orchestration.dagster_internals import code_server_client

    try:
        load_settings(artifacts_dir, config=config)  # the code server does not report invalid settings
        code_server_client(code_socket).reload_code(timeout=RELOAD_SECONDS)
    except InputError as error:
        _print(f"ivr: the changed settings are invalid and were not loaded: {error}")
    except Exception as error:  # noqa: BLE001 (reported, and tried again at the next change)
        _print(f"ivr: the changed settings could not be loaded ({error}); `Reload` in the UI tries again")
    else:
        _print("ivr: changed settings loaded")


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Interrupt the children, and kill what remains of their process groups after `STOP_SECONDS`.

    The runs are in the code server's process group; without this they would continue unnoticed.
    """
    deadline = time.monotonic() + STOP_SECONDS
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _print(line: str) -> None:
    click.echo(line, err=True)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"port {port} is in use on 127.0.0.1", where="--port", remedy="Choose another one with --port."
            ) from error
