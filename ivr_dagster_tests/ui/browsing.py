"""The real Dagster UI in a real browser: its servers, a browser, and the moves of a person who looks around.

The tests of this folder and `docs/take_screenshots.py` share it. Texts and icons are those of the pinned Dagster.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, Playwright, expect

IVR = Path(sys.executable).with_name("ivr")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# no sandbox: containers rarely allow one, and nothing but our own pages is opened
BROWSER_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
START_SECONDS, RUN_SECONDS, LOOK_SECONDS = 120, 240, 60


@dataclass(frozen=True)
class DagsterUi:
    """`ivr ui` at work.

    Attributes:
        process: `ivr ui` itself.
        url: where it serves.
        log: what it and its servers say.
    """

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def graphql(self, query: str, **variables: Any) -> Any:
        """The data that a GraphQL query asks for."""
        request = urllib.request.Request(  # noqa: S310 (http on this machine)
            f"{self.url}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=LOOK_SECONDS) as answer:  # noqa: S310
            content = json.load(answer)
        if content.get("errors"):
            raise RuntimeError(f"{query}: {content['errors']}")
        return content["data"]

    def wait_for_run(self, run_id: str) -> str:
        """The status in which a run ends, and why it failed if it did."""
        deadline = time.monotonic() + RUN_SECONDS
        status = "not found"
        while time.monotonic() < deadline:
            status = self.status(run_id)
            if status in ("FAILURE", "CANCELED"):
                return f"{status}: {self._failures(run_id)}"
            if status == "SUCCESS":
                return status
            time.sleep(0.5)
        return f"{status} after {RUN_SECONDS} s"

    def launch(self, *assets: str) -> str:
        """Id of a run that materializes assets, with their checks, launched as the UI does."""
        selector = {
            "repositoryLocationName": "ivr_dagster",
            "repositoryName": "__repository__",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": [name]} for name in assets],
        }
        return self._launched(
            "launchPipelineExecution(executionParams: $given)",
            "ExecutionParams!",
            {"selector": selector, "mode": "default", "runConfigData": {}},
        )

    def launch_again(self, run_id: str) -> str:
        """Id of a run that goes on with what another did not finish: `Re-execute from failure`."""
        given = {"parentRunId": run_id, "strategy": "FROM_FAILURE"}
        return self._launched("launchRunReexecution(reexecutionParams: $given)", "ReexecutionParams!", given)

    def _launched(self, mutation: str, kind: str, given: dict[str, Any]) -> str:
        query = (
            f"mutation($given: {kind}) {{launched: {mutation} {{__typename "
            "... on LaunchRunSuccess {run {runId}} ... on PythonError {message}}}"
        )
        answer = self.graphql(query, given=given)["launched"]
        if "run" not in answer:
            raise RuntimeError(str(answer))
        return str(answer["run"]["runId"])

    def terminate(self, run_id: str) -> None:
        """Ask for the end of a run, as `Terminate` does."""
        query = "mutation($run: String!) {terminateRun(runId: $run) {__typename}}"
        answer = self.graphql(query, run=run_id)["terminateRun"]["__typename"]
        if answer != "TerminateRunSuccess":
            raise RuntimeError(answer)

    def status(self, run_id: str) -> str:
        """The status of a run."""
        query = f'{{runOrError(runId: "{run_id}") {{... on Run {{status}}}}}}'
        return str(self.graphql(query)["runOrError"].get("status", "not found"))

    def materialized(self, asset: str) -> float:
        """When an asset was made last, in seconds since the epoch; 0 where it never was."""
        query = f"""{{assetOrError(assetKey: {{path: ["{asset}"]}}) {{
            ... on Asset {{assetMaterializations(limit: 1) {{timestamp}}}}}}}}"""
        made = self.graphql(query)["assetOrError"].get("assetMaterializations")
        return float(made[0]["timestamp"]) / 1000 if made else 0.0

    def slots_taken(self, pool: str) -> int:
        """How many places of a pool are taken."""
        query = f"""{{instance {{concurrencyLimit(concurrencyKey: "{pool}") {{activeSlotCount}}}}}}"""
        return int(self.graphql(query)["instance"]["concurrencyLimit"]["activeSlotCount"])

    def latest_run(self) -> str | None:
        """Id of the run that was launched last."""
        runs = self.graphql("{runsOrError(limit: 1) {... on Runs {results {runId}}}}")["runsOrError"]["results"]
        return runs[0]["runId"] if runs else None

    def _failures(self, run_id: str) -> list[str]:
        query = f"""{{logsForRun(runId: "{run_id}") {{... on EventConnection {{events {{
            ... on ErrorEvent {{error {{message cause {{message}}}}}}}}}}}}}}"""
        events = self.graphql(query)["logsForRun"]["events"]
        return [str(event["error"]) for event in events if event.get("error")]


@contextmanager
def serving(artifacts_dir: Path, log: Path, **variables: str) -> Iterator[DagsterUi]:
    """`ivr ui` on a free port, with its code loaded; stopped in the end. `variables` go into its environment.

    Raises:
        RuntimeError: it ended, its code did not load, or it was not ready in time; with what it said.
    """
    port = _free_port()
    command = [str(IVR), "--artifacts-dir", str(artifacts_dir), "ui", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment() | variables, stdout=output, stderr=subprocess.STDOUT)
    ui = DagsterUi(process, f"http://127.0.0.1:{port}", log)
    try:
        _wait_until_loaded(ui)
        yield ui
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def environment() -> dict[str, str]:
    """This process's environment without settings of ivr and without a Dagster instance, and offline."""
    kept = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME" and not key.startswith("IVR_")}
    return kept | {"HF_HUB_OFFLINE": "1"}


def find_browser(playwright: Playwright) -> str | None:
    """A Chromium on PATH, else the one that `playwright install chromium` put there, else none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    own = playwright.chromium.executable_path
    return found or (own if Path(own).exists() else None)


def launch(playwright: Playwright, executable: str) -> Browser:
    """The browser, without a window."""
    return playwright.chromium.launch(executable_path=executable, args=BROWSER_OPTIONS)


def patient(page: Page) -> Page:
    """The page, on which everything may take as long as it does on a busy machine."""
    page.set_default_timeout(LOOK_SECONDS * 1000)
    expect.set_options(timeout=LOOK_SECONDS * 1000)
    return page


def visit(page: Page, url: str, landmark: str) -> None:
    """Open a page and wait until a text on it can be seen."""
    page.goto(url)
    expect(page.get_by_text(landmark, exact=True).first).to_be_visible()


def open_lineage(page: Page, url: str) -> None:
    """The lineage of all assets from top to bottom, groups opened."""
    visit(page, f"{url}/asset-groups", "Global asset lineage")
    drawn = graph(page).get_by_text("evaluation", exact=True).first
    for item in ("Expand all groups", "Change graph to vertical orientation"):
        expect(drawn).to_be_visible()
        # the last of the two gears is the graph's, which comes with the drawing
        page.get_by_role("button").filter(has=page.get_by_role("img", name="settings")).last.click()
        page.get_by_role("menuitem").filter(has_text=item).click()
        page.keyboard.press("Escape")
        expect(page.get_by_role("menuitem")).to_have_count(0)
    page.reload()  # the graph is fitted to the window only when it is first drawn
    expect(drawn).to_be_visible()


def graph(page: Page) -> Locator:
    """The drawing of the lineage, without the list of groups beside it."""
    return page.locator("svg foreignObject")


def metadata_row(page: Page, name: str) -> Locator:
    """A row of the metadata table on an asset's page."""
    return page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))


def open_metadata(page: Page, name: str) -> Locator:
    """The dialog with a table or picture of an asset's metadata."""
    metadata_row(page, name).get_by_text("[Show Markdown]").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    return dialog


def type_into_launchpad(page: Page, url: str, config: str) -> None:
    """The launchpad of the job up to the remapped tokenizer, with a run's configuration typed into it."""
    visit(page, f"{url}/locations/ivr_dagster/jobs/tokenizer_side", "View as Asset Graph")
    materialize = page.get_by_role("button").filter(has_text="Materialize all")
    materialize.locator("xpath=following::button[1]").click()
    page.get_by_role("menuitem").filter(has_text="launchpad").click()
    editor = page.locator(".CodeMirror").last
    expect(editor).to_contain_text("agreement_floor")  # the defaults, which come late and would take ours away
    editor.evaluate("(element, text) => element.CodeMirror.setValue(text)", config)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_loaded(ui: DagsterUi) -> None:
    query = """{workspaceOrError {... on Workspace {locationEntries {
        loadStatus locationOrLoadError {__typename ... on PythonError {message}}}}}}"""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if ui.process.poll() is not None:
            raise RuntimeError(f"ivr ui ended with {ui.process.returncode}:\n{ui.log.read_text(errors='replace')}")
        try:
            entries = ui.graphql(query)["workspaceOrError"]["locationEntries"]
        except OSError:
            entries = []
        for entry in entries:
            if entry["loadStatus"] == "LOADED":
                loaded = entry["locationOrLoadError"]
                if loaded["__typename"] == "PythonError":
                    raise RuntimeError(loaded["message"])
                return
        time.sleep(0.2)
    raise RuntimeError(f"ivr ui was not ready after {START_SECONDS} s:\n{ui.log.read_text(errors='replace')}")
