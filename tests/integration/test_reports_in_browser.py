"""The report and the comparison in Chromium, as wide as a phone and as a desktop."""

import pytest

import main
from tests.helpers.browser import Browser, Keys
from tests.helpers.sessions import make

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(digits_session, tmp_path_factory):
    """Addresses: a report of a run with a few digits, and a comparison."""
    base = tmp_path_factory.mktemp("pages")
    wordy = make(base / ("a-long-name-" * 8), rounds=9, epochs=3)
    sessions = [str(digits_session), str(wordy)]
    assert main.main(["--compare", *sessions, "--compare-html", str(base / "compare.html")]) == 0
    return {"report": (digits_session / "report.html").as_uri(), "comparison": (base / "compare.html").as_uri()}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1280, False), (1280, True)])
def test_pages_fit_the_window_without_console_errors(pages, browser, name, width, dark):
    browser.open_as(pages[name], width, 740, dark)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []
    assert browser.requests() == [pages[name]]
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    images = "[...document.images].filter(each => !each.hidden)"
    assert browser.evaluate(f"{images}.every(each => each.complete && each.naturalWidth > 0)")
    figures = "[...document.querySelectorAll('svg.figure')]"
    assert browser.evaluate(f"{figures}.length") > 1
    assert browser.evaluate(f"{figures}.every(each => each.getBoundingClientRect().height > 100)")
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('svg.figure text')].map(e => e.getBoundingClientRect().height))"
    )
    assert smallest > 8  # CSS pixels: legible


def test_figures_follow_the_colour_scheme(pages, browser):
    seen = []
    for dark in (False, True):
        browser.open_as(pages["report"], 1280, 900, dark)
        seen.append(browser.evaluate(
            "[getComputedStyle(document.querySelector('svg.figure text')).fill,"
            " getComputedStyle(document.querySelector('#map-box [style*=\"--series\"]')).fill]"
        ))  # fmt: skip
    assert seen[0][0] == "rgb(26, 29, 33)"
    assert seen[1][0] == "rgb(230, 233, 236)"
    assert seen[0][1] != seen[1][1]


def test_the_map_shows_images_under_the_pointer_a_finger_and_the_keys(pages, browser):
    tip, words = (
        "!document.querySelector('#map-box .tip').hidden",
        "document.querySelector('#map-box .words').textContent",
    )
    browser.open_as(pages["report"], 1280, 900)
    assert not browser.evaluate(tip)
    place = (
        "(() => {const box = document.getElementById('map-box'); box.scrollIntoView({block: 'center', behavior:"
        " 'instant'}); const r = box.getBoundingClientRect(); const p = JSON.parse(document.getElementById("
        "'map-points').textContent)[7]; return [r.left + p[0] * r.width, r.top + p[1] * r.height, p[2]]})()"
    )
    x, y, expected = browser.evaluate(place)
    browser.point(x, y)
    assert browser.evaluate(tip)
    assert browser.evaluate(words) == expected
    assert browser.evaluate("getComputedStyle(document.querySelector('#map-box .thumb')).backgroundImage").startswith(
        'url("data:image/png;base64,'
    )
    browser.open_as(pages["report"], 360, 740)
    x, y, expected = browser.evaluate(place)
    browser.point(x, y, tap=True)
    assert browser.evaluate(tip)
    assert browser.evaluate(words) == expected
    assert browser.evaluate("document.documentElement.scrollWidth") == 360
    browser.open_as(pages["report"], 1280, 900)
    browser.evaluate("document.getElementById('map-box').focus()")
    first = browser.evaluate(words)
    said = {first}
    for key in (Keys.LEFT, Keys.UP, Keys.RIGHT, Keys.DOWN, Keys.HOME, Keys.END):
        browser.press(key)
        assert browser.evaluate("document.getElementById('map-spoken').textContent") == browser.evaluate(words)
        said.add(browser.evaluate(words))
    assert len(said) > 3
    browser.press(Keys.ESCAPE)
    assert not browser.evaluate(tip)


def test_every_focused_element_is_visible(pages, browser):
    """From the skip link to the end: focus moves forward, shows an outline, and leaves the map again."""
    browser.open_as(pages["report"], 1280, 900)
    stops = []
    for _ in range(40):
        browser.press(Keys.TAB)
        stop = browser.evaluate(
            "(() => {const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();"
            " return e === document.body ? null : [e.tagName, e.getAttribute('href') || e.id ||"
            " e.getAttribute('aria-label') || e.textContent, s.outlineStyle, parseFloat(s.outlineWidth),"
            " r.right > 0 && r.bottom > 0 && r.width > 0]})()"
        )
        if stop is None:
            break
        stops.append(stop)
    names = [stop[1] for stop in stops]
    assert names[0] == "#content"
    assert "map-box" in names
    assert len(names) == len(set(names))
    assert [name for name in names if name.startswith("#")][1:] == [
        "#run", "#results", "#quality", "#anchors", "#map", "#clusters", "#certainty", "#attention",
    ]  # fmt: skip
    assert all(stop[2] == "solid" and stop[3] >= 2 and stop[4] for stop in stops), stops
    browser.open_as(pages["report"], 1280, 900)
    browser.press(Keys.TAB)
    browser.press(Keys.ENTER)
    assert browser.evaluate("document.activeElement.id") == "content"
