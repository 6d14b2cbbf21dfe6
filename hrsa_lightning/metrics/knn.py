"""k-NN overlap as a metric."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import check_choice
from hrsa_lightning.functional.knn import (
    OVERLAPS,
    SIMILARITIES,
    Overlap,
    Similarity,
    chance_overlap,
    check_neighbor_counts,
    knn_overlap,
    neighbors_of_both,
)
from hrsa_lightning.functional.permutation import permutations, permuted_overlaps
from hrsa_lightning.functional.reference import Reference
from hrsa_lightning.metrics._base import PairMetric


class KNNOverlap(PairMetric):
    """Overlap of nearest neighbors among all samples seen.

    See `hrsa_lightning.functional.knn_overlap`. The rows are kept until ``reset``, those of ``y``
    and their neighbors longer: where the next value has the same ``y``, as with a frozen
    reference, only the neighbors in ``x`` are searched. With int ids,
    ties follow the order of the ids; without, the order of arrival.

    Args:
        k: number of neighbors (the value is a scalar), or several (a dict with the keys
            ``knn_overlap_{k}``).
        similarity: ``"cosine"`` or ``"euclidean"``.
        overlap: ``"jaccard"`` or ``"mutual"``.
        skip_large_k: whether to leave out a k of several that is not below the number of samples,
            instead of raising.
        kwargs: see `PairMetric`.

    Example:
        >>> import torch
        >>> metric = KNNOverlap(k=(1, 2))
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0]])
        >>> metric.update(x, x.flip(1))
        >>> metric.compute()["knn_overlap_1"].item()
        1.0
    """

    needs = ("rows",)
    plot_lower_bound = 0.0

    def __init__(
        self,
        k: int | Sequence[int] = 10,
        similarity: Similarity = "cosine",
        overlap: Overlap = "jaccard",
        *,
        skip_large_k: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice(similarity, "similarity", SIMILARITIES)
        check_choice(overlap, "overlap", OVERLAPS)
        self.k = k if isinstance(k, int) else tuple(k)
        self.scalar = isinstance(k, int)
        self.ks = (k,) if isinstance(k, int) else tuple(k)
        check_neighbor_counts(self.ks)
        self.similarity: Similarity = similarity
        self.overlap: Overlap = overlap
        self.skip_large_k = skip_large_k
        self._reference: Reference | None = None
        self.min_samples = 1 + (min(self.ks) if skip_large_k else max(self.ks))

    def _names(self) -> tuple[str, ...]:
        return tuple(f"knn_overlap_{k}" for k in self.ks)

    def _described(self) -> str:
        return f"{type(self).__name__} with k = {self.min_samples - 1}"

    def _reference_for(self, y: Tensor) -> Reference:
        """The reference of the last value if its rows are the same ones, with what it kept."""
        if self._reference is None or not torch.equal(self._reference.rows, y):
            self._reference = Reference(y)
        return self._reference

    def _value(self) -> Tensor | dict[str, Tensor]:
        x, y, _, _ = self._rows()
        values = self._overlaps(x, self._reference_for(y))
        self._chance = {
            f"knn_overlap_{k}": chance_overlap(k, x.shape[0], self.overlap)
            for k in self.ks
            if k < x.shape[0]
        }
        return next(iter(values.values())) if self.scalar else values

    def _value_of(
        self, x: Tensor, y: Tensor, ids: Tensor | None, labels: Tensor | None
    ) -> dict[str, Tensor]:
        return self._overlaps(x, Reference(y))

    def _permuted(
        self, x: Tensor, y: Tensor, ids: Tensor | None, labels: Tensor | None, null: int
    ) -> Mapping[str, Tensor]:
        ks = tuple(k for k in self.ks if k < len(x))
        found = neighbors_of_both(
            "k-NN overlap", x, y, self._reference_for(y), ks, self.similarity, self.chunk_bytes
        )
        if found is None:
            return {}
        orders = permutations(len(x), null, x.device)
        values = permuted_overlaps(*found, orders, ks, self.overlap)
        return {f"knn_overlap_{k}": part for k, part in values.items()}

    def _overlaps(self, x: Tensor, reference: Reference) -> dict[str, Tensor]:
        """Overlap at each k below the number of samples."""
        ks = tuple(k for k in self.ks if k < x.shape[0])
        values = knn_overlap(
            x, reference, ks, self.similarity, self.overlap, chunk_bytes=self.chunk_bytes
        )
        return {f"knn_overlap_{k}": value for k, value in values.items()}
