"""TensorBoard on a run of the train command: which line is which arm, and what chance is."""

import json
import time
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from tests.browser import CHROMIUM, Browser, tensorboard

_SCREEN = (1400, 900)
_CARDS = (300, 260, 1130, 900)
"""Where the cards of the first screen are, between the runs and the settings."""


ARMS = ("base", "rlvr", "sft", "base_seed2")
PAIRS = tuple(f"{arm}_vs_base" for arm in ARMS[1:])


@pytest.fixture(scope="module")
def run(quickstart):
    (folder,) = quickstart.glob("runs/quickstart/*")
    return folder


@pytest.fixture(scope="module")
def address(run):
    with tensorboard(run.parent) as found:
        yield found


@pytest.fixture(scope="module")
def tags(address, run):
    """Run to tags, as TensorBoard has read them; the run's own name is left out."""

    def read(path):
        with urlopen(f"{address}/{path}") as answer:
            return json.load(answer)

    path = "experiment/defaultExperimentId/data/plugin/timeseries/tags"
    for _ in range(100):
        found = read(path)["scalars"]["runTagInfo"]
        if len(found) == len(("", "chance", *ARMS, *PAIRS)):
            break
        time.sleep(0.2)  # it reads the runs one by one
    prefix = run.name
    return {name.removeprefix(prefix).removeprefix("/"): has for name, has in found.items()}


def test_runs_are_arms_and_comparisons_beside_chance(tags):
    assert tags.keys() == {"", "chance", *ARMS, *PAIRS}

    def runs_with(tag):
        return {name for name, has in tags.items() if tag in has}

    for metric in ("cka", "knn_overlap_10"):
        assert runs_with(f"similarity/{metric}/output") == {*PAIRS, "chance"}
        assert runs_with(f"similarity_initial/{metric}/output") == {*ARMS, "chance"}
        assert runs_with(f"similarity_layers/{metric}/layer_0") == {*PAIRS, "chance"}
    assert runs_with("task/retrieval/mrr@10") == {*ARMS, "chance"}
    assert runs_with("train/loss") == set(ARMS)
    assert {tag.split("/")[0] for tag in tags[""]} == {"similarity", "task", "train"}


def test_the_groups_that_are_open_are_a_row_of_headlines(tags):
    names = {tag for found in tags.values() for tag in found}
    groups = sorted({tag.split("/")[0] for tag in names})
    assert groups[:2] == ["similarity", "similarity_initial"]
    for group in groups[:2]:
        assert 4 <= len([tag for tag in names if tag.startswith(f"{group}/")]) <= 12


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
def test_the_first_screen_tells_arms_and_chance_apart(address, tags, run, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        width, height = _SCREEN
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.open(address)
        expected = [f"{run.name}/{name}" for name in tags if name]
        browser.wait_for("similarity/cka /output", *expected)
        picture = tmp_path / "time_series.png"
        browser.wait_until(lambda: _colors(browser, picture) >= 2)
    finally:
        browser.close()


def _colors(browser, picture):
    """How many colors lines have on the cards of the first screen, not counting grays."""
    browser.screenshot(picture, width=_SCREEN[0], height=_SCREEN[1])
    pixels = np.asarray(Image.open(picture).convert("RGB").crop(_CARDS)).reshape(-1, 3)
    vivid = pixels[np.ptp(pixels.astype(int), axis=1) > 100]
    counts = np.unique(vivid, axis=0, return_counts=True)[1]
    return int((counts > 100).sum())
