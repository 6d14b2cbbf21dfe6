"""`.plot()` of the metrics, with and without what is drawn with."""

import subprocess
import sys

import pytest
import torch

from hrsa_lightning.metrics import (
    KNNOverlap,
    LinearCKA,
    LinearCKAHeatmap,
    OrthogonalProcrustes,
    hrsa_metrics,
)
from tests.functional.inputs import pair

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def pyplot():
    """It knows the figures of `.plot()`, as those of torchmetrics, so that notebooks show them."""
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def fed(metric):
    metric.update(*pair(60, 6))
    return metric


def test_one_value_is_drawn_with_its_chance_level(pyplot):
    metric = fed(LinearCKA())
    figure, ax = metric.plot()
    assert pyplot.gcf() is figure
    assert figure is ax.get_figure()
    assert ax.get_title() == "LinearCKA"
    assert ax.lines[0].get_ydata().tolist() == [metric.compute().item()]
    assert "chance" in ax.texts[0].get_text()


def test_values_that_a_user_kept_are_drawn_in_their_order():
    _, ax = LinearCKA().plot([torch.tensor(0.5), 0.25, torch.tensor(0.75, requires_grad=True)])
    (line,) = ax.lines
    assert line.get_ydata().tolist() == [0.5, 0.25, 0.75]


def test_a_dict_is_a_line_per_key():
    metric = fed(OrthogonalProcrustes())
    value = metric.compute()
    figure, ax = metric.plot([value, value])
    drawn = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    assert drawn == {key: [v.item()] * 2 for key, v in value.items()}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(value)


def test_standard_errors_are_bands():
    metric = fed(KNNOverlap(k=(5,), num_jackknife_groups=6))
    value = metric.compute()
    _, ax = metric.plot()
    assert [line.get_label() for line in ax.lines][:1] == ["knn_overlap_5"]
    (band,) = ax.collections
    center, error = (value[f"knn_overlap_5{end}"].item() for end in ("", "_se"))
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((center - error, center + error))


def test_into_axes_of_the_user():
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert fed(LinearCKA()).plot(ax=left) == (figure, left)
    assert fed(OrthogonalProcrustes()).plot(ax=right) == (figure, right)
    assert len(right.get_legend().get_texts()) == 4


def test_a_map_of_layers_starts_at_the_bottom_left():
    metric = LinearCKAHeatmap()
    x, y = pair(60, 6)
    metric.update([x, y], [y])
    figure, ax = metric.plot()
    assert figure is ax.get_figure()
    assert ax.images[0].origin == "lower"
    assert ax.images[0].get_array().tolist() == metric.compute().tolist()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer of y", "layer of x")
    assert ax.texts[1].get_text() == "1.00", "the second layer of x is that of y"


def test_a_map_of_a_user_goes_into_the_axes_of_the_user():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    metric = LinearCKAHeatmap(debiased=False)
    figure, same = metric.plot({"cka_plain": torch.eye(3), "cka_plain_se": torch.zeros(3, 3)}, ax)
    assert same is ax
    assert ax.images[0].get_array().tolist() == torch.eye(3).tolist()
    assert figure.axes[1].get_ylabel() == "linear CKA, plain"


@pytest.fixture(scope="module")
def collection():
    return fed(hrsa_metrics(k=(5,), num_jackknife_groups=6, prefix="val_", postfix="_x"))


def test_a_collection_has_a_panel_per_key_with_chance_level_and_band(collection):
    panels = collection.plot()
    value, chance = collection.compute(), collection.chance()
    keys = [key for key in value if not key.endswith("_se_x")]
    assert [ax.get_title() for _, ax in panels] == keys
    assert len({id(figure) for figure, _ in panels}) == 1
    for key, (_, ax) in zip(keys, panels, strict=True):
        assert ax.lines[0].get_ydata().tolist() == [value[key].item()]
        assert len(ax.collections) == 1, "a band"
        assert any("chance" in text.get_text() for text in ax.texts) == (key in chance)


def test_a_collection_draws_what_a_user_kept(collection):
    from matplotlib.figure import Figure

    kept = [{"val_cka_x": 0.5, "val_knn_x": 0.25}, {"val_cka_x": 0.4, "val_knn_x": 0.125}]
    figure = Figure()
    axes = figure.subplots(1, 2)
    assert collection.plot(kept, ax=axes) == [(figure, axes[0]), (figure, axes[1])]
    assert axes[1].lines[0].get_ydata().tolist() == [0.25, 0.125]
    _, together = collection.plot(kept, together=True)
    assert [line.get_label() for line in together.lines] == ["cka", "knn"]
    with pytest.raises(ValueError, match="as many axes as keys, 2, got 1"):
        collection.plot(kept, ax=axes[:1])


def test_pictures_load_nothing_heavy():
    program = (
        "import sys; import hrsa_lightning.plots; "
        "heavy = {'torch', 'lightning', 'transformers', 'matplotlib.pyplot'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
