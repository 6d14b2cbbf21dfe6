"""What the callbacks log, as TensorBoard shows it in a real browser."""

import pytest
from PIL import Image

from hrsa_lightning.callbacks import SimilarityMonitor
from hrsa_lightning.callbacks.logging import log_settings, log_text
from hrsa_lightning.callbacks.tensorboard import Card
from tests.browser import CHROMIUM, Browser, tensorboard
from tests.callbacks import projects
from tests.callbacks.projects import fit, flavor
from tests.callbacks.test_similarity import arms_module

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A TensorBoard over the log of a short run of three arms."""
    folder = tmp_path_factory.mktemp("log")
    logger = flavor().loggers.TensorBoardLogger(folder)
    monitor = SimilarityMonitor(
        ["initial", "arm:x"],
        projects.probe_batches(),
        ["0", "output"],
        "arms",
        metrics=["cka", "knn_overlap_10"],
        every_n_train_steps=2,
        projector=True,
        label_key=1,
        on_error="raise",
    )
    trainer = fit([monitor], folder, logger=logger, make=arms_module)
    cards = [Card(run, "similarity/cka/output") for run in ("y_vs_x", "z_vs_x")]
    log_settings(trainer, {"optimizer.lr": 0.1, "data.weights": None}, cards)
    log_text(trainer, "summary", "cka   0.5\nknn  0.25", 6)
    with tensorboard(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield browser
    browser.close()


def open_tab(browser, address, tab, expected):
    browser.open("about:blank")
    browser.open(f"{address}#{tab}")
    return browser.wait_for(*expected)


@pytest.mark.parametrize(
    ("tab", "expected"),
    [
        ("timeseries", ["version_0/y_vs_x", "version_0/chance", "similarity/cka /output"]),
        (
            "images",
            ["visuals/similarity/curves/cka", "visuals/similarity/heatmap/y_vs_x", "step 6"],
        ),
        ("text", ["summary/text_summary", "cka 0.5 knn 0.25"]),
        ("hparams", ["optimizer.lr", "y_vs_x.similarity/cka/output"]),
        ("projector", ["3 tensors found", "similarity/x/output:00006", "Points: 48"]),
    ],
)
def test_what_was_logged_is_on_the_page_and_drawn(browser, address, tmp_path, tab, expected):
    words = open_tab(browser, address, tab, expected)
    assert "data.weights" not in words, "what is unset is no setting"
    picture = tmp_path / f"{tab}.png"
    browser.screenshot(picture, width=1280, height=1000)
    content = Image.open(picture).convert("L").crop((330, 80, 1280, 1000))
    histogram = content.histogram()
    blank = max(histogram) / sum(histogram)
    assert blank < 0.999, "something is drawn beside the background"
    assert len([count for count in histogram if count]) > 20


def test_a_picture_is_as_large_as_it_is_shown(browser, address):
    open_tab(browser, address, "images", ["visuals/similarity/curves/cka"])
    sizes = browser.wait_until(lambda: (found := browser.evaluate(_IMAGES))[7:] and found)
    assert len(sizes) == 8, "two metrics, distances of one, five comparisons"
    assert all(shown >= 0.6 * own for own, shown in sizes), "letters keep their size"


_IMAGES = """(() => {
  const found = node => [...node.childNodes].flatMap(child =>
    (child.tagName === "IMG" && child.naturalWidth > 100
      ? [[child.naturalWidth, child.getBoundingClientRect().width]] : [])
    .concat(child.shadowRoot ? found(child.shadowRoot) : [], found(child)));
  return found(document.body);
})()"""
