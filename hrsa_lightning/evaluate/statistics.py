"""How sure a mean and a difference are: bootstrap intervals and a paired permutation test."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
_VALUES_AT_ONCE = 2**22


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64], seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (95 %, 10,000 resamples).

    Args:
        values: What is averaged, such as one score per query.
        seed: Draws the resamples.

    Returns:
        Lower and upper end; NaN for fewer than two values.

    Example:
        >>> low, high = bootstrap_interval([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
        >>> low < 4 / 6 < high
        True
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        return math.nan, math.nan
    draw = np.random.default_rng(seed)
    step = max(1, _VALUES_AT_ONCE // len(sample))
    means = [
        sample[draw.integers(len(sample), size=(min(step, RESAMPLES - begin), len(sample)))].mean(1)
        for begin in range(0, RESAMPLES, step)
    ]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def paired_p_value(differences: Sequence[float] | NDArray[np.float64], seed: int = 0) -> float:
    """Two-sided sign-flip permutation test: is the mean of paired differences zero?

    Under the hypothesis that the two of a pair are exchangeable, every difference may as well have
    the other sign. All sign patterns are counted where there are at most 10,000 of them (up to 13
    differences), else 10,000 random ones and the observed one.

    Args:
        differences: One per task or per query, scored by both models.
        seed: Draws the signs.

    Returns:
        The p-value; NaN for fewer than two differences. With n differences it is at least
        2 / 2**n.

    Example:
        >>> paired_p_value([0.1, 0.2, 0.1, 0.3])
        0.125
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return math.nan
    # Sums of the same numbers in another order may differ in their last bits.
    observed = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if 2 ** len(values) <= RESAMPLES:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(values))))
        return float((np.abs(signs @ values) >= observed).mean())
    draw = np.random.default_rng(seed)
    step = max(1, _VALUES_AT_ONCE // len(values))
    extreme = 1
    for begin in range(0, RESAMPLES, step):
        size = (min(step, RESAMPLES - begin), len(values))
        signs = draw.integers(0, 2, size=size, dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ values) >= observed).sum())
    return extreme / (RESAMPLES + 1)
