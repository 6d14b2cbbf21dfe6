"""What surrounds a metric in projects: inference mode and the wrappers of torchmetrics."""

import pytest
import torch
from torchmetrics.wrappers import MetricTracker, Running

from hrsa_lightning.metrics import (
    KNNOverlap,
    LinearCKA,
    LinearCKAHeatmap,
    OrthogonalProcrustes,
    PairMetric,
    hrsa_metrics,
)
from tests.functional.inputs import pair


def test_updates_in_and_out_of_inference_mode() -> None:
    x, y = pair()
    metrics, expected = hrsa_metrics(k=(5,)), hrsa_metrics(k=(5,))
    heatmap = LinearCKAHeatmap()
    with torch.inference_mode():
        metrics.update(x[:60] + 0, y[:60] + 0)
        metrics.compute()
        heatmap.update([x[:60] + 0], [y[:60] + 0])
    metrics.update(x[60:], y[60:])
    heatmap.update([x[60:]], [y[60:]])
    expected.update(x[:60], y[:60])
    expected.update(x[60:], y[60:])
    assert metrics.compute() == expected.compute()
    assert heatmap.compute().item() == pytest.approx(expected.compute()["cka"].item(), rel=1e-6)
    with torch.inference_mode():
        metrics.reset()
    metrics.update(x, y)
    assert metrics(x, y).keys() == expected.compute().keys()


@pytest.mark.parametrize("make", [KNNOverlap, LinearCKA, OrthogonalProcrustes])
def test_running_has_the_value_of_its_window(make: type[PairMetric]) -> None:
    x, y = pair()
    running, window = Running(make(), window=2), make()
    for start in (0, 40, 80):
        running.update(x[start : start + 40], y[start : start + 40])
    window.update(x[40:], y[40:])
    value, expected = running.compute(), window.compute()
    if isinstance(expected, torch.Tensor):
        value, expected = {"": value}, {"": expected}
    for key, part in expected.items():
        assert value[key].item() == pytest.approx(part.item(), rel=1e-6), key
    assert running.compute() is not None, "computing leaves the window as it is"


def test_a_tracker_takes_one_direction_or_one_metric() -> None:
    x, y = pair()
    with pytest.raises(AttributeError, match=r"'procrustes'.*provide the `maximize` argument"):
        MetricTracker(hrsa_metrics())
    tracker = MetricTracker(hrsa_metrics(k=(5,)), maximize=True)
    for noise in (0.0, 1.0):
        tracker.increment()
        tracker.update(x, x + noise * y)
    assert tracker.compute_all()["cka"].shape == (2,)
    assert tracker.best_metric(return_step=True)[1]["knn_overlap_5"] == 0
    single = MetricTracker(LinearCKA())
    for noise in (1.0, 0.0):
        single.increment()
        single.update(x, x + noise * y)
    assert single.best_metric(return_step=True)[1] == 1
