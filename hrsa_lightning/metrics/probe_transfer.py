"""Linear-probe transfer as a metric."""

from typing import Any

from torch import Tensor

from hrsa_lightning.functional.probe_transfer import (
    MIN_SAMPLES,
    ProbeTransferResult,
    linear_probe_transfer,
)
from hrsa_lightning.metrics._base import PairMetric


class LinearProbeTransfer(PairMetric):
    """Accuracy of linear probes carried from the reference to the live model.

    See `hrsa_lightning.functional.linear_probe_transfer`; ``update`` takes labels, which are
    classes. Keys: ``probe_transfer_accuracy``, ``probe_source_accuracy``,
    ``probe_ceiling_accuracy``; with ``num_classes=None`` labels are float targets and the keys end
    in ``_r2``.

    Args:
        num_classes: number of classes, or None for regression.
        regularization: weight of the ridge penalty.
        kwargs: see `PairMetric`.

    Example:
        >>> import torch
        >>> metric = LinearProbeTransfer(num_classes=2)
        >>> y = torch.cat((torch.eye(2), -torch.eye(2), 2 * torch.eye(2), -3 * torch.eye(2)))
        >>> metric.update(2 * y, y, (y.sum(1) > 0).long(), x_ids=list(range(8)))
        >>> metric.compute()["probe_transfer_accuracy"].item()
        1.0
    """

    function = staticmethod(linear_probe_transfer)
    fields = ProbeTransferResult._fields
    needs = ("rows", "labels")
    min_samples = MIN_SAMPLES
    equal_width = True

    def __init__(
        self, num_classes: int | None, *, regularization: float = 1e-3, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.regularization = regularization

    def _names(self) -> tuple[str, ...]:
        suffix = "r2" if self.num_classes is None else "accuracy"
        return tuple(f"probe_{name}_{suffix}" for name in self.fields)

    def _value(self) -> Tensor | dict[str, Tensor]:
        x, y, ids, labels = self._all_rows()
        chance = 0.0
        if self.num_classes is not None:
            assert labels is not None
            _check_classes(labels, self.num_classes)
            chance = float(labels.bincount().max()) / len(labels)
        self._chance = dict.fromkeys(self._names(), chance)
        return self._value_of(x, y, ids, labels)

    def _arguments(
        self, ids: Tensor | None, labels: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert labels is not None
        labels = labels.double() if self.num_classes is None else labels
        return (labels,), {"regularization": self.regularization, "y_ids": ids}

    def _identity(self) -> dict[str, float]:
        return {}


def _check_classes(labels: Tensor, num_classes: int) -> None:
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"Expected `labels` to be classes from 0 to {num_classes - 1}, "
            f"got {labels.dtype} from {labels.min().item()} to {labels.max().item()}."
        )
