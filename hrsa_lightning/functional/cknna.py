"""Centered kernel nearest-neighbor alignment: CKA of what is near in both representations."""

from typing import NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import SampleIds, check_count, check_ids, check_pair
from hrsa_lightning.functional._moments import row_norms
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    full_precision,
    rows_per_chunk,
    scalar_nan,
    slices,
    warn_nan,
)
from hrsa_lightning.functional.knn import (
    check_neighbor_counts,
    neighbors_of_both,
    with_norms_in_range,
)
from hrsa_lightning.functional.reference import Reference, unwrap

MIN_SAMPLES = 4

MATCHES_AT_ONCE = 2**22
"""Places of neighbor lists that are compared at once."""


def cknna(
    x: Tensor,
    y: Tensor | Reference,
    k: int = 10,
    *,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Tensor:
    r"""CKNNA: debiased linear CKA restricted to pairs of samples that are neighbors in both.

    With K and L the kernels of cosines, of which only :math:`K_{ij}` and :math:`L_{ij}` are kept
    where j is among the k nearest of i in both representations, it is
    :math:`HSIC(K, L) / \sqrt{HSIC(K, K)\,HSIC(L, L)}` with the unbiased HSIC of Song et al. (2012,
    eq. 5) (Huh et al. 2024, arXiv 2405.07987; computed as in its authors' code). It lies between
    `linear_cka`, which all pairs decide, and `knn_overlap`, which looks at membership alone: with
    k = n - 1 it is debiased CKA of unit rows, with few neighbors a local measure. 1 for equal
    representations; unrelated ones have no more than their chance overlap.

    Args:
        x: (n, d_x) representations, floating point.
        y: (n, d_y) representations of the same samples, or a `Reference`.
        k: number of neighbors, at least 2.
        x_ids: ids of the rows of ``x``, int or str.
        y_ids: ids of the rows of ``y``; must equal ``x_ids``.
        chunk_bytes: bound of the working memory for similarities.

    Returns:
        float64 scalar. NaN, with a warning, if an input is not finite or all its rows have one
        direction.

    Raises:
        ValueError: if shapes or ids do not match, n < 4, or k is not in [2, n - 1].
        TypeError: if an input is no floating point tensor or k no int.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.8, 0.9], [0.0, 1.0], [0.1, 1.0]])
        >>> round(cknna(x, x.flip(1), k=2).item(), 6)
        1.0
    """
    y, reference = unwrap(y)
    x, rows_y = check_pair(x, y)
    check_count(x.shape[0], MIN_SAMPLES)
    check_cknna_neighbors(k, x.shape[0])
    check_ids(x_ids, y_ids, x.shape[0])
    with full_precision(x.device):
        kernels = sparse_kernels(x, rows_y, reference, k, chunk_bytes)
        return scalar_nan(x) if kernels is None else alignment(*kernels)


def check_cknna_neighbors(k: int, num_samples: int | None = None) -> None:
    """Raise unless k is an int from 2 to n - 1."""
    check_neighbor_counts((k,), num_samples)
    if k < 2:
        raise ValueError(f"Expected `k` to be at least 2, got {k}.")


class SparseKernel(NamedTuple):
    """Cosines of each row with its k nearest others.

    Attributes:
        near: (n, k) int64.
        cosines: (n, k), float64.
    """

    near: Tensor
    cosines: Tensor

    def permuted(self, order: Tensor) -> "SparseKernel":
        """That of the rows in another order."""
        inverse = order.argsort()
        return SparseKernel(inverse[self.near[order]], self.cosines[order])


def sparse_kernels(
    x: Tensor, y: Tensor, reference: Reference, k: int, chunk_bytes: int
) -> tuple[SparseKernel, SparseKernel] | None:
    """Kernels of both sides; None, with a warning, if one of them has none."""
    near = neighbors_of_both("CKNNA", x, y, reference, (k,), "cosine", chunk_bytes)
    if near is None:
        return None
    return (
        SparseKernel(near[0], _cosines(x, near[0], chunk_bytes)),
        SparseKernel(
            near[1],
            reference.keep(("cosines", k), lambda: _cosines(y, near[1], chunk_bytes)),
        ),
    )


def _cosines(x: Tensor, near: Tensor, chunk_bytes: int) -> Tensor:
    x = with_norms_in_range(x)
    norms = row_norms(x).sqrt()
    norms = norms.masked_fill(norms == 0, 1)  # a row of zeros has cosine 0 with every other
    step = rows_per_chunk(2 * near.shape[1] * x.shape[1] * x.element_size(), chunk_bytes)
    found = []
    for rows in slices(len(x), step):
        others = x[near[rows].flatten()].view(*near[rows].shape, -1)
        products = (others @ x[rows, :, None])[..., 0].double()
        found.append(products / (norms[rows, None] * norms[near[rows]]))
    return torch.cat(found)


def alignment(x: SparseKernel, y: SparseKernel) -> Tensor:
    """CKNNA of two sparse kernels."""
    xx, yy, xy = hsic(x, x), hsic(y, y), hsic(x, y)
    if not bool((xx > 0) & (yy > 0)):
        warn_nan("CKNNA", "the unbiased HSIC of a representation with itself is not positive")
        return scalar_nan(xy)
    value: Tensor = xy / (xx * yy).sqrt()
    return value


def hsic(x: SparseKernel, y: SparseKernel) -> Tensor:
    """n (n - 3) times the unbiased HSIC of what both kernels have."""
    n, k = x.near.shape
    parts = []
    for rows in slices(n, max(1, MATCHES_AT_ONCE // k**2)):
        match = x.near[rows, :, None] == y.near[rows, None, :]
        place, column, other = match.nonzero().unbind(1)
        place = place + rows.start
        found = (x.near[place, column], x.cosines[place, column], y.cosines[place, other])
        parts.append((place, *found))
    row, column, left, right = (torch.cat(some) for some in zip(*parts, strict=True))
    mutual = torch.isin(column * n + row, row * n + column)
    sums = left.new_zeros(2, n)
    sums[0].index_add_(0, column, left)
    sums[1].index_add_(0, row, right)
    total = (left * right)[mutual].sum() + left.sum() * right.sum() / ((n - 1) * (n - 2))
    return total - 2 / (n - 2) * sums[0].dot(sums[1])
