"""Failed runs are posted, and the address never gets into a log."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest

from ivr_dagster.errors import InputError
from ivr_dagster.orchestration.alerts import failure_message, notify_on_failure, post
from ivr_dagster.settings import load_settings


@pytest.fixture
def posted() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server's address, and what was posted to it; below /no it refuses."""
    found: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(403 if self.path.startswith("/no") else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", found
    server.shutdown()
    server.server_close()


def test_failed_run_is_posted_with_the_step_and_its_root_cause(
    posted: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, found = posted

    @dg.op
    def breaks() -> None:
        raise InputError("no text there", where="raw/a.txt:3", remedy="Put some there.")

    @dg.job
    def rebuild() -> None:
        breaks()

    instance = dg.DagsterInstance.ephemeral()
    result = rebuild.execute_in_process(instance=instance, raise_on_error=False)
    failed = next(event for event in result.all_events if event.event_type == dg.DagsterEventType.RUN_FAILURE)
    context = dg.build_run_status_sensor_context(
        "notify_on_failure", failed, instance, result.dagster_run, context=None
    ).for_run_failure()
    monkeypatch.setenv("IVR_ALERT_URL", address)
    notify_on_failure(context)
    (message,) = found
    assert message["text"].startswith(f"ivr_dagster: run {result.run_id[:8]} of rebuild failed. breaks: ")
    assert "raw/a.txt:3: no text there. Put some there." in message["text"]


def test_posting_error_does_not_contain_the_address(posted: tuple[str, list[dict[str, str]]]) -> None:
    address, _ = posted
    assert post(address, "hello") == ""
    bad_addresses = (
        f"{address}/no/SECRET",
        f"{address}/a SECRET",
        "http://127.0.0.1:9/SECRET",
        "http://127.0.0.1:SECRET/",
        "https://user:SECRET@127.0.0.1/topic",
        "http://[SECRET/",
        "file:///SECRET",
    )
    for bad in bad_addresses:
        fault = post(bad, "hello")
        assert fault and "SECRET" not in fault


def test_address_is_not_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IVR_ALERT_URL", "https://example.org/SECRET")
    assert "SECRET" not in load_settings(tmp_path).model_dump_json()


def test_message_is_one_line_of_limited_length() -> None:
    text = failure_message("everything", "0123456789", [("a", "one\ntwo"), ("b", "x" * 10_000)], "")
    assert text.startswith("ivr_dagster: run 01234567 of everything failed. a: one two; b: xxx")
    assert len(text) == 1_500
    assert failure_message("everything", "0123456789", [], "out of memory").endswith("failed. out of memory")
