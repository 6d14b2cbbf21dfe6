"""A frozen representation whose half of the metrics is computed once."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor

from hrsa_lightning.functional._inputs import check_matrix

T = TypeVar("T")


class Reference:
    """Rows that many others are compared with, and what was computed of them.

    Takes the place of ``y`` in `linear_cka` and `knn_overlap`, which then keep its moments and its
    neighbor lists: d^2 sums in float64 and n k indices, nothing of size n squared.

    Args:
        rows: (n, d) representations, floating point. They must not be changed afterwards.

    Example:
        >>> import torch
        >>> from hrsa_lightning.functional import knn_overlap
        >>> y = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0]])
        >>> reference = Reference(y)
        >>> knn_overlap(y, reference, k=1).item()
        1.0
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = check_matrix(rows, "rows")
        self._kept: dict[Hashable, Any] = {}

    def keep(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value under ``key``, which ``compute`` gives at the first call."""
        if key not in self._kept:
            self._kept[key] = compute()
        value: T = self._kept[key]
        return value


def unwrap(y: Tensor | Reference) -> tuple[Tensor, Reference]:
    """Rows of a reference, and the reference itself; a tensor becomes one that is used once."""
    reference = y if isinstance(y, Reference) else Reference(check_matrix(y, "y"))
    return reference.rows, reference
