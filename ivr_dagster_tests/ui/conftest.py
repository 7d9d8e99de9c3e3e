"""A corpus analyzed by the command line, `ivr ui` on its artifacts, and a page of a real browser."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browsing import IVR, DagsterUi, environment, find_browser, launch, patient, serving
from playwright.sync_api import Browser, Page, sync_playwright

NO_BROWSER = "no browser: `make browser`, or put chromium on PATH"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; where there is none, tests are skipped, on CI they fail."""
    with sync_playwright() as playwright:
        executable = find_browser(playwright)
        if executable is None:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NO_BROWSER)
        browser = launch(playwright, executable)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def ui(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterUi]:
    """`ivr ui` on the sample, of which corpus and token statistics are there."""
    artifacts = tmp_path_factory.mktemp("ui") / "artifacts"
    artifacts.mkdir()
    (artifacts / "ivr.yaml").write_text("rebuild: nothing\n")  # tests click, nothing else is to run
    subprocess.run(
        [IVR, "--artifacts-dir", artifacts, "run", "--sample", "--until", "analyze"],
        env=environment(),
        check=True,
        timeout=200,
    )
    with serving(artifacts, artifacts.with_name("ui.log")) as ui:
        yield ui


@pytest.fixture
def page(browser: Browser, ui: DagsterUi, tmp_path: Path) -> Iterator[Page]:
    """An empty page of a browser that knows nothing; fails if something is asked of another host."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    asked: set[str] = set()
    context.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    yield patient(context.new_page())
    context.close()
    assert asked - {""} <= {urlsplit(ui.url).netloc}
