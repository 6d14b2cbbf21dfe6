"""Orthogonal Procrustes as a metric."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hrsa_lightning.functional._inputs import check_choice, id_list, split_halves
from hrsa_lightning.functional._moments import PairMoments
from hrsa_lightning.functional.permutation import by_key, permutations, permuted_procrustes
from hrsa_lightning.functional.procrustes import (
    PROTOCOLS,
    ProcrustesResult,
    Protocol,
    align,
    fit_rotations,
    judge_rotations,
    mean_cosine,
    min_samples,
    orthogonal_procrustes,
    procrustes_identity,
    random_rotation_inverse_row_entropy,
)
from hrsa_lightning.metrics._base import PairMetric

KEYS = (
    "procrustes_residual",
    "procrustes_global_cosine",
    "procrustes_mean_cosine",
    "inverse_row_entropy",
)


class OrthogonalProcrustes(PairMetric):
    """Alignment by the best rotation; see `hrsa_lightning.functional.orthogonal_procrustes`.

    Keys: ``procrustes_residual``, ``procrustes_global_cosine``, ``procrustes_mean_cosine``,
    ``inverse_row_entropy``.

    Args:
        protocol: ``"held_out"``, ``"in_sample"`` or ``"paper"``.
        mean_cosine: whether to report it. It needs the rows, which are kept until ``reset``, beside
            sums shared with `LinearCKA` and `DimensionCorrelation`. Without rows all is streamed,
            in sums of float64 products; without ids as well, bits of the rows of ``y`` decide the
            halves, whatever the scale makes of them.
        kwargs: see `PairMetric`.

    Example:
        >>> import torch
        >>> metric = OrthogonalProcrustes(protocol="in_sample")
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 5.0], [4.0, 3.0]])
        >>> metric.update(x, x.flip(1) + 3)
        >>> round(metric.compute()["procrustes_global_cosine"].item(), 6)
        1.0
    """

    function = staticmethod(orthogonal_procrustes)
    needs = ("moments",)
    higher_is_better = None
    plot_upper_bound = None

    def __init__(
        self, protocol: Protocol = "held_out", *, mean_cosine: bool = True, **kwargs: Any
    ) -> None:
        check_choice(protocol, "protocol", PROTOCOLS)
        extra = "rows" if mean_cosine else "exact"
        super().__init__(state=(*kwargs.pop("state", ()), extra), **kwargs)
        self.protocol: Protocol = protocol
        self.mean_cosine = mean_cosine
        self.fields = tuple(
            field for field in ProcrustesResult._fields[:4] if mean_cosine or "mean" not in field
        )
        self.min_samples = min_samples(protocol)
        self._rotation: Tensor | None = None

    def _names(self) -> tuple[str, ...]:
        return KEYS if self.mean_cosine else tuple(key for key in KEYS if "mean" not in key)

    def _value(self) -> dict[str, Tensor]:
        moments = self._moments()
        self._chance = self._known_chance(moments)
        if not self.mean_cosine:
            rotations = fit_rotations(moments, self.protocol, quick=True)
            rotations = rotations or fit_rotations(moments, self.protocol)
            return self._chosen(judge_rotations(moments, self.protocol, rotations))
        x, y, ids, _ = self._rows()
        judged = split_halves(y, id_list(ids)) if self.protocol == "held_out" else None
        if ids is None and judged is not None:  # the sums were split before all rows were known
            return self._chosen(align(x, y, judged, self.protocol, self.chunk_bytes))
        rotations = fit_rotations(moments, self.protocol, quick=True)
        if rotations is None:  # float32 sums are not enough
            return self._chosen(align(x, y, judged, self.protocol, self.chunk_bytes, quick=False))
        result = judge_rotations(moments, self.protocol, rotations)
        cosine = mean_cosine(
            x, y, judged, moments, self.protocol, result.rotation, self.chunk_bytes
        )
        return self._chosen(result._replace(mean_cosine=cosine))

    def _arguments(
        self, ids: Tensor | None, labels: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"protocol": self.protocol, "y_ids": ids}

    def _permuted(
        self, x: Tensor, y: Tensor, ids: Tensor | None, labels: Tensor | None, null: int
    ) -> Mapping[str, Tensor]:
        if self.protocol != "held_out":
            return super()._permuted(x, y, ids, labels, null)
        if self._rotation is None:
            return {}
        judged = split_halves(y, id_list(ids))
        orders = permutations(len(x), null, x.device)
        found = permuted_procrustes(x, y, orders, judged, self._rotation)
        return self._under_keys(found)

    def permuted(self, num_permutations: int) -> dict[str, tuple[float, float]]:
        """As of `PairMetric`; empty unless held out: every permutation would need a rotation."""
        return super().permuted(num_permutations) if self.protocol == "held_out" else {}

    def _identity(self) -> dict[str, float]:
        same = [0.0, 1.0, 1.0]
        if self.protocol == "held_out" and self.rows_y:
            _, y, ids, _ = self._rows()
            found = procrustes_identity(y, y_ids=ids)
            same = [float(value) for value in found[:3]]
        known = dict(zip(KEYS, [*same, 1.0], strict=True))
        return {key: known[key] for key in self._names()}

    def _chosen(self, result: ProcrustesResult) -> dict[str, Tensor]:
        self._rotation = result.rotation
        return self._under_keys(by_key(result))

    def reset(self) -> None:
        self._rotation = None
        super().reset()

    def _known_chance(self, moments: PairMoments) -> dict[str, float]:
        known = {"inverse_row_entropy": random_rotation_inverse_row_entropy(min(moments.widths))}
        if self.protocol == "held_out":
            size_x, size_y = moments.centered_trace().sqrt() * moments.unit
            known["procrustes_residual"] = float(1 + (size_x / size_y).square())
            known |= {"procrustes_global_cosine": 0.0, "procrustes_mean_cosine": 0.0}
        return {key: level for key, level in known.items() if key in self._names()}
