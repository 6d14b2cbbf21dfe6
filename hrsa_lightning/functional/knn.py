"""Overlap of nearest neighbors: local geometry."""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import SampleIds, check_choice, check_ids, check_pair
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    full_precision,
    rows_per_chunk,
    scalar_nan,
    warn_nan,
)

Similarity = Literal["cosine", "euclidean"]
Overlap = Literal["jaccard", "mutual"]
SIMILARITIES = ("cosine", "euclidean")
OVERLAPS = ("jaccard", "mutual")


@overload
def knn_overlap(
    x: Tensor,
    y: Tensor,
    k: int = ...,
    similarity: Similarity = ...,
    overlap: Overlap = ...,
    *,
    x_ids: SampleIds | None = ...,
    y_ids: SampleIds | None = ...,
    chunk_bytes: int = ...,
) -> Tensor: ...
@overload
def knn_overlap(
    x: Tensor,
    y: Tensor,
    k: Sequence[int],
    similarity: Similarity = ...,
    overlap: Overlap = ...,
    *,
    x_ids: SampleIds | None = ...,
    y_ids: SampleIds | None = ...,
    chunk_bytes: int = ...,
) -> dict[int, Tensor]: ...
def knn_overlap(
    x: Tensor,
    y: Tensor,
    k: int | Sequence[int] = 10,
    similarity: Similarity = "cosine",
    overlap: Overlap = "jaccard",
    *,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Tensor | dict[int, Tensor]:
    r"""Mean overlap of the k nearest neighbors of each sample in two representations.

    The neighbors are exact, a sample is never its own, and ties go to the lower row in both
    spaces. Similarities too close to call in float32 are decided in float64.

    Args:
        x: (n, d_x) representations, floating point.
        y: (n, d_y) representations of the same samples.
        k: number of neighbors, or several.
        similarity: ``"cosine"``, or ``"euclidean"`` for the smallest distance.
        overlap: ``"jaccard"``, :math:`|A \cap B| / |A \cup B|` (arXiv 2601.21192), or
            ``"mutual"``, :math:`|A \cap B| / k` (arXiv 2405.07987). In [0, 1]; what unrelated
            representations reach is `chance_overlap`.
        x_ids: ids of the rows of ``x``, int or str.
        y_ids: ids of the rows of ``y``; must equal ``x_ids``.
        chunk_bytes: bound of the working memory for similarities.

    Returns:
        float64 scalar for an int ``k``, else a dict by k. NaN, with a warning, if an input is not
        finite.

    Raises:
        ValueError: if shapes or ids do not match, an option is unknown, or k is not in [1, n - 1].
        TypeError: if an input is no floating point tensor or k no int.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0]])
        >>> knn_overlap(x, x.flip(1), k=1).item()
        1.0
    """
    check_choice(similarity, "similarity", SIMILARITIES)
    check_choice(overlap, "overlap", OVERLAPS)
    ks = (k,) if isinstance(k, int) else tuple(k)
    x, y = check_pair(x, y)
    check_neighbor_counts(ks, x.shape[0])
    check_ids(x_ids, y_ids, x.shape[0])
    with full_precision(x.device):
        if bool(torch.isfinite(x.sum()) & torch.isfinite(y.sum())):
            near_x = nearest_neighbors(x, ks, similarity, chunk_bytes)
            near_y = nearest_neighbors(y, ks, similarity, chunk_bytes)
            values = overlap_of_neighbors(near_x, near_y, ks, overlap)
        else:
            warn_nan("k-NN overlap", "an input is not finite")
            values = {size: scalar_nan(x) for size in ks}
    return values[k] if isinstance(k, int) else values


def check_neighbor_counts(ks: Sequence[int], num_samples: int | None = None) -> None:
    """Raise unless every k is an int from 1 to n - 1 (to any size while n is not known)."""
    if not ks:
        raise ValueError("Expected `k` to name at least one number of neighbors, got none.")
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"Expected `k` to be an int, got {type(k).__name__}.")
        if k < 1:
            raise ValueError(f"Expected `k` to be at least 1, got {k}.")
        if num_samples is not None and k >= num_samples:
            raise ValueError(
                f"Expected `k` to be below the number of samples, {num_samples}, got {k}."
            )


def nearest_neighbors(
    x: Tensor, ks: Sequence[int], similarity: Similarity, chunk_bytes: int
) -> Tensor:
    """Indices of the max(ks) nearest other rows, nearest first: (n, max(ks)), int64."""
    rows = prepare_rows(x, similarity)
    n, k = rows.shape[0], max(ks)
    bias = _bias(rows, similarity)
    step = rows_per_chunk(3 * n * 8, chunk_bytes)
    found = []
    for start in range(0, n, step):
        block = rows[start : start + step] @ rows.mT - bias
        block.diagonal(start).fill_(-torch.inf)
        found.append(block.sort(dim=1, descending=True, stable=True).indices[:, :k])
    return torch.cat(found)


def prepare_rows(x: Tensor, similarity: Similarity) -> Tensor:
    """Rows in float64, of unit length for cosine and centered for Euclidean distance."""
    x = x.double()
    if similarity == "euclidean":
        return x - x.mean(0)
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norms.masked_fill(norms == 0, 1)


def _bias(rows: Tensor, similarity: Similarity) -> Tensor | float:
    return rows.square().sum(1) / 2 if similarity == "euclidean" else 0.0


def overlap_of_neighbors(
    near_x: Tensor, near_y: Tensor, ks: Sequence[int], overlap: Overlap
) -> dict[int, Tensor]:
    """Mean overlap of two neighbor lists at each k.

    Args:
        near_x: (n, max(ks)) indices, nearest first.
        near_y: as ``near_x``.
        ks: numbers of neighbors.
        overlap: see `knn_overlap`.
    """
    values = {}
    for k in ks:
        both = torch.cat((near_x[:, :k], near_y[:, :k]), dim=1).sort(dim=1).values
        shared = (both[:, 1:] == both[:, :-1]).sum(1).double()
        size = 2 * k - shared if overlap == "jaccard" else torch.full_like(shared, k)
        values[k] = (shared / size).mean()
    return values


def chance_overlap(k: int, num_samples: int, overlap: Overlap = "jaccard") -> float:
    """Expected `knn_overlap` of unrelated neighbor lists: the floor.

    Two random sets of k out of n - 1 share a hypergeometric number of samples, k^2 / (n - 1) on
    average.

    Example:
        >>> chance_overlap(10, 101, "mutual")
        0.1
    """
    check_neighbor_counts((k,), num_samples)
    if overlap == "mutual":
        return k / (num_samples - 1)
    others = num_samples - 1
    shared = torch.arange(max(0, 2 * k - others), k + 1, dtype=torch.float64)

    def log_choose(n: Tensor | int, r: Tensor | int) -> Tensor:
        n, r = torch.as_tensor(n, dtype=torch.float64), torch.as_tensor(r, dtype=torch.float64)
        return torch.lgamma(n + 1) - torch.lgamma(r + 1) - torch.lgamma(n - r + 1)

    log_share = log_choose(k, shared) + log_choose(others - k, k - shared) - log_choose(others, k)
    return float((log_share.exp() * shared / (2 * k - shared)).sum())
