"""CKNNA as a metric."""

from typing import Any

from torch import Tensor

from hrsa_lightning.functional.cknna import MIN_SAMPLES, check_cknna_neighbors, cknna
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

    function = staticmethod(cknna)
    needs = ("rows",)
    scalar = True

    def __init__(self, k: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_cknna_neighbors(k)
        self.k = k
        self.min_samples = max(MIN_SAMPLES, k + 1)

    def _names(self) -> tuple[str, ...]:
        return (f"cknna_{self.k}",)

    def _value(self) -> Tensor | dict[str, Tensor]:
        rows = self._all_rows()
        value = self._value_of(*rows)
        self._chance = {}
        if isinstance(value, Tensor) and bool(value.isfinite()):
            found = self._permuted(*rows, CHANCE_PERMUTATIONS)
            self._chance = {key: float(null.mean()) for key, null in found.items()}
        return value

    def _arguments(
        self, ids: Tensor | None, labels: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"k": self.k}
