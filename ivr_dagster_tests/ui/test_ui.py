"""What a person does in the Dagster UI, done by a real browser on the real web server and daemon."""

import ipaddress
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from browsing import DagsterUi, graph, metadata_row, open_lineage, open_metadata, patient, type_into_launchpad, visit
from playwright.sync_api import Browser, Page, expect

from ivr_dagster.core.tokenizer.bpe import read_bpe
from ivr_dagster.orchestration.dead_runs import PROCESS_TAG
from ivr_dagster.pipeline import STAGES, stage_assets
from ivr_dagster.settings import Settings
from ivr_dagster.settings.presets import PRESETS
from ivr_dagster_tests.small_pipeline import STAGE_ASSETS, TUNING

pytestmark = pytest.mark.browser

GROUPS = ("corpus", "tokens", "tokenizer", "vocabulary", "embedding", "training", "evaluation")
SOURCES = ("raw_corpus", "base_model")
CHECKS = ("agreement_floor", "ids_kept", "round_trip")
ASSET = "distilled_tokenizer"
SERVERS = {"dagster", "dagster-webserver", "dagster-daemon"}


@pytest.fixture(scope="module")
def launched_run(browser: Browser, ui: DagsterUi) -> str:
    """The run that a click on `Materialize all` launches, on the page of the job up to the remapped tokenizer."""
    before = ui.latest_run()
    page = patient(browser.new_page())
    visit(page, f"{ui.url}/assets/{ASSET}", "Description")
    expect(metadata_row(page, "agreement")).to_have_count(0)
    visit(page, f"{ui.url}/locations/ivr_dagster/jobs/tokenizer_side", "View as Asset Graph")
    page.get_by_role("button").filter(has_text="Materialize all").click()
    expect(page.get_by_text("Launched run")).to_be_visible()
    page.close()
    run_id = ui.latest_run()
    assert run_id is not None and run_id != before
    return run_id


def test_the_servers_listen_on_this_machine_only(ui: DagsterUi) -> None:
    family = [psutil.Process(ui.process.pid), *psutil.Process(ui.process.pid).children(recursive=True)]
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ("127.0.0.1", int(ui.url.rpartition(":")[2])) in listening
    assert all(ipaddress.ip_address(address).is_loopback for address, _ in listening), listening


@pytest.mark.parametrize(
    ("path", "landmark"),
    [("/", "Timeline"), ("/asset-groups", "Global asset lineage"), (f"/assets/{ASSET}", "Description")],
)
def test_no_dialog_covers_the_page(page: Page, ui: DagsterUi, path: str, landmark: str) -> None:
    visit(page, ui.url + path, landmark)
    page.wait_for_load_state("networkidle")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("link", name="Runs").first.click()  # fails where something lies over it
    page.wait_for_url("**/runs**")


def test_the_lineage_shows_every_group_and_every_asset(page: Page, ui: DagsterUi) -> None:
    page.set_viewport_size({"width": 4800, "height": 4800})  # in less, Dagster shortens names
    open_lineage(page, ui.url)
    settings = Settings.of(**PRESETS["sample"])
    wanted = {"vanilla": settings.training.vanilla, "vanilla_compute": settings.training.vanilla_compute}
    assets = [*SOURCES, *TUNING, *(asset for asset in stage_assets(STAGES, Settings.of(**wanted)))]
    for name in [*GROUPS, *assets]:
        expect(graph(page).get_by_text(name, exact=True).first).to_be_visible()


def test_a_click_on_materialize_all_makes_every_tokenizer_asset(ui: DagsterUi, launched_run: str) -> None:
    assert ui.wait_for_run(launched_run) == "SUCCESS"
    assert all(ui.materialized(asset) for stage in list(STAGES)[:5] for asset in STAGE_ASSETS[stage])


def test_the_page_of_an_asset_has_description_and_figures(
    page: Page, ui: DagsterUi, launched_run: str, gpt2_size: int
) -> None:
    ui.wait_for_run(launched_run)
    visit(page, f"{ui.url}/assets/{ASSET}", "Description")
    expect(page.get_by_text("A Unigram tokenizer that reproduces the base tokenizer's ids")).to_be_visible()
    expect(metadata_row(page, "vocabulary_size")).to_contain_text(str(gpt2_size))
    agreement = float(metadata_row(page, "agreement").get_by_role("cell").last.inner_text())
    assert 0.99 <= agreement <= 1


def test_a_table_of_metadata_is_shown(page: Page, ui: DagsterUi, launched_run: str) -> None:
    ui.wait_for_run(launched_run)
    visit(page, f"{ui.url}/assets/replacement_candidates", "Description")
    dialog = open_metadata(page, "first new tokens")
    for column in ("new_text", "saving", "frequency", "sacrificed_text"):
        expect(dialog.get_by_role("columnheader", name=column)).to_be_visible()
    assert dialog.get_by_role("row").count() == 31


def test_a_plot_of_metadata_is_shown(page: Page, ui: DagsterUi, launched_run: str) -> None:
    ui.wait_for_run(launched_run)
    visit(page, f"{ui.url}/assets/replacement_candidates", "Description")
    dialog = open_metadata(page, "saving by number of new tokens")
    picture = dialog.get_by_role("img", name="saving by number of new tokens")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 300


def test_the_checks_of_an_asset_are_shown_as_passed(page: Page, ui: DagsterUi, launched_run: str) -> None:
    ui.wait_for_run(launched_run)
    visit(page, f"{ui.url}/assets/{ASSET}", "Description")
    page.get_by_role("tab", name="Checks").click()
    expect(page.get_by_text(f"Checks ({len(CHECKS)})")).to_be_visible()
    for check in CHECKS:
        expect(page.get_by_text(check, exact=True).first).to_be_visible()
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(len(CHECKS))


def test_the_launchpad_refuses_a_setting_that_there_is_not_and_names_it(page: Page, ui: DagsterUi) -> None:
    type_into_launchpad(page, ui.url, "resources: {settings: {config: {max_candidate: 7}}}")
    expect(page.get_by_text("max_candidate").last).to_be_visible()
    expect(page.get_by_text("Received unexpected config entry").first).to_be_visible()
    expect(page.get_by_role("button").filter(has_text="Materialize").last).to_be_disabled()


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("max_candidates: -4", "launchpad: max_candidates is -4: input should be greater than or equal to 0"),
        ("vanilla: false", "launchpad: vanilla: cannot change for a single run"),
    ],
)
def test_a_bad_setting_is_refused_with_our_message_and_nothing_runs(
    page: Page, ui: DagsterUi, typed: str, told: str
) -> None:
    type_into_launchpad(page, ui.url, f"resources: {{settings: {{config: {{{typed}}}}}}}")
    before = ui.latest_run()
    page.get_by_role("button").filter(has_text="Materialize").last.click()
    expect(page.get_by_role("dialog").get_by_text(told).first).to_be_visible()
    assert ui.latest_run() == before


def test_a_run_of_the_command_line_is_shown_and_executed_again(page: Page, ui: DagsterUi) -> None:
    """The run that built the token statistics before the servers were started."""
    query = "{runsOrError {... on Runs {results {runId tags {key} parentRunId repositoryOrigin {id}}}}}"
    runs = ui.graphql(query)["runsOrError"]["results"]
    (run,) = [run for run in runs if PROCESS_TAG in {tag["key"] for tag in run["tags"]} and not run["parentRunId"]]
    assert run["repositoryOrigin"] is not None  # so it is in the timeline
    page.goto(f"{ui.url}/runs/{run['runId']}")
    page.get_by_role("button").filter(has_text="Re-execute all").click()
    expect(page.get_by_text("Launched run").or_(page.get_by_text("Success")).first).to_be_visible()
    again = ui.latest_run()
    assert again is not None and again != run["runId"]
    assert ui.wait_for_run(again) == "SUCCESS"


def test_sigterm_ends_all_servers_within_ten_seconds(page: Page, ui: DagsterUi) -> None:
    """The last test, for it ends what the others use; a page is open, which holds a connection."""
    visit(page, f"{ui.url}/asset-groups", "Global asset lineage")
    servers = psutil.Process(ui.process.pid).children()
    assert {name for server in servers for name in _server_names(server)} == SERVERS
    started = time.monotonic()
    os.kill(ui.process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(servers, timeout=10)
    seconds = time.monotonic() - started
    assert not alive, f"still there after {seconds:.1f} s: {alive}"
    assert ui.process.wait(timeout=5) == 0


def _server_names(process: psutil.Process) -> set[str]:
    return {Path(part).name for part in process.cmdline()} & SERVERS


@pytest.fixture(scope="session")
def gpt2_size() -> int:
    """Ids in the packaged model's vocabulary."""
    from tokenizers import Tokenizer

    from ivr_dagster.sample import SAMPLE_MODEL

    return read_bpe(Tokenizer.from_file(str(SAMPLE_MODEL / "tokenizer.json"))).size
