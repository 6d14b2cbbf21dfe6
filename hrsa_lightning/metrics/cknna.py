"""CKNNA as a metric."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hrsa_lightning.functional.cknna import (
    MIN_SAMPLES,
    check_cknna_neighbors,
    cknna,
    sparse_kernels,
)
from hrsa_lightning.functional.permutation import permutations, permuted_alignment
from hrsa_lightning.functional.reference import Reference
from hrsa_lightning.metrics._base import PairMetric

CHANCE_PERMUTATIONS = 20


class CKNNA(PairMetric):
    """CKA of pairs that are neighbors in both; see `hrsa_lightning.functional.cknna`.

    The rows are kept until ``reset``. The chance level is the mean over 20 permutations of the
    samples.

    Args:
        k: number of neighbors, at least 2.
        kwargs: see `PairMetric`.

    Example:
        >>> import torch
        >>> metric = CKNNA(k=2)
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.8, 0.9], [0.0, 1.0], [0.1, 1.0]])
        >>> metric.update(x, x.flip(1))
        >>> round(metric.compute().item(), 6)
        1.0
    """

    needs = ("rows",)
    scalar = True

    def __init__(self, k: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_cknna_neighbors(k)
        self.k = k
        self.min_samples = max(MIN_SAMPLES, k + 1)

    def _names(self) -> tuple[str, ...]:
        return (f"cknna_{self.k}",)

    def _value(self) -> Tensor:
        x, y, ids, labels = self._all_rows()
        value = self._value_of(x, y, ids, labels)
        self._chance = {}
        if bool(value.isfinite()):
            found = self._permuted(x, y, ids, labels, CHANCE_PERMUTATIONS)
            self._chance = {key: float(null.mean()) for key, null in found.items()}
        return value

    def _value_of(self, x: Tensor, y: Tensor, ids: Tensor | None, labels: Tensor | None) -> Tensor:
        return cknna(x, y, self.k, chunk_bytes=self.chunk_bytes)

    def _permuted(
        self, x: Tensor, y: Tensor, ids: Tensor | None, labels: Tensor | None, null: int
    ) -> Mapping[str, Tensor]:
        kernels = sparse_kernels(x, y, Reference(y), self.k, self.chunk_bytes)
        assert kernels is not None
        orders = permutations(len(x), null, x.device)
        return {self._names()[0]: permuted_alignment(*kernels, orders)}
