"""Dimension-wise correlation as a metric."""

from torch import Tensor

from hrsa_lightning.functional.dimension_correlation import MIN_SAMPLES, correlation_from_moments
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

    needs = ("moments",)
    min_samples = MIN_SAMPLES
    equal_width = True
    plot_lower_bound = -1.0

    def keys(self) -> tuple[str, ...]:
        return ("dimension_correlation", "dimension_correlation_median")

    def _value(self) -> dict[str, Tensor]:
        result = correlation_from_moments(self._moments())
        self._floors = dict.fromkeys(self.keys(), 0.0)
        return dict(zip(self.keys(), (result.mean, result.median), strict=True))
