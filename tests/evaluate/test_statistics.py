import math

import numpy as np
import pytest
from scipy import stats

from hrsa_lightning.evaluate.tables import bootstrap_interval, paired_p_value


@pytest.mark.parametrize("count", [2, 5, 13])
@pytest.mark.parametrize("shift", [0.0, 0.4, 3.0])
def test_exact_p_value_is_scipys(count, shift):
    values = np.random.default_rng(count).normal(shift, size=count)
    expected = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert paired_p_value(values) == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_random_signs_come_close_to_the_t_test(shift):
    values = np.random.default_rng(3).normal(shift, size=120)
    p = paired_p_value(values)
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    assert p == paired_p_value(values) == paired_p_value(-values)
    assert 0 < paired_p_value(values + 5) <= 2e-4


def test_p_values_of_no_difference_are_spread_evenly():
    draw = np.random.default_rng(0)
    values = np.array([paired_p_value(draw.normal(size=8)) for _ in range(400)])
    for level in (0.05, 0.25, 0.5):
        assert (values <= level).mean() == pytest.approx(level, abs=0.06)


def test_equal_models_do_not_differ():
    assert paired_p_value([0.0] * 5) == 1.0
    assert paired_p_value([0.0] * 50) == 1.0
    assert bootstrap_interval([0.3] * 9) == pytest.approx((0.3, 0.3))


def test_one_pair_says_nothing():
    assert math.isnan(paired_p_value([0.4]))
    assert all(math.isnan(end) for end in bootstrap_interval([0.4]))


@pytest.mark.parametrize("count", [20, 3000])
def test_interval_is_scipys(count):
    values = np.random.default_rng(1).exponential(size=count)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=0, batch=500)
    width = expected.confidence_interval.high - expected.confidence_interval.low
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.05 * width)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.05 * width)
