"""Take the screenshots in docs/images: a browser opens a finished artifacts folder in the Dagster UI.

    ivr --artifacts-dir artifacts run --sample
    python docs/take_screenshots.py --artifacts artifacts --output docs/images

Needs Chromium (`make browser`). It uses the helpers of the browser tests, so screenshots and tests stay in step.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "ivr_dagster_tests" / "ui"))
from browsing import (
    find_browser,
    graph,
    launch,
    metadata_row,
    open_lineage,
    open_metadata,
    patient,
    serving,
    type_into_launchpad,
    visit,
)


def lineage(page: Page, url: str) -> None:
    """All assets in their groups, fitted to the window."""
    page.set_viewport_size({"width": 1200, "height": 1400})
    open_lineage(page, url)
    panels = page.get_by_role("button").filter(has=page.get_by_role("img", name="panel_show_right"))
    for left in (1, 0):
        panels.first.click()
        expect(panels).to_have_count(left)
    page.wait_for_timeout(15_000)  # the colors of the assets load in batches
    page.mouse.dblclick(90, 700)  # on an empty spot: fits the graph to the window
    graph(page).get_by_text("evaluation_report").element_handle().wait_for_element_state("stable")


def distilled_tokenizer(page: Page, url: str) -> None:
    """An asset's page: status, description, figures, lineage."""
    page.set_viewport_size({"width": 1600, "height": 1180})
    visit(page, f"{url}/assets/distilled_tokenizer", "Description")
    expect(metadata_row(page, "path")).to_be_visible()


def checks(page: Page, url: str) -> None:
    """The checks of an asset, one of them with its figures."""
    visit(page, f"{url}/assets/distilled_tokenizer?view=checks", "About")
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(3)
    expect(page.locator("canvas")).not_to_have_count(0)  # the charts of its figures over time


def evaluation_report(page: Page, url: str) -> None:
    """The report's page with a plot opened."""
    _open_plot(page, url, "evaluation_report", "bits per byte by variant")


def row_norms(page: Page, url: str) -> None:
    """A plot of the embeddings: norms of rows before and after."""
    _open_plot(page, url, "fitted_embeddings", "row norms")


def new_tokens(page: Page, url: str) -> None:
    """A table: the first new tokens with their text."""
    visit(page, f"{url}/assets/replacement_candidates", "Description")
    open_metadata(page, "first new tokens")
    expect(page.get_by_role("dialog").get_by_text("sacrificed_text")).to_be_visible()


def _open_plot(page: Page, url: str, asset: str, picture: str) -> None:
    """Open an asset's page and one of its plots."""
    visit(page, f"{url}/assets/{asset}", "Description")
    dialog = open_metadata(page, picture)
    expect(dialog.get_by_role("img").first).to_be_visible()


def launchpad(page: Page, url: str) -> None:
    """A setting for one run, with the launchpad's help text."""
    type_into_launchpad(page, url, "resources:\n  settings:\n    config:\n      merge_scope: across\n")
    editor = page.locator(".CodeMirror").last
    editor.evaluate("(element) => {element.CodeMirror.focus(); element.CodeMirror.setCursor(3, 22)}")
    page.get_by_text("merge_scope", exact=True).last.scroll_into_view_if_needed()


def automation(page: Page, url: str) -> None:
    """Sensors and the schedule, each with its switch."""
    visit(page, f"{url}/automation", "rebuild_tokenizer_side")
    expect(page.get_by_text("nightly").first).to_be_visible()


SCREENSHOTS: tuple[Callable[[Page, str], None], ...] = (
    lineage,
    distilled_tokenizer,
    checks,
    new_tokens,
    row_norms,
    evaluation_report,
    launchpad,
    automation,
)


def main() -> None:
    """Take all screenshots.

    Raises:
        SystemExit: no browser was found.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, required=True, help="folder of a finished `ivr run`")
    parser.add_argument("--output", type=Path, required=True, help="folder for the screenshots")
    names = [take.__name__ for take in SCREENSHOTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="screenshots to take (default: all)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        executable = find_browser(playwright)
        if executable is None:
            raise SystemExit("no browser found: run `make browser`, or put chromium on PATH")
        with serving(options.artifacts, Path(scratch) / "ui.log") as ui:
            browser = launch(playwright, executable)
            for take in (each for each in SCREENSHOTS if each.__name__ in options.only):
                # 1.4 pixels per point keep small names sharp
                context = browser.new_context(viewport={"width": 1600, "height": 1000}, device_scale_factor=1.4)
                page = patient(context.new_page())
                take(page, ui.url)
                page.wait_for_load_state("networkidle")
                page.mouse.move(0, 0)
                file = options.output / f"{take.__name__}.png"
                page.screenshot(path=file, animations="disabled")
                _shrink(file)
                context.close()
                print(f"{file}: {file.stat().st_size / 1000:.0f} KB")  # noqa: T201
            browser.close()


def _shrink(file: Path) -> None:
    """Reduce the image to 256 colors, as many as the UI uses: a third of the bytes."""
    with Image.open(file) as picture:
        reduced = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    reduced.save(file, optimize=True)


if __name__ == "__main__":
    main()
