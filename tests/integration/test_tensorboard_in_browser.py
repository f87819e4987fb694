"""TensorBoard on a short run, in Chromium."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.browser import Browser, wait_for
from tests.helpers.processes import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(digits_session, tmp_path_factory):
    """A browser, and the address of TensorBoard on the session."""
    folder = tmp_path_factory.mktemp("browser")
    address = f"http://localhost:{free_port()}"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(digits_session / "tfboard"),
               "--load_fast=false", "--port", address.rsplit(":", 1)[1]]  # fmt: skip
    with open(folder / "tensorboard.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)

    def loaded():
        try:
            return {"round-2", "run"} <= set(json.load(urllib.request.urlopen(f"{address}/data/runs")))
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, Path(log.name).read_text()
            return False

    try:
        wait_for(loaded, "TensorBoard to read the run")
        with Browser(folder) as browser:
            yield browser, address
    finally:
        server.terminate()
        server.wait(10)


def opened(page, pane):
    browser, address = page
    browser.open(f"{address}/#{pane}")
    return browser


def test_the_first_page_begins_with_the_overview(page):
    browser = opened(page, "")
    cards = wait_for(lambda: browser.texts("scalar-card"), "cards")
    wait_for(lambda: "run" in browser.texts("scalar-card")[0].split(), "the first card's figures")
    assert "".join(cards[0].split()).startswith("1_Overview/1_Loss")


CURVES = "found.map((element) => (element.getAttribute('d') || '').split('L').length)"


@pytest.mark.parametrize("pane", ["scalars", "custom_scalars"])
def test_charts_have_curves(page, pane):
    browser = opened(page, pane)

    def drawn():
        points = browser.found("path.line", CURVES)
        return [count for count in points if count > 1]

    wait_for(lambda: len(drawn()) >= 6, "curves of two points or more")
    if pane == "custom_scalars":
        assert browser.found("vz-line-chart2", "found.length") == 10
        assert browser.found("*", "found.some((element) => element.textContent.trim() === 'Training')")


def test_pictures_are_shown(page):
    browser = opened(page, "images")
    wide = "found.filter((image) => image.complete && image.naturalWidth > 250).length"
    wait_for(lambda: browser.found("img", wide) == 3, "three pictures")


def test_histograms_are_shown(page):
    browser = opened(page, "histograms")
    wait_for(lambda: sum(n > 3 for n in browser.found("path.outline", CURVES)) >= 12, "histograms")


def test_hparams_show_options_and_results(page):
    browser = opened(page, "hparams")

    def cells():
        return [text.strip() for text in browser.texts("vaadin-grid-cell-content")]

    wait_for(lambda: "run" in cells(), "the row of the run")
    found = cells()
    # the grid makes the columns that fit its window, in the order of the alphabet
    assert {"bank_init", "base_lr", "Evaluate/Rank-1", "Train/Loss"} <= set(found)
    assert {"random", "0.0010000"} <= set(found)


def test_the_projector_shows_the_newest_features_with_thumbnails(page):
    browser = opened(page, "projector")
    wait_for(lambda: browser.texts(".numDataPoints") == ["25"], "25 points")
    assert "001-after-round-2" in " ".join(browser.texts("paper-dropdown-menu, vz-projector-data-panel"))
    assert browser.found("canvas", "found.length") > 0
    wait_for(lambda: any("sprite_image" in address for address in browser.requests()), "the sheet of thumbnails")
