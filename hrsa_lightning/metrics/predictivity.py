"""Linear predictivity as a metric."""

from typing import Any

from torch import Tensor

from hrsa_lightning.functional.predictivity import (
    MIN_SAMPLES,
    LinearPredictivityResult,
    linear_predictivity,
)
from hrsa_lightning.functional.probe_transfer import check_regularization
from hrsa_lightning.metrics._base import PairMetric

KEYS = ("predictivity_forward", "predictivity_backward")


class LinearPredictivity(PairMetric):
    """Held-out R^2 of ridge maps; see `hrsa_lightning.functional.linear_predictivity`.

    Keys: ``predictivity_forward`` (the reference from the live model) and
    ``predictivity_backward``. The rows are kept until ``reset``. The chance level is 0, that of
    predicting the mean; maps fitted to noise are below it.

    Args:
        regularization: weight of the ridge penalty.
        kwargs: see `PairMetric`.

    Example:
        >>> import torch
        >>> metric = LinearPredictivity()
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> metric.update(x, x[:, :2])
        >>> [round(value.item(), 1) for value in metric.compute().values()]
        [1.0, 0.6]
    """

    function = staticmethod(linear_predictivity)
    fields = LinearPredictivityResult._fields
    needs = ("rows",)
    min_samples = MIN_SAMPLES

    def __init__(self, *, regularization: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_regularization(regularization)
        self.regularization = regularization

    def _names(self) -> tuple[str, ...]:
        return KEYS

    def _value(self) -> Tensor | dict[str, Tensor]:
        self._chance = dict.fromkeys(KEYS, 0.0)
        return self._value_of(*self._all_rows())

    def _arguments(
        self, ids: Tensor | None, labels: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"regularization": self.regularization, "y_ids": ids}

    def _identity(self) -> dict[str, float]:
        return {}
