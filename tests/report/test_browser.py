"""The page in a real browser: silent, alone, and as wide as the screen."""

import pytest
from PIL import Image

from hrsa_lightning.report import write_report
from tests.browser import CHROMIUM, Browser
from tests.report.runs import write_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def test_the_page_asks_for_nothing_and_fits_the_screen(browser, tmp_path):
    run = write_run(tmp_path / "runs" / "a", details=True)
    page = write_report([run], tmp_path / "out")
    browser.open(page.as_uri())
    colors = {}
    for width, dark in ((1280, False), (1280, True), (400, False)):
        picture = tmp_path / f"{width}_{dark}.png"
        needed, height = browser.screenshot(picture, width=width, dark=dark)
        assert needed <= width, "the page itself must not scroll sideways"
        image = Image.open(picture).convert("L")
        assert image.size == (width, height)
        colors[width, dark] = image.getpixel((2, 2))
    assert colors[1280, False] > 240, "light page"
    assert colors[1280, True] < 40, "dark page"
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.evaluate("document.querySelectorAll('.gallery svg').length") > 10
    assert browser.evaluate(
        "[...document.querySelectorAll('[id]')].length"
        " === new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
    ), "ids are unique"
    browser.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true }), 0")
    assert browser.evaluate(
        "[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)"
    ), "wide tables scroll within themselves at 400 pixels"
    browser.evaluate("document.querySelectorAll('details').forEach(e => { e.open = false }), 0")
    shown = "[...document.querySelectorAll('details table')].map(e => e.checkVisibility())"
    assert not any(browser.evaluate(shown)), "tables are folded"
    first = "[...document.querySelectorAll('.gallery svg')].map(e => e.getBoundingClientRect())"
    browser.screenshot(tmp_path / "first.png", width=1280, height=800)
    assert all(
        box["top"] < box["bottom"] < 800
        for box in browser.evaluate(f"{first}.slice(0, 3).map(b => b.toJSON())")
    ), "the answer and its picture are on the first screen"
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert all(browser.evaluate(shown)), "tables lie open in print"
