"""Orthogonal Procrustes as a metric."""

from typing import Any

from torch import Tensor

from hrsa_lightning.functional._inputs import check_choice
from hrsa_lightning.functional.procrustes import (
    PROTOCOLS,
    Protocol,
    orthogonal_procrustes,
    random_rotation_inverse_row_entropy,
)
from hrsa_lightning.metrics._base import PairMetric


class OrthogonalProcrustes(PairMetric):
    """Alignment by the best rotation; see `hrsa_lightning.functional.orthogonal_procrustes`.

    Keys: ``procrustes_residual``, ``procrustes_global_cosine``, ``procrustes_mean_cosine``,
    ``inverse_row_entropy``.

    Args:
        protocol: ``"held_out"``, ``"in_sample"`` or ``"paper"``.
        kwargs: see `PairMetric`.

    Example:
        >>> import torch
        >>> metric = OrthogonalProcrustes(protocol="in_sample")
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 5.0], [4.0, 3.0]])
        >>> metric.update(x, x.flip(1) + 3)
        >>> round(metric.compute()["procrustes_global_cosine"].item(), 6)
        1.0
    """

    needs = ("rows",)
    min_samples = 4
    higher_is_better = None
    plot_upper_bound = None

    def __init__(self, protocol: Protocol = "held_out", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice(protocol, "protocol", PROTOCOLS)
        self.protocol: Protocol = protocol

    def _value(self) -> dict[str, Tensor]:
        x, y, ids, _ = self._rows()
        result = orthogonal_procrustes(x, y, self.protocol, y_ids=ids)
        self._floors = {
            "inverse_row_entropy": random_rotation_inverse_row_entropy(min(x.shape[1], y.shape[1]))
        }
        if self.protocol == "held_out":
            self._floors |= {"procrustes_global_cosine": 0.0, "procrustes_mean_cosine": 0.0}
        return {
            "procrustes_residual": result.residual_variance_ratio,
            "procrustes_global_cosine": result.global_cosine,
            "procrustes_mean_cosine": result.mean_cosine,
            "inverse_row_entropy": result.inverse_row_entropy,
        }
