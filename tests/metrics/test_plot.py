"""`.plot()` of the metrics, with and without what is drawn with."""

import subprocess
import sys

import pytest
import torch

from hrsa_lightning.metrics import KNNOverlap, LinearCKA, OrthogonalProcrustes
from tests.functional.inputs import pair

pytest.importorskip("matplotlib")


def fed(metric):
    metric.update(*pair(60, 6))
    return metric


def test_one_value_is_drawn_with_its_floor():
    metric = fed(LinearCKA())
    figure, ax = metric.plot()
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


def test_pictures_load_nothing_heavy():
    program = (
        "import sys; import hrsa_lightning.plots; "
        "heavy = {'torch', 'lightning', 'transformers', 'matplotlib.pyplot'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
