"""Linear CKA as a metric."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hrsa_lightning.functional.cka import chance_cka, cka_from_moments, linear_cka
from hrsa_lightning.functional.cka_heatmap import MIN_SAMPLES
from hrsa_lightning.functional.permutation import permutations, permuted_cka
from hrsa_lightning.metrics._base import PairMetric


class LinearCKA(PairMetric):
    """Linear CKA, streamed over batches; see `hrsa_lightning.functional.linear_cka`.

    Args:
        debiased: whether to compute the debiased form.
        standardize: whether to bring every feature to unit variance; keeps the rows.
        kwargs: see `PairMetric`.

    Example:
        >>> import torch
        >>> metric = LinearCKA()
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 5.0], [4.0, 3.0]])
        >>> metric.update(x[:3], 3 * x[:3] + 7)
        >>> metric.update(x[3:], 3 * x[3:] + 7)
        >>> round(metric.compute().item(), 6)
        1.0
    """

    function = staticmethod(linear_cka)
    needs = ("moments",)
    min_samples = MIN_SAMPLES
    scalar = True

    def __init__(self, debiased: bool = True, *, standardize: bool = False, **kwargs: Any) -> None:
        if standardize:
            self.needs = ("rows",)
        super().__init__(**kwargs)
        self.debiased = debiased
        self.standardize = standardize

    def _names(self) -> tuple[str, ...]:
        if self.standardize:
            return ("cka_standardized",) if self.debiased else ("cka_plain_standardized",)
        return ("cka",) if self.debiased else ("cka_plain",)

    def _value(self) -> Tensor | dict[str, Tensor]:
        if self.standardize:
            self._chance = dict.fromkeys(self._names(), 0.0) if self.debiased else {}
            return self._value_of(*self._all_rows())
        moments = self._moments()
        if self.debiased:
            self._chance = {"cka": 0.0}
        else:
            self._chance = {"cka_plain": float(chance_cka(moments))}
        return cka_from_moments(moments, self.debiased)

    def _permuted(
        self, x: Tensor, y: Tensor, ids: Tensor | None, labels: Tensor | None, null: int
    ) -> Mapping[str, Tensor]:
        key, kept = ("cka", self.standardize, null), {} if self._kept is None else self._kept
        if key not in kept:
            orders = permutations(len(x), null, x.device)
            kept[key] = permuted_cka(x, y, orders, self.standardize, self.chunk_bytes)
        return {self._names()[0]: kept[key][int(self.debiased)]}

    def _arguments(
        self, ids: Tensor | None, labels: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"debiased": self.debiased, "standardize": self.standardize}
