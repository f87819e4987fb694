"""TensorBoard on a short run, read back from its files, and looked at with a real browser."""

import io
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from lib.session import checkpoint
from tests.helpers.browser import INSTALLED, MISSING, Browser, free_port, wait_for

TINY = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--limit-train", "60", "--limit-test", "30"]
TINY += ["--batch-size", "32", "--max-round", "3", "--max-epoch", "2", "--gpus", "cpu"]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    base = tmp_path_factory.mktemp("board")
    assert main.main([*TINY, "--sess-dir", str(base), "--session", "x", "--tfb-projector", "25"]) == 0
    return base / "x"


@pytest.fixture(scope="module")
def events(session):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(session / "tfboard" / "run"), {"images": 0, "histograms": 0}).Reload()


def test_the_overview_is_in_the_whole_run_alone(session, events):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overview = [tag for tag in events.Tags()["scalars"] if tag.startswith("1_Overview/")]
    names = ("1_Loss", "2_kNN_accuracy", "3_Nearest_neighbour_kept", "4_Cosine_to_nearest", "5_Entropy")
    names += ("6_Entropy_of_anchors", "7_Consistency", "8_Clusters")
    assert sorted(overview) == [f"1_Overview/{name}" for name in names]
    assert [e.value for e in events.Scalars("1_Overview/1_Loss")] == [e.value for e in events.Scalars("Train/Loss")]
    one_round = EventAccumulator(str(session / "tfboard" / "round-1")).Reload()
    assert not any(tag.startswith("1_") for tag in one_round.Tags()["scalars"])


def test_histograms_of_every_epoch(events):
    assert [e.step for e in events.Histograms("3_Images/Entropy")] == [1, 2, 3, 4, 5, 6]
    distances = events.Histograms("3_Images/Distance_to_nearest")[-1].histogram_value
    assert distances.num == 60
    assert -1e-5 <= distances.min <= distances.max <= 2


def test_three_pictures_of_anchors_a_round(events):
    for number, part in enumerate(("lowest", "middle", "highest"), 1):
        pictures = events.Images(f"2_Anchors/{number}_{part}_entropy")
        assert [e.step for e in pictures] == [2, 4]
        picture = np.asarray(Image.open(io.BytesIO(pictures[-1].encoded_image_string)))
        colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
        assert colours & {(0, 140, 60), (205, 30, 40)}  # digits have labels


def test_the_projector_has_the_bank_of_every_round(session):
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    run = session / "tfboard" / "run"
    config = text_format.Parse((run / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [e.tensor_name for e in config.embeddings] == [f"00{n}-after-round-{3 - n}" for n in (1, 2, 3)]
    memory = checkpoint.load(session / "checkpoint" / "0002-00030.ckpt")["npc"]["memory"].numpy()
    shown = np.arange(25) * 60 // 25
    assert np.loadtxt(run / config.embeddings[0].tensor_path) == pytest.approx(memory[shown], rel=1e-3, abs=1e-5)
    lines = (run / config.embeddings[0].metadata_path).read_text().splitlines()
    assert lines[0] == "image\tentropy\tcluster\tlabel"
    assert [line.split("\t")[0] for line in lines[1:]] == [str(row) for row in shown]
    sheet = Image.open(run / config.embeddings[0].sprite.image_path)
    assert sheet.size == (5 * 48, 5 * 48)


def test_pictures_can_be_switched_off(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    off = ["--tfb-anchors", "0", "--tfb-projector", "0", "--max-round", "2", "--max-epoch", "1"]
    assert main.main([*TINY, *off, "--sess-dir", str(tmp_path), "--session", "x"]) == 0
    run = tmp_path / "x" / "tfboard" / "run"
    assert EventAccumulator(str(run)).Reload().Tags()["images"] == []
    assert not list(run.glob("projector*"))


@pytest.fixture(scope="module")
def page(session, tmp_path_factory):
    """A browser, and the address of TensorBoard on the session."""
    if not INSTALLED:
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("browser")
    address = f"http://localhost:{free_port()}"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(session / "tfboard"), "--load_fast=false"]
    with open(folder / "tensorboard.log", "w") as log:
        server = subprocess.Popen([*command, "--port", address.rsplit(":", 1)[1]], stdout=log, stderr=log)

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
    browser.open("about:blank")
    browser.open(f"{address}/#{pane}")
    return browser


def test_the_first_page_begins_with_the_overview(page):
    browser = opened(page, "")
    cards = wait_for(lambda: browser.texts("scalar-card"), "cards")
    wait_for(lambda: "run" in browser.texts("scalar-card")[0].split(), "the first card's figures")
    assert "".join(cards[0].split()).startswith("1_Overview/1_Loss")


CURVES = "return found.map((element) => (element.getAttribute('d') || '').split('L').length)"


@pytest.mark.parametrize("pane", ["scalars", "custom_scalars"])
def test_charts_have_curves(page, pane):
    browser = opened(page, pane)

    def drawn():
        points = browser.run(browser.FIND + CURVES, "path.line")
        return [count for count in points if count > 1]

    wait_for(lambda: len(drawn()) >= 6, "curves of two points or more")
    if pane == "custom_scalars":
        assert browser.count("vz-line-chart2") == 10
        heading = "return found.some((element) => element.textContent.trim() === 'Does it learn?')"
        assert browser.run(browser.FIND + heading, "*")


def test_pictures_are_shown(page):
    browser = opened(page, "images")
    widths = "return found.filter((image) => image.complete && image.naturalWidth > 250).length"
    wait_for(lambda: browser.run(browser.FIND + widths, "img") == 3, "three pictures")


def test_histograms_are_shown(page):
    browser = opened(page, "histograms")
    wait_for(lambda: sum(n > 3 for n in browser.run(browser.FIND + CURVES, "path.outline")) >= 12, "histograms")


def test_hparams_show_options_and_results(page):
    browser = opened(page, "hparams")

    def cells():
        return [text.strip() for text in browser.texts("vaadin-grid-cell-content")]

    wait_for(lambda: "run" in cells(), "the row of the run")
    found = cells()
    assert {"base_lr", "batch_size", "Evaluate/Rank-1", "Train/Loss"} <= set(found)
    assert {"0.0010000", "32.000"} <= set(found)


def test_the_projector_shows_the_newest_features_with_thumbnails(page):
    browser = opened(page, "projector")
    wait_for(lambda: browser.texts(".numDataPoints") == ["25"], "25 points")
    assert "001-after-round-2" in " ".join(browser.texts("paper-dropdown-menu, vz-projector-data-panel"))
    assert browser.count("canvas") > 0
    asked_for = "return found.flatMap((frame) => frame.contentWindow.performance.getEntriesByType('resource'))"
    asked_for += ".map((entry) => entry.name)"
    wait_for(
        lambda: any("sprite_image" in name for name in browser.run(browser.FIND + asked_for, "iframe")),
        "the sheet of thumbnails",
    )
