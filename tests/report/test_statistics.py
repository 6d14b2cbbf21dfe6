import math
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hrsa_lightning.report.statistics import (
    closed_gap,
    half_life,
    realignment_gain,
    recovered_share,
    spread,
)


def test_interval_is_that_of_a_t_test():
    values = [0.81, 0.86, 0.832, 0.79]
    found = spread(values)
    assert (found.mean, found.std) == pytest.approx((fmean(values), stdev(values)))
    expected = stats.t.interval(0.95, 3, fmean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_undefined_values_are_left_out():
    assert spread([1.0, math.nan, 3.0])[:2] == pytest.approx((2.0, math.sqrt(2)))
    assert spread([math.nan]).num_values == 0
    alone = spread([0.25, math.nan])
    assert (alone.mean, alone.num_values) == (0.25, 1)
    assert math.isnan(alone.std)
    assert math.isnan(alone.low)


def test_half_life_rises_and_falls_alike():
    steps, values = [0, 10, 30, 50], [0.2, 0.3, 0.7, 0.8]
    found = half_life(steps, values)
    assert found.step == pytest.approx(10 + 20 * (0.5 - 0.3) / (0.7 - 0.3))
    assert found[1:] == (10, 30)
    assert half_life(steps, [1 - v for v in values]) == pytest.approx(found)


def test_half_life_of_a_curve_that_overshoots_is_its_first_crossing():
    found = half_life([0, 1, 2, 3], [0.0, 1.0, -1.0, 0.5])
    assert found.step == pytest.approx(0.25)


def test_half_life_leaves_out_gaps_and_noise():
    assert half_life([0, 10, 20], [1.0, math.nan, 0.5]).step == 10.0
    assert math.isnan(half_life([0, 10], [0.5, 0.509]).step)
    assert math.isnan(half_life([0, 10], [math.nan, math.nan]).step)


@given(
    scale=st.floats(0.1, 10),
    shift=st.floats(-5, 5),
    values=st.lists(st.floats(0, 1), min_size=2, max_size=8),
)
def test_half_life_lies_between_its_evaluations_whatever_the_scale(scale, shift, values):
    steps = list(range(len(values)))
    found = half_life(steps, [v * scale + shift for v in values])
    if math.isfinite(found.step):
        assert found.low <= found.step <= found.high
        assert found.high - found.low == 1


def test_recovered_share_when_similarity_falls_is_negative():
    assert recovered_share(0.9, 0.8) == pytest.approx(-1.0)
    assert recovered_share(-0.4, -0.1, identity=0.0) == pytest.approx(0.75)
    assert math.isnan(recovered_share(0.5, 0.6, identity=math.nan))


@given(*[st.floats(0, 1) for _ in range(4)])
def test_the_two_ways_to_close_a_gap_add_up(pair_first, pair_last, control_first, control_last):
    gap = closed_gap(pair_first, pair_last, control_first, control_last)
    first, last = control_first - pair_first, control_last - pair_last
    if first < 0.01:
        assert all(map(math.isnan, gap))
        return
    assert gap.total == pytest.approx(1 - last / first, abs=1e-9)
    assert gap.total == pytest.approx(gap.by_pair + gap.by_control)


def test_gain():
    assert realignment_gain(0.75, 0.5) == -0.25
