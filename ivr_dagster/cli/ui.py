"""The Dagster UI on this machine: child processes that end with this one.

Web server and daemon take the assets from one code server, by a socket that only this user may open. When settings
change, its code is loaded anew: what the UI shows and what automation compares with are the settings of now.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from ivr_dagster.errors import InputError

LOCATION = "ivr_dagster"
# the children get so long, together, to end by themselves
STOP_SECONDS = 8.0
SECONDS_BETWEEN_LOOKS = 1.0
RELOAD_SECONDS = 120


def serve(artifacts_dir: Path, config: Path | None, port: int) -> int:
    """Run the servers until one ends or this process is told to stop; returns an exit code.

    Raises:
        InputError: the port is taken, or servers work on this folder already.
    """
    from ivr_dagster.pipeline import ArtifactPaths
    from ivr_dagster.storage.lock import LockedError

    with ExitStack() as held:
        try:  # servers that are stopping need time to end their runs
            held.enter_context(ArtifactPaths(artifacts_dir).ui_lock.hold(f"ivr ui --port {port}", STOP_SECONDS + 2))
        except LockedError as error:
            raise InputError(
                f"the UI already serves this folder: {error.holder}",
                where=artifacts_dir,
                remedy="Open its address, or stop it first: two daemons would rebuild everything twice.",
            ) from None
        _check_port(port)
        return _served(artifacts_dir, config, port)


def _served(artifacts_dir: Path, config: Path | None, port: int) -> int:
    from ivr_dagster.cli.workbench import open_instance
    from ivr_dagster.orchestration.dead_runs import fail_dead_runs
    from ivr_dagster.pipeline import ArtifactPaths
    from ivr_dagster.settings import Settings

    instance = open_instance(ArtifactPaths.of(Settings(), artifacts_dir))
    fail_dead_runs(instance)
    instance.dispose()
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
    looks = _watched(artifacts_dir, config)
    next(looks)  # as it is before anything is loaded
    with tempfile.TemporaryDirectory(prefix="ivr-") as folder:  # a socket's path must be short
        socket, workspace = Path(folder) / "code.sock", Path(folder) / "workspace.yaml"
        workspace.write_text(
            f"load_from:\n  - grpc_server: {{socket: {socket}, location_name: {LOCATION}}}\n", encoding="utf-8"
        )
        shown = ["--workspace", str(workspace)]
        code = ["code-server", "start", "--socket", str(socket), "--location-name", LOCATION]
        servers = (
            ["dagster", *code, "--module-name", "ivr_dagster.definitions", "--log-level", "warning"],
            ["dagster-webserver", *shown, "--host", "127.0.0.1", "--port", str(port), "--dagster-log-level", "warning"],
            ["dagster-daemon", "run", *shown, "--log-level", "warning"],
        )
        try:
            for name, *rest in servers:
                command = [str(Path(sys.executable).parent / name), *rest]
                # in a session of its own: Ctrl-C reaches it through us, once
                children[name] = subprocess.Popen(command, env=environment, start_new_session=True)
                if name == "dagster" and not _wait_for(socket, children[name], lambda: stopped):
                    break
            else:
                _say(f"Dagster UI: http://127.0.0.1:{port}  (Ctrl-C stops it)")
            while not stopped and all(child.poll() is None for child in children.values()):
                time.sleep(0.2)
                if next(looks):
                    _reload(socket, artifacts_dir, config)
            for name, child in children.items():
                if not stopped and child.poll() is not None:
                    _say(f"ivr: {name} has ended by itself, exit code {child.returncode}; what it said stands above")
        finally:
            _end(list(children.values()))
    return 0 if stopped else 1


def _wait_for(socket: Path, server: subprocess.Popen[bytes], given_up: Callable[[], bool]) -> bool:
    """Whether the code server came up: the others would show an error until they look again."""
    from ivr_dagster.orchestration.dagster_internals import code_server_client

    client = code_server_client(socket)
    while server.poll() is None and not given_up():
        try:
            client.ping("")
            return True
        except Exception:  # noqa: BLE001 (gRPC's own errors, until it listens)
            time.sleep(0.1)
    return False


def _watched(artifacts_dir: Path, config: Path | None) -> Iterator[bool]:
    """At each look whether files of settings have changed, and kept still since the look before."""
    from ivr_dagster.pipeline import ArtifactPaths
    from ivr_dagster.settings.loading import read_settings_file
    from ivr_dagster.storage.file_identity import FileIdentity

    paths = ArtifactPaths(artifacts_dir)
    file = config or paths.settings_file

    def look() -> dict[Path, FileIdentity]:
        files = [file, paths.sft_config, paths.accelerate_config]
        with suppress(InputError, OSError):  # a fault is shown once the code is loaded
            named = read_settings_file(file)[0]
            files += [Path(str(named.get(key) or file)).expanduser() for key in ("config_path", "accelerate_config")]
        return {each: FileIdentity.of(each) for each in files if each.is_file()}

    loaded = seen = look()
    last = time.monotonic()
    while True:
        changed = False
        if time.monotonic() - last >= SECONDS_BETWEEN_LOOKS:
            last, before, seen = time.monotonic(), seen, look()
            changed = seen == before and seen != loaded
            loaded = seen if changed else loaded
        yield changed


def _reload(socket: Path, artifacts_dir: Path, config: Path | None) -> None:
    from ivr_dagster.orchestration.dagster_internals import code_server_client
    from ivr_dagster.settings import load_settings

    try:
        load_settings(artifacts_dir, config=config)  # the servers keep a fault to themselves
        code_server_client(socket).reload_code(timeout=RELOAD_SECONDS)
    except InputError as error:
        _say(f"ivr: changed settings are not taken up: {error}")
    except Exception as error:  # noqa: BLE001 (told, and tried again at the next change)
        _say(f"ivr: the changed settings could not be loaded ({error}); `Reload` in the UI tries again")
    else:
        _say("ivr: settings changed, loaded anew")


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Interrupt the children; after `STOP_SECONDS` whatever is left of them is killed, runs too.

    Each child is the head of a process group: the code server's are the runs, which would otherwise go on unseen.
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
