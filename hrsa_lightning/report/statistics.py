"""What makes realignment comparable between runs: derived quantities, from plain numbers.

Every formula is written out in `docs/method.md`. Values are *similarities*: larger means more
alike. `similarity.metric_info.MetricInfo.similarity` turns the values of any metric into such.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

LEAST_CHANGE = 0.01
"""Half-lives and shares of smaller changes or gaps are not formed: they would divide by noise."""


class Spread(NamedTuple):
    """Values of several runs in one.

    Attributes:
        mean: Their mean.
        std: Sample standard deviation (n − 1); NaN for a single value.
        low: Lower end of the 95 % t interval of the mean; NaN for a single value.
        high: Upper end.
        num_values: How many there were.
    """

    mean: float
    std: float
    low: float
    high: float
    num_values: int


class HalfLife(NamedTuple):
    """When half of the final change was reached.

    Attributes:
        step: By linear interpolation between two evaluations.
        low: The evaluation before.
        high: The evaluation after; the half may lie anywhere between the two.
    """

    step: float
    low: float
    high: float


class ClosedGap(NamedTuple):
    """How much of a pair's gap to the seed control went away, and why; shares of the first gap.

    Attributes:
        total: 1 where the pair ends as near as two seeds of one backbone; more where nearer.
        by_pair: Because the pair moved together; negative where it moved apart.
        by_control: Because two seeds of one backbone moved apart.
    """

    total: float
    by_pair: float
    by_control: float


_UNDEFINED = math.nan


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and 95 % interval of the mean over runs; NaN values are left out.

    The interval is Student's, ``mean ± t(n − 1) · std / sqrt(n)``, for independent runs.

    Example:
        >>> [round(value, 3) for value in spread([1.0, 2.0, 3.0])]
        [2.0, 1.0, -0.484, 4.484, 3]
        >>> spread([0.5]).std
        nan
    """
    defined = [value for value in values if not math.isnan(value)]
    count = len(defined)
    if not count:
        return Spread(_UNDEFINED, _UNDEFINED, _UNDEFINED, _UNDEFINED, 0)
    mean = math.fsum(defined) / count
    if count == 1:
        return Spread(mean, _UNDEFINED, _UNDEFINED, _UNDEFINED, 1)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in defined) / (count - 1))
    half = t_quantile(count - 1) * std / math.sqrt(count)
    return Spread(mean, std, mean - half, mean + half, count)


@cache
def t_quantile(dof: int) -> float:
    """97.5 % quantile of Student's t, the factor of a 95 % interval.

    Args:
        dof: Degrees of freedom, the number of values less one.

    Example:
        >>> round(t_quantile(2), 3)
        4.303
    """
    from scipy.special import stdtrit

    return float(stdtrit(dof, 0.975))


def realignment_gain(first: float, last: float) -> float:
    """Similarity after minus similarity before: positive together, negative apart.

    Example:
        >>> realignment_gain(0.5, 0.75)
        0.25
    """
    return last - first


def half_life(steps: Sequence[float], values: Sequence[float]) -> HalfLife:
    """The first step at which half of the whole change is reached, up or down.

    Args:
        steps: (evaluations,), ascending.
        values: (evaluations,), similarities; NaN evaluations are left out.

    Returns:
        NaN throughout where the whole change is smaller than `LEAST_CHANGE`.

    Example:
        >>> half_life([0, 10, 20], [1.0, 1.0, 0.5])
        HalfLife(step=15.0, low=10, high=20)
    """
    points = [
        (step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)
    ]
    change = points[-1][1] - points[0][1] if points else 0.0
    if abs(change) < LEAST_CHANGE:
        return HalfLife(_UNDEFINED, _UNDEFINED, _UNDEFINED)
    start = points[0][1]
    before_step, before = points[0][0], 0.0
    for step, value in points[1:]:
        done = (value - start) / change
        if done >= 0.5:
            share = (0.5 - before) / (done - before)
            return HalfLife(before_step + share * (step - before_step), before_step, step)
        before_step, before = step, done
    raise AssertionError("the last evaluation holds the whole change")


def recovered_share(first: float, last: float, identity: float = 1.0) -> float:
    """The reversible part: the share of the first distance from identity that training took back.

    1 where the two models became the same, 0 where nothing changed, negative where they moved
    further apart. What is left, ``1 − recovered``, is the irreversible part.

    Args:
        first: Similarity before training.
        last: Similarity after training.
        identity: Similarity of a model with itself.

    Returns:
        NaN where the models differed by less than `LEAST_CHANGE` before.

    Example:
        >>> recovered_share(0.5, 0.75)
        0.5
        >>> recovered_share(0.999, 0.9)
        nan
    """
    lost = identity - first
    return (last - first) / lost if lost >= LEAST_CHANGE else _UNDEFINED


def closed_gap(
    pair_first: float, pair_last: float, control_first: float, control_last: float
) -> ClosedGap:
    """The share of a pair's gap to the seed control that is closed.

    The gap is the control's similarity minus the pair's at the same step: what the backbones
    differ in beyond chance. It can close in two ways, which add up: the pair moves together, or
    two seeds of one backbone move apart. Only the first is realignment.

    Args:
        pair_first: Similarity of the pair before training.
        pair_last: The same after training.
        control_first: Similarity of two seeds of one backbone before training.
        control_last: The same after training.

    Returns:
        NaN throughout where the first gap is smaller than `LEAST_CHANGE`.

    Example:
        >>> closed_gap(0.5, 0.75, 1.0, 0.875)
        ClosedGap(total=0.75, by_pair=0.5, by_control=0.25)
    """
    gap = control_first - pair_first
    if not gap >= LEAST_CHANGE:
        return ClosedGap(_UNDEFINED, _UNDEFINED, _UNDEFINED)
    by_pair, by_control = (pair_last - pair_first) / gap, (control_first - control_last) / gap
    return ClosedGap(by_pair + by_control, by_pair, by_control)
