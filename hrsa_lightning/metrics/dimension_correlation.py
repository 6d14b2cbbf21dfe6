"""Dimension-wise correlation as a metric."""

from torch import Tensor

from hrsa_lightning.functional.dimension_correlation import (
    MIN_SAMPLES,
    correlation_from_moments,
    dimension_correlation,
)
from hrsa_lightning.functional.permutation import by_key
from hrsa_lightning.metrics._base import PairMetric


class DimensionCorrelation(PairMetric):
    """Mean and median Pearson correlation per dimension, streamed over batches.

    See `hrsa_lightning.functional.dimension_correlation`. Keys: ``dimension_correlation`` (mean),
    ``dimension_correlation_median``.

    Args:
        kwargs: see `PairMetric`.

    Example:
        >>> import torch
        >>> metric = DimensionCorrelation()
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
        >>> metric.update(x, 2 * x)
        >>> round(metric.compute()["dimension_correlation"].item(), 6)
        1.0
    """

    function = staticmethod(dimension_correlation)
    fields = ("mean", "median")
    needs = ("moments",)
    min_samples = MIN_SAMPLES
    equal_width = True
    plot_lower_bound = -1.0

    def _names(self) -> tuple[str, ...]:
        return ("dimension_correlation", "dimension_correlation_median")

    def _value(self) -> dict[str, Tensor]:
        self._chance = dict.fromkeys(self._names(), 0.0)
        return self._under_keys(by_key(correlation_from_moments(self._moments())))
