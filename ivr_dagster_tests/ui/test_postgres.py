"""A Dagster instance whose records lie in a real PostgreSQL, set up as docs/guides/operating.md says."""

import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml
from browsing import IVR, environment, serving

from ivr_dagster.cli.instance import INSTANCE_FILE
from ivr_dagster_tests.small_pipeline import SMALL, TINY

pytestmark = pytest.mark.browser

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "operating.md"
NO_SERVER = "no PostgreSQL: `apt-get install postgresql`, or put its initdb on PATH"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def for_dagster(address: str) -> str:
    """The address with the driver that dagster-postgres brings; SQLAlchemy's default is another."""
    return address.replace("postgresql://", "postgresql+psycopg2://")


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of a database on a server of our own; where there is none, tests are skipped, on CI they fail."""
    binaries = [Path(found).parent for found in [shutil.which("initdb")] if found]
    binaries += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not binaries:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NO_SERVER)
    folder = Path(tempfile.mkdtemp(prefix="ivr-postgres-", dir="/tmp"))  # a path that another user may walk
    who: dict[str, Any] = {"user": "nobody", "cwd": "/"} if os.geteuid() == 0 else {}  # it refuses to run as root
    if who:
        os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    port, data = free_port(), folder / "data"
    initdb = [binaries[0] / "initdb", "-D", data, "-U", "ivr", "--auth=trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, **who)
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-F"]
    server = subprocess.Popen([binaries[0] / "postgres", "-D", data, *options], stderr=subprocess.DEVNULL, **who)
    address = f"postgresql://ivr@127.0.0.1:{port}/postgres"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg2.connect(address).close()
                break
            except psycopg2.OperationalError:
                assert time.monotonic() < deadline and server.poll() is None
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def root(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw documents and settings; `dagster.yaml` is ours with the guide's lines behind it."""
    root = tmp_path_factory.mktemp("postgres")
    shutil.copytree(tiny / "raw", root / "raw")
    home = root / "artifacts" / ".dagster"
    home.mkdir(parents=True)
    (lines,) = re.findall(r"```yaml\n(storage:\n.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (home / "dagster.yaml").write_text(INSTANCE_FILE.read_text() + lines)
    places = {"model_name": str(tiny.parent / "model"), "raw_corpora_dir": str(root / "raw"), "rebuild": "nothing"}
    (root / "artifacts" / "ivr.yaml").write_text(yaml.safe_dump(SMALL | TINY | places))
    return root


@pytest.fixture
def ivr(root: Path, database: str) -> Any:
    """`ivr(…)` with the database's address in its environment."""

    def run(*arguments: str, artifacts: Path = root / "artifacts") -> subprocess.CompletedProcess[str]:
        command = [IVR, "--artifacts-dir", artifacts, *arguments]
        told = environment() | {"IVR_POSTGRES_URL": for_dagster(database)}
        return subprocess.run(command, env=told, capture_output=True, text=True, timeout=250, check=False)

    return run


def test_runs_of_the_command_line_are_recorded_there_and_remembered(root: Path, database: str, ivr: Any) -> None:
    first = ivr("--json", "run", "--until", "distill-tokenizer")
    assert first.returncode == 0, first.stderr
    assert "distilled_tokenizer" in json.loads(first.stdout)["materialized"]
    again = ivr("--json", "run", "--until", "distill-tokenizer")
    assert json.loads(again.stdout)["materialized"] == []
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from event_logs where dagster_event_type = 'ASSET_MATERIALIZATION'")
        found = cursor.fetchone()
    assert found is not None and found[0] == len(json.loads(first.stdout)["materialized"])
    assert not list((root / "artifacts" / ".dagster").rglob("*.db"))


def test_the_servers_work_on_it_too(root: Path, database: str, ivr: Any) -> None:
    assert ivr("run", "--until", "distill-tokenizer").returncode == 0
    with serving(root / "artifacts", root / "ui.log", IVR_POSTGRES_URL=for_dagster(database)) as ui:
        assert ui.materialized("distilled_tokenizer")
        assert ui.wait_for_run(ui.launch("replacement_candidates", "selection_log")) == "SUCCESS"
    states = {row["asset"]: row["stale"] for row in json.loads(ivr("--json", "status").stdout)["assets"]}
    assert (states["selection_log"], states["remap_rules"]) == ("", "never materialized")


def test_another_artifacts_folder_may_not_use_the_same_database(root: Path, tmp_path: Path, ivr: Any) -> None:
    assert ivr("status").returncode == 0
    other = tmp_path / "other"
    (other / ".dagster").mkdir(parents=True)
    shutil.copyfile(root / "artifacts" / ".dagster" / "dagster.yaml", other / ".dagster" / "dagster.yaml")
    refused = ivr("status", artifacts=other)
    assert refused.returncode == 2
    assert f"holds the assets of {root / 'artifacts'}" in refused.stderr
