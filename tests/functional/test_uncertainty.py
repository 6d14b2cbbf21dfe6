"""The delete-a-group jackknife: its formula, its calibration, and what it refuses."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hrsa_lightning.functional import (
    SimilarityWarning,
    jackknife,
    knn_overlap,
    linear_cka,
    linear_cka_heatmap,
    linear_probe_transfer,
)
from tests.functional.inputs import pair


def test_agrees_with_the_formula_written_out() -> None:
    x, y = pair()
    seen = []

    def recorded(x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return linear_cka(x, y)

    value, error = jackknife(recorded, x, y, num_groups=7, x_ids=range(120))
    whole, *rest = seen
    assert whole == 120
    assert sorted(120 - n for n in rest) == [17, 17, 17, 17, 17, 17, 18]
    # The same groups again, by leaving out one id after the other.
    left_out: list[list[int]] = []

    def record_rows(index: Tensor, _: Tensor) -> Tensor:
        kept = set(index[:, 0].int().tolist())
        left_out.append([i for i in range(120) if i not in kept])
        return index.double().mean()

    index = torch.arange(120.0)[:, None]
    jackknife(record_rows, index, index, num_groups=7, x_ids=range(120))
    assert sorted(i for group in left_out for i in group) == list(range(120))
    without = []
    for group in left_out[1:]:
        kept = [i for i in range(120) if i not in group]
        without.append(linear_cka(x[kept], y[kept]).item())
    variance = 6 / 7 * sum((v - np.mean(without)) ** 2 for v in without)
    assert value.item() == linear_cka(x, y).item()
    assert error.item() == pytest.approx(math.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize(
    "metric", [linear_cka, knn_overlap, lambda x, y: (x[:, 0] - y[:, 0]).double().mean()]
)
def test_error_is_the_spread_over_draws_of_samples(metric: Callable[..., Tensor]) -> None:
    found, errors = [], []
    for seed in range(24):
        x = torch.randn(150, 6, generator=torch.Generator().manual_seed(seed))
        noise = torch.randn(150, 6, generator=torch.Generator().manual_seed(1000 + seed))
        value, error = jackknife(metric, x, x + noise, num_groups=10)
        found.append(value.item())
        errors.append(error.item() ** 2)
    spread = np.std(found, ddof=1)
    assert 0.7 < math.sqrt(np.mean(errors)) / spread < 1.5


def test_order_of_samples_does_not_matter() -> None:
    x, y = pair()
    order = torch.randperm(120)
    base = jackknife(linear_cka, x, y)
    moved = jackknife(linear_cka, x[order], y[order])
    assert moved.standard_error.item() == pytest.approx(base.standard_error.item(), rel=1e-4)
    by_id = jackknife(linear_cka, x, y, y_ids=[f"{i}" for i in range(120)])
    assert by_id.standard_error.item() != pytest.approx(base.standard_error.item(), rel=1e-4)


def test_dicts_heatmaps_and_labels() -> None:
    x, y = pair()
    values, errors = jackknife(lambda x, y: knn_overlap(x, y, (3, 9)), x, y, num_groups=5)
    assert list(values) == list(errors) == [3, 9]
    alone = jackknife(lambda x, y: knn_overlap(x, y, 9), x, y, num_groups=5)
    assert errors[9].item() == alone.standard_error.item()
    heat = jackknife(lambda x, y: linear_cka_heatmap([x, y], [y]), x, y, num_groups=5)
    single = jackknife(linear_cka, x, y, num_groups=5)
    assert heat.standard_error.shape == (2, 1)
    assert heat.standard_error[0, 0].item() == pytest.approx(single.standard_error.item(), rel=1e-4)
    labels = (y[:, 0] > 0).long()
    probe = jackknife(lambda *rows: linear_probe_transfer(*rows).source, x, y, labels)
    assert 0 < probe.standard_error.item() < 0.2


def test_no_value_without_a_group_is_nan_with_one_warning() -> None:
    x, y = pair(40)
    x = torch.zeros_like(x).index_put((torch.tensor(7),), torch.tensor(1.0))
    with pytest.warns(SimilarityWarning, match="standard error is NaN: there is no value") as seen:
        value, error = jackknife(lambda x, y: linear_cka(x, y, False), x, y)
    assert len(seen) == 1
    assert value.isfinite()
    assert error.isnan()


def test_a_nan_value_has_a_nan_error_and_one_warning() -> None:
    x, y = pair()
    x[0, 0] = math.nan
    with pytest.warns(SimilarityWarning, match="an input is not finite") as seen:
        value, error = jackknife(linear_cka, x, y)
    assert len(seen) == 1
    assert value.isnan()
    assert error.isnan()


def test_samples_with_equal_references_are_told_apart_in_any_order() -> None:
    x, y = pair(40)
    y = y[:4].repeat(10, 1)
    order = torch.randperm(40)
    base = jackknife(lambda x, y: x.double().mean(), x, y, num_groups=5)
    moved = jackknife(lambda x, y: x.double().mean(), x[order], y[order], num_groups=5)
    assert moved.standard_error.item() == pytest.approx(base.standard_error.item(), rel=1e-9)


def test_errors() -> None:
    x, y = pair()
    with pytest.raises(ValueError, match="`num_groups` to be at least 2, got 1"):
        jackknife(linear_cka, x, y, num_groups=1)
    with pytest.raises(ValueError, match=r"`others\[0\]` to have 120 entries, got 3"):
        jackknife(linear_cka, x, y, torch.zeros(3))
    with pytest.raises(ValueError, match="the same samples"):
        jackknife(linear_cka, x, y[:50])
