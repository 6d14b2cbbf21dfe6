import math

import pytest
import torch

from hrsa_lightning.functional import (
    SimilarityWarning,
    knn_overlap,
    linear_cka,
    linear_predictivity,
)
from hrsa_lightning.functional._inputs import split_halves
from hrsa_lightning.metrics import LinearPredictivity
from tests.functional.inputs import pair


@pytest.mark.parametrize("n", [200, 24])
@pytest.mark.parametrize("widths", [(16, 16), (16, 5)])
def test_agrees_with_scikit_learn(n: int, widths: tuple[int, int]) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    metrics = pytest.importorskip("sklearn.metrics")
    x, y = pair(n)
    x, y = x[:, : widths[0]], y[:, : widths[1]]
    judged = split_halves(y, None).numpy()
    found = linear_predictivity(x, y, regularization=0.01)
    for (source, target), value in zip(((x, y), (y, x)), found, strict=True):
        source, target = source.double().numpy(), target.double().numpy()
        alpha = 0.01 * source[~judged].var(0).sum() * (~judged).sum() / source.shape[1]
        ridge = linear_model.Ridge(alpha).fit(source[~judged], target[~judged])
        expected = metrics.r2_score(
            target[judged], ridge.predict(source[judged]), multioutput="variance_weighted"
        )
        assert value.item() == pytest.approx(expected, rel=1e-6)


def test_what_is_encoded_otherwise_is_told_from_what_is_lost() -> None:
    x, _ = pair(600, 16)
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(3))
    mixed = x @ mixing
    assert linear_cka(x, mixed) < 0.95
    assert knn_overlap(x, mixed) < 0.6
    assert min(linear_predictivity(x, mixed)) > 0.999, "nothing is lost"
    forward, backward = linear_predictivity(x, x[:, :8])
    assert forward > 0.999
    assert backward < 0.9, "half of the features are"


def test_unrelated_data_are_at_or_below_zero() -> None:
    for n, d in ((400, 8), (60, 40)):
        x, y = torch.randn(2, n, d, generator=torch.Generator().manual_seed(n))
        assert max(linear_predictivity(x, y)) < 0


@pytest.mark.parametrize(("a", "b"), [(1e-30, 1e30), (1e30, 1.0), (1e-38, 1e-38)])
@pytest.mark.parametrize("n", [120, 24])
def test_scale_changes_nothing(n: int, a: float, b: float) -> None:
    x, y = pair(n)
    found = linear_predictivity(a * x, b * y)
    for value, expected in zip(found, linear_predictivity(x, y), strict=True):
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bad_input() -> None:
    x, y = pair()
    with pytest.warns(SimilarityWarning, match="no variance in the judged half"):
        forward, backward = linear_predictivity(x, torch.ones_like(y), y_ids=range(120))
    assert math.isnan(forward)
    assert backward.item() == pytest.approx(0, abs=0.1), "the mean is all that is left to predict"
    x[0, 0] = math.inf
    with pytest.warns(SimilarityWarning, match="an input is not finite"):
        assert math.isnan(linear_predictivity(x, y).forward)
    with pytest.raises(ValueError, match="`regularization` to be positive, got 0"):
        LinearPredictivity(regularization=0)


def test_the_metric_has_the_values_of_the_function() -> None:
    x, y = pair()
    metric = LinearPredictivity()
    for rows in torch.arange(120).split(50):
        metric.update(x[rows], y[rows], x_ids=rows)
    expected = linear_predictivity(x, y, x_ids=range(120))
    assert list(metric.compute().values()) == pytest.approx([v.item() for v in expected])
    assert set(metric.chance().values()) == {0.0}
