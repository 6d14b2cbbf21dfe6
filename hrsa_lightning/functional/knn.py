"""Overlap of nearest neighbors: local geometry."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import (
    SampleIds,
    check_choice,
    check_ids,
    check_pair,
    sample_keys,
)
from hrsa_lightning.functional._moments import CENTER_ROWS, location, row_norms
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    full_precision,
    in_units,
    is_finite,
    rows_per_chunk,
    scalar_nan,
    slices,
    unit_of,
    warn,
    warn_nan,
)
from hrsa_lightning.functional.reference import Reference, unwrap

Similarity = Literal["cosine", "euclidean"]
Overlap = Literal["jaccard", "mutual"]
SIMILARITIES = ("cosine", "euclidean")
OVERLAPS = ("jaccard", "mutual")

ROUNDING = 8.0
"""Scores closer than this many roundings of their terms are decided in float64."""

SPARE = 8
"""Candidates beyond the k nearest that are compared in float64 before all rows are."""

WIDE = 2.0**60
"""Squared norms of rows up to this, and down to its inverse, do as they are."""

COLLAPSED = 8.0
"""Unit vectors whose features differ by no more than so many roundings have one direction."""

MANY_TIES = 0.5
"""A warning tells when more than this share of the rows have ties at rank k."""

ROWS_PER_PRODUCT = 256

LINE = 16
"""Rows of scores begin an odd number of so many values apart: rows that lie a power of two apart
share few places in a cache, and products into them take up to a fifth longer."""

TABLE_BYTES = 2 * 2**20
"""Room for the places of all samples in the lists of some rows: small enough for a cache."""

COLUMNS_PER_GROUP = 8
"""The k largest of a row are looked for in the k groups of columns with the largest maxima."""


@overload
def knn_overlap(
    x: Tensor,
    y: Tensor | Reference,
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
    y: Tensor | Reference,
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
    y: Tensor | Reference,
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
    spaces, also those of unequal rows of small integers or bits. Similarities too close to call in
    float32 are decided in float64. A warning tells when many rows have ties at rank k.

    Args:
        x: (n, d_x) representations, floating point.
        y: (n, d_y) representations of the same samples, or a `Reference`.
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
        finite or all its rows are equal (for cosine: have one direction).

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
    y, reference = unwrap(y)
    x, rows_y = check_pair(x, y)
    check_neighbor_counts(ks, x.shape[0])
    check_ids(x_ids, y_ids, x.shape[0])
    with full_precision(x.device):
        found = neighbors_of_both("k-NN overlap", x, rows_y, reference, ks, similarity, chunk_bytes)
        if found is None:
            values = {size: scalar_nan(x) for size in ks}
        else:
            values = overlap_of_neighbors(*found, ks, overlap)
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


class Neighbors(NamedTuple):
    """Nearest other rows of each row.

    Attributes:
        indices: (n, max(ks)) int64; for each k the first k of a row are its k nearest.
        tied: share of the rows whose k-th neighbor is as near as the next one, for each k.
        collapsed: whether all rows are equal (for cosine: have one direction).
    """

    indices: Tensor
    tied: Tensor
    collapsed: bool


def neighbors_of_both(
    metric: str,
    x: Tensor,
    y: Tensor,
    reference: Reference,
    ks: Sequence[int],
    similarity: Similarity,
    chunk_bytes: int,
) -> tuple[Tensor, Tensor] | None:
    """Neighbor lists of ``x`` and of ``y``, (n, max(ks)); None, with a warning, if one has none.

    Those of ``y`` are kept in its reference.
    """
    if not all(is_finite(rows) for rows in (x, y)):
        warn_nan(metric, "an input is not finite")
        return None
    near = (
        nearest_neighbors(x, ks, similarity, chunk_bytes),
        reference.keep(
            ("neighbors", tuple(ks), similarity),
            lambda: nearest_neighbors(y, ks, similarity, chunk_bytes),
        ),
    )
    if near[0].collapsed or near[1].collapsed:
        what = "the rows of a representation are equal"
        warn_nan(metric, what if similarity == "euclidean" else f"{what} up to their norm")
        return None
    tied, place = torch.maximum(near[0].tied, near[1].tied).max(0)
    if bool(tied > MANY_TIES):
        warn(
            f"{metric}: {float(tied):.0%} of the rows have neighbors of one distance at "
            f"k = {ks[int(place)]}; which of them count follows the order of the rows."
        )
    return near[0].indices, near[1].indices


def nearest_neighbors(
    x: Tensor, ks: Sequence[int], similarity: Similarity, chunk_bytes: int
) -> Neighbors:
    """Nearest other rows of each row, ties by index.

    Args:
        x: (n, d), float32 or float64, finite.
        ks: numbers of neighbors.
        similarity: see `knn_overlap`.
        chunk_bytes: bound of the working memory for similarities (and for a copy of rows whose
            products would leave the range of their dtype).
    """
    k, n = max(ks), len(x)
    # What a row is divided by changes no cosine.
    cosine = similarity == "cosine"
    x = with_norms_in_range(x) if cosine else in_units(x, unit_of(x))
    rows, norms, half_norms = _centered_rows(x, similarity)
    if _is_one_point(rows, similarity):
        everything = torch.ones(len(ks), dtype=torch.float64, device=x.device)
        return Neighbors(torch.zeros(n, k, dtype=torch.int64, device=x.device), everything, True)
    values, found = _search(rows, half_norms, min(k + SPARE, n), chunk_bytes)
    # What rounding to float32 may have moved: rows, their products, and half norms.
    room = norms + norms[found[:, :k]].max(1).values
    room *= ROUNDING * torch.finfo(rows.dtype).eps
    places = torch.tensor(ks, device=x.device) - 1
    borders = values[:, places] - values[:, (places + 1).clamp(max=n - 1)]
    doubtful = (borders <= room[:, None]).any(1)
    settled = values[:, -1] < values[:, k - 1] - room  # no row beside the candidates comes into it
    near = found[:, :k].clone()
    tied = torch.zeros(n, len(ks), dtype=torch.bool, device=x.device)
    if bool(doubtful.any()):
        between, among_all = ((doubtful & rest).nonzero()[:, 0] for rest in (settled, ~settled))
        candidates = found[between]
        del rows, values, found
        center = _element_center(x) if similarity == "euclidean" else None
        step = rows_per_chunk(4 * candidates.shape[1] * x.shape[1] * 8, -(-chunk_bytes // 4))
        for part, some in zip(
            torch.split(between, step), torch.split(candidates, step), strict=True
        ):
            near[part], tied[part] = _decide(x, part, some, center, places)
        if len(among_all):
            near[among_all], tied[among_all] = _exact_neighbors(
                x, among_all, places, center, chunk_bytes
            )
    return Neighbors(near, tied.double().mean(0), False)


def with_norms_in_range(x: Tensor) -> Tensor:
    """Rows, each divided by a power of two of its own where norms leave the range of the dtype."""
    norms = row_norms(x)
    if bool(((norms > 1 / WIDE) & (norms < WIDE)).all()):
        return x
    low, high = torch.aminmax(x, dim=1, keepdim=True)
    most = 126 if x.dtype == torch.float32 else 1022
    exponent = torch.frexp(torch.maximum(-low, high)).exponent.clamp(-most, most)
    return torch.ldexp(x, -exponent)


def _is_one_point(rows: Tensor, similarity: Similarity) -> bool:
    """Whether rows of `_centered_rows` are all the same, for unit vectors up to their rounding."""
    least = COLLAPSED * torch.finfo(rows.dtype).eps if similarity == "cosine" else 0
    for some in (rows[:: max(1, len(rows) // CENTER_ROWS)], rows):
        low, high = torch.aminmax(some, dim=0)
        if bool((high - low > least).any()):
            return False
    return True


def _element_center(x: Tensor) -> Tensor:
    """(d,) median of each feature over some rows, float64: differences of integers stay exact."""
    few = x[:: max(1, x.shape[0] // CENTER_ROWS)]
    # `median(0)` has no deterministic implementation on CUDA.
    return few.sort(0).values[(len(few) - 1) // 2].double()


def _decide(
    x: Tensor, chosen: Tensor, candidates: Tensor, center: Tensor | None, places: Tensor
) -> tuple[Tensor, Tensor]:
    """The nearest candidates of some rows by float64 similarity, ties by index, and where they tie.

    Args:
        x: (n, d).
        chosen: (m,) rows.
        candidates: (m, c) rows among which their neighbors are.
        center: (d,) for Euclidean distances, None for cosines.
        places: k - 1 for each k.
    """
    candidates = candidates.sort(dim=1).values
    left = _exact_rows(x[chosen], center)[:, None]
    right = _exact_rows(x[candidates.flatten()], center).view(*candidates.shape, x.shape[1])
    exact = _exact_scores((left * right).sum(2), right.square().sum(2), center)
    exact[candidates == chosen[:, None]] = -torch.inf
    exact, order = exact.sort(dim=1, descending=True, stable=True)
    k = int(places.max()) + 1
    return candidates.gather(1, order[:, :k]), _ties(exact, places)


def _ties(exact: Tensor, places: Tensor) -> Tensor:
    """Whether the values at some places of falling rows are as large as the next ones."""
    following = exact[:, (places + 1).clamp(max=exact.shape[1] - 1)]
    return (exact[:, places] == following) & (places < exact.shape[1] - 1)


def _exact_scores(products: Tensor, norms: Tensor, center: Tensor | None) -> Tensor:
    """What orders rows by their similarity to one row, exactly for integers.

    Minus half of the squared distance, up to the norm of that row; for cosines their square with
    its sign, times that norm.
    """
    if center is not None:
        return products - norms / 2
    return products * products.abs() / norms.masked_fill(norms == 0, 1)


def _centered_rows(x: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor, Tensor]:
    """Rows whose Euclidean neighbors are the wanted ones, around a center.

    For cosine these are unit vectors: their distance orders as their cosine does. Centering keeps
    the differences of vectors that all point in nearly the same direction.

    Returns:
        (n, d); (n,) squared norms, float64; and (n,) what half of them takes from each score.
    """
    center = location(x).to(x.dtype)
    rows = x - center
    if similarity == "euclidean":
        norms = row_norms(rows)
        return rows, norms, (norms / 2).to(x.dtype)
    squares, shifted, wide = row_norms(x), row_norms(rows), center.double()
    # Near the center the norm follows from the small difference, with more digits.
    expanded = shifted + 2 * (rows @ center).double() + wide.dot(wide)
    norms = torch.where(16 * shifted < squares, expanded, squares).sqrt()
    zero = squares == 0
    inverse = (1 / norms).masked_fill(zero, 0)
    typical = inverse.median()
    rows *= inverse[:, None].to(x.dtype)
    rows.addr_((inverse - typical).to(x.dtype), center)
    norms = row_norms(rows)
    # A row of zeros has cosine 0 with every other.
    return rows, norms, ((norms + zero) / 2).to(x.dtype)


def _search(rows: Tensor, half_norms: Tensor, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the k largest scores of each row; each product is computed once.

    The score of i and j is -|i - j|^2 / 2 from products and half norms, -inf for i itself. Squares
    on the diagonal come first: the k-th best found there lets little of the others through.
    """
    n = len(rows)
    values = rows.new_full((n, k), -torch.inf)
    found = torch.zeros(n, k, dtype=torch.int64, device=rows.device)
    scores_bytes = max(chunk_bytes - rows.nbytes, -(-chunk_bytes // 4))
    most = math.isqrt(rows_per_chunk(3 * rows.element_size(), scores_bytes))
    side = -(-n // -(-n // most))
    blocks = slices(n, side)
    buffer = rows.new_empty(side, (-(-side // LINE) | 1) * LINE)
    for block in blocks:
        scores = _own_products(rows[block], buffer)
        scores.sub_(half_norms[block]).sub_(half_norms[block, None])
        scores.diagonal().fill_(-torch.inf)
        best, columns = _largest(scores, min(k, len(scores)))
        values[block, : len(scores)], found[block, : len(scores)] = best, columns + block.start
    for number, block in enumerate(blocks):
        for other in blocks[number + 1 :]:
            scores = buffer[: len(rows[block]), : len(rows[other])]
            torch.matmul(rows[block], rows[other].mT, out=scores)
            scores.sub_(half_norms[other]).sub_(half_norms[block, None])
            _keep_better(values[block], found[block], scores, other.start)
            _keep_better(values[other], found[other], scores.mT, block.start)
    return values, found


def _own_products(rows: Tensor, buffer: Tensor) -> Tensor:
    """Inner products of rows with each other in a buffer, each computed once."""
    size = len(rows)
    result = buffer[:size, :size]
    for top in range(0, size, ROWS_PER_PRODUCT):
        end = min(top + ROWS_PER_PRODUCT, size)
        torch.matmul(rows[top:end], rows[top:].mT, out=result[top:end, top:])
        result[end:, top:end] = result[top:end, end:].mT
    return result


def _keep_better(values: Tensor, found: Tensor, scores: Tensor, offset: int) -> None:
    """`_keep_best` where few scores are better than the least of the k best of their row."""
    k = values.shape[1]
    across = scores.stride(1) != 1  # memory is read in its own order
    better = scores.mT > values[:, -1] if across else scores > values[:, -1:]
    if int(better.count_nonzero()) > k * len(values):
        _keep_best(values, found, scores.contiguous(), offset)
        return
    row, column = better.nonzero().unbind(1)
    if across:
        column, (row, order) = row, column.sort(stable=True)
        column = column[order]
    changed, line, counts = torch.unique_consecutive(row, return_inverse=True, return_counts=True)
    if len(changed) == 0:
        return
    place = torch.arange(k, k + len(row), device=row.device) - (counts.cumsum(0) - counts)[line]
    size = (len(changed), k + int(counts.max()))
    new_values = values.new_full(size, -torch.inf)
    new_found = found.new_zeros(size)
    new_values[:, :k], new_found[:, :k] = values[changed], found[changed]
    new_values[line, place] = scores[row, column]
    new_found[line, place] = column + offset
    best, order = new_values.topk(k)
    values[changed], found[changed] = best, new_found.gather(1, order)


def _keep_best(values: Tensor, found: Tensor, scores: Tensor, offset: int) -> None:
    """Merge scores of the columns from ``offset`` on into the k best of each row, in place."""
    k = values.shape[1]
    new_values, new_found = _largest(scores, min(k, scores.shape[1]))
    new_values = torch.cat((values, new_values), dim=1)
    new_found = torch.cat((found, new_found + offset), dim=1)
    best, order = new_values.topk(k)
    values.copy_(best)
    found.copy_(new_found.gather(1, order))


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` of each row, faster where k is small beside the number of columns."""
    columns = scores.shape[1]
    groups = columns // COLUMNS_PER_GROUP
    if groups < 4 * k:
        return scores.topk(k)
    end = groups * COLUMNS_PER_GROUP
    best = scores[:, :end].view(-1, COLUMNS_PER_GROUP, groups).amax(1)
    chosen = best.topk(k, sorted=False).indices[:, None]
    members = torch.arange(0, end, groups, device=scores.device)[:, None]
    rest = torch.arange(end, columns, device=scores.device).expand(len(scores), -1)
    candidates = torch.cat(((chosen + members).flatten(1), rest), dim=1)
    values, order = scores.gather(1, candidates).topk(k)
    return values, candidates.gather(1, order)


def _exact_neighbors(
    x: Tensor, chosen: Tensor, places: Tensor, center: Tensor | None, chunk_bytes: int
) -> tuple[Tensor, Tensor]:
    """`_decide` among all rows."""
    n, d = x.shape
    same, k = _first_equal_row(x), int(places.max()) + 1
    half = -(-chunk_bytes // 2)
    step, columns = rows_per_chunk(5 * n * 8, half), rows_per_chunk(3 * d * 8, half)
    found, tied = [], []
    for part in torch.split(chosen, step):
        left = _exact_rows(x[same[part]], center)
        scores = torch.empty(len(part), n, dtype=torch.float64, device=x.device)
        for start in range(0, n, columns):
            right = _exact_rows(x[start : start + columns], center)
            block = scores[:, start : start + columns]
            block.copy_(_exact_scores(left @ right.mT, right.square().sum(1), center))
        # Equal rows get equal scores, which products of different blocks do not promise.
        scores = scores[:, same]
        scores.scatter_(1, part[:, None], -torch.inf)
        best = scores.topk(min(k + 1, n)).values
        tied.append(_ties(best, places))
        found.append(_first_largest(scores, best[:, k - 1 : k], k))
    return torch.cat(found), torch.cat(tied)


def _first_largest(scores: Tensor, least: Tensor, k: int) -> Tensor:
    """Indices of the k scores of each row from ``least`` on in their order, ties by index."""
    above, equal = scores > least, scores == least
    equal &= equal.cumsum(1) <= k - above.sum(1, keepdim=True)
    chosen = (above | equal).nonzero()[:, 1].view(-1, k)
    order = scores.gather(1, chosen).sort(dim=1, descending=True, stable=True).indices
    return chosen.gather(1, order)


def _exact_rows(x: Tensor, center: Tensor | None) -> Tensor:
    return x.double() if center is None else x.double() - center


def _first_equal_row(x: Tensor) -> Tensor:
    """Index of the first row equal to each row, (n,)."""
    index = torch.arange(len(x), device=x.device)
    _, group = torch.unique(sample_keys(x, None), return_inverse=True)
    first = torch.full_like(index, len(x)).scatter_reduce(0, group, index, "amin")[group]
    again = (first != index).nonzero()[:, 0]
    equal = (x[again] == x[first[again]]).all(1)
    return index.index_put((again,), torch.where(equal, first[again], again))


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
    n, widest = near_x.shape
    dtype = torch.int16 if widest < 2**15 else torch.int32
    step = min(n, rows_per_chunk(dtype.itemsize * n, TABLE_BYTES))
    # Place of every sample in the second list of some rows; one that is in both lists of a row
    # counts from the later place on.
    table = torch.full((step, n), widest, dtype=dtype, device=near_x.device)
    places = torch.arange(widest, dtype=dtype, device=near_x.device).expand(step, -1)
    later = torch.empty_like(near_x, dtype=dtype)
    for start in range(0, n, step):
        first, second = near_x[start : start + step], near_y[start : start + step]
        part, own = table[: len(first)], places[: len(first)]
        part.scatter_(1, second, own)
        torch.maximum(part.gather(1, first), own, out=later[start : start + step])
        part.scatter_(1, second, widest)
    values = {}
    for k in ks:
        values[k] = overlap_share((later < k).sum(1).double(), k, overlap).mean()
    return values


def overlap_share(shared: Tensor, k: int, overlap: Overlap) -> Tensor:
    """The overlap of two sets of k neighbors that have so many in common."""
    return shared / (2 * k - shared if overlap == "jaccard" else k)


def chance_overlap(k: int, num_samples: int, overlap: Overlap = "jaccard") -> float:
    """Expected `knn_overlap` of unrelated neighbor lists: the chance level.

    Two random sets of k out of n - 1 share a hypergeometric number of samples, k^2 / (n - 1) on
    average.

    Args:
        k: number of neighbors.
        num_samples: number of samples n, more than k.
        overlap: see `knn_overlap`.

    Returns:
        A number in (0, 1].

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
