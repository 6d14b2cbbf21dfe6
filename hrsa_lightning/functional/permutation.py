"""Permutation nulls: what a similarity is where the samples of one side are shuffled.

Shape legend: n samples, m judged samples, p permutations.

Nothing is computed anew that a permutation leaves as it is: Gram matrices are reordered, not
multiplied again; neighbor lists are renamed; a map that was fitted on one half is judged on
shuffled pairs of the other.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import SampleIds, check_ids, check_pair, split_halves
from hrsa_lightning.functional._moments import row_norms
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    SimilarityWarning,
    float64_mean,
    full_precision,
    in_units,
    rows_per_chunk,
    slices,
    unit_of,
)
from hrsa_lightning.functional.cka import centered, hsic_unbiased, linear_cka, standardized
from hrsa_lightning.functional.cknna import SparseKernel, cknna, hsic, sparse_kernels
from hrsa_lightning.functional.dimension_correlation import dimension_correlation
from hrsa_lightning.functional.knn import (
    Overlap,
    Similarity,
    knn_overlap,
    nearest_neighbors,
    overlap_of_neighbors,
    overlap_share,
)
from hrsa_lightning.functional.predictivity import linear_predictivity
from hrsa_lightning.functional.probe_transfer import (
    RidgeSamples,
    fit_ridge,
    linear_probe_transfer,
)
from hrsa_lightning.functional.procrustes import Protocol, orthogonal_procrustes
from hrsa_lightning.functional.reference import Reference

NUM_PERMUTATIONS = 200
LEVEL = 0.95
FEW = NUM_PERMUTATIONS
"""With more samples, what needs sums of products alone (all but accuracies) has the values of all
n - 1 cyclic shifts of the samples in a random order. Shifts form a group, so that p-values are
exact, and all of them cost less than two hundred random orders."""

MANY = 1024
"""Of more samples, neighbors are shuffled again: all shifts cost n^3."""

ROWS_AT_ONCE = 256

Values = dict[str | int, Tensor]


class PermutationNull(NamedTuple):
    """A value beside its permutation null: tensors, or dicts of them.

    Attributes:
        value: as the function gives it.
        level: that 95 % of the permuted values stay below (above, where small values mean alike).
        p_value: share of the permuted values as extreme as the value, which counts as one of them.
    """

    value: Any
    level: Any
    p_value: Any


def permutation_null(
    function: Callable[..., Any],
    x: Tensor,
    y: Tensor,
    *others: Tensor,
    num_permutations: int = NUM_PERMUTATIONS,
    lower_is_alike: bool = False,
    **options: Any,
) -> PermutationNull:
    r"""The 95 % level and the p-value of a similarity from permuted samples.

    A chance level is a mean; half of all unrelated pairs lie above it. Shuffling the rows of ``y``
    leaves all but their pairing with ``x`` as it is, so that the share of permuted values as large
    as the value, :math:`(1 + \#\{v_\pi \ge v\}) / (1 + p)`, is an exact p-value of
    the hypothesis that the pairing means nothing.

    For `linear_cka`, `knn_overlap`, `cknna`, `dimension_correlation` and what is held out
    (`orthogonal_procrustes`, `linear_predictivity`, `linear_probe_transfer`) a permutation costs a
    fraction of the value: see this module. Held-out values are permuted within the judged half, for
    the map that was fitted; inverse row entropy, which has no judged half, has NaN. Any other
    function is computed anew for each permutation. Of more than 200 samples, where sums of products
    are all that a value needs, the permutations are the n - 1 cyclic shifts of the samples in a
    random order: a group, so that the p-value is exact as well, and cheaper than 200 of the others.
    The same holds for neighbors among at most 1,024 samples.

    Args:
        function: takes ``x``, ``y``, ``others`` and ``options``, and gives a tensor, a named tuple
            or a mapping of tensors.
        x: (n, d_x) representations, floating point.
        y: (n, d_y) representations of the same samples.
        others: further tensors with one entry per sample, such as labels; they stay with ``y``.
        num_permutations: number of permutations, at least 19 for a 95 % level.
        lower_is_alike: whether small values of a function of your own mean alike.
        options: passed to the function.

    Returns:
        A `PermutationNull`: the value, and level and p-value as float64 tensors of its shape under
        its keys; NaN where the value is, or where there is no null.

    Raises:
        ValueError: if there are fewer than 19 permutations.

    Example:
        >>> x, noise = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
        >>> value, level, p_value = permutation_null(linear_cka, x, x + noise)
        >>> bool(0 < level < 0.2 < value), round(p_value.item(), 3)
        (True, 0.005)
    """
    check_num_permutations(num_permutations)
    value = function(x, y, *others, **options)
    orders = permutations(len(x), num_permutations, x.device)
    permuted = PERMUTED.get(function)
    if not any(bool(part.isfinite()) for part in by_key(value).values()):
        null: Values = {}
    elif permuted is not None:
        x, y = check_pair(x, y)
        with full_precision(x.device):
            null = permuted(x, y, orders, *others, **options)
    else:
        null = recomputed(lambda *rows: by_key(function(*rows, **options)), x, y, orders, *others)
    levels, p_values = compare(by_key(value), null, lower_is_alike)
    if isinstance(value, Tensor):
        return PermutationNull(value, levels[""], p_values[""])
    return PermutationNull(by_key(value), levels, p_values)


def check_num_permutations(num_permutations: int) -> None:
    """Raise unless they are enough for a 95 % level."""
    if num_permutations < 19:
        raise ValueError(
            f"Expected at least 19 permutations for a 95 % level, got {num_permutations}."
        )


def permutations(num_samples: int, num_permutations: int, device: torch.device) -> Tensor:
    """(p, n) int64, the same ones for the same sizes on every rank and device."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(num_samples, generator=generator) for _ in range(num_permutations)]
    return torch.stack(orders).to(device)


def by_key(value: Any) -> Values:
    """Values by key: that of a tensor is empty, those of a named tuple its fields of one number."""
    if isinstance(value, Tensor):
        return {"": value}
    if isinstance(value, Mapping):
        return dict(value)
    return {
        name: part for name, part in value._asdict().items() if part is not None and part.ndim == 0
    }


def compare(
    values: Mapping[Any, Tensor], null: Mapping[Any, Tensor], lower_is_alike: bool = False
) -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
    """Levels and p-values of values, from permuted ones (p,) under the same keys."""
    levels, p_values = {}, {}
    for key, value in values.items():
        found = null.get(key, torch.full_like(value, torch.nan)[None]).to(value)
        known = found.isfinite().all(0) & value.isfinite()
        nan = torch.full_like(value, torch.nan)
        lower = lower_is_alike or "residual" in str(key)
        level = found.nan_to_num().quantile(1 - LEVEL if lower else LEVEL, dim=0)
        extreme = found <= value if lower else found >= value
        levels[key] = level.where(known, nan)
        p_values[key] = ((1 + extreme.sum(0)).double() / (1 + len(found))).where(known, nan)
    return levels, p_values


def recomputed(
    function: Callable[..., Values], x: Tensor, y: Tensor, orders: Tensor, *others: Tensor
) -> Values:
    """Permuted values of any function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SimilarityWarning)  # the value itself has warned
        found = [function(x, y[order], *(part[order] for part in others)) for order in orders]
    return {key: torch.stack([one[key] for one in found]) for key in found[0]}


def permuted_cka(
    x: Tensor, y: Tensor, orders: Tensor, standardize: bool, chunk_bytes: int
) -> tuple[Tensor, Tensor]:
    """Plain and debiased linear CKA, (p,) each, or one for each shift of many samples.

    Up to `FEW` samples, the Gram matrix of ``y`` is reordered. Beyond, see `_shifted_products`.
    """
    if standardize:
        x, y = standardized(x, chunk_bytes), standardized(y, chunk_bytes)
    x, y = centered(x), centered(y)
    n, k, ell = len(x), row_norms(x), row_norms(y)
    if n > FEW:
        x, y, k, ell = (part[orders[0]] for part in (x, y, k, ell))
        xx, yy, xy = _shifted_products(x, y, chunk_bytes)
        diagonal = _correlated(k, ell)[1:]
    else:
        left, right = x @ x.mT, y @ y.mT
        xx, yy = row_norms(left).sum(), row_norms(right).sum()
        turned = (right[order][:, order] for order in orders)
        xy = torch.stack([(left * part).sum(1).double().sum() for part in turned])
        diagonal = ell[orders] @ k
    plain = xy / (xx * yy).sqrt()
    traces = k.sum(), ell.sum()
    xx = hsic_unbiased(xx, k.dot(k), traces[0], traces[0], n)
    yy = hsic_unbiased(yy, ell.dot(ell), traces[1], traces[1], n)
    xy = hsic_unbiased(xy, diagonal, *traces, n)
    return plain, xy / (xx * yy).sqrt()


def _shifted_products(x: Tensor, y: Tensor, chunk_bytes: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""<K, K>, <L, L>, and <K, L> with the samples of L shifted by each s from 1 to n - 1.

    :math:`\sum_{ij} K_{ij} L_{i+s,j+s}` is, for each lag j - i, a circular correlation along i:
    Fourier transforms of the wrapped diagonals give all shifts at once, in the time of few. As
    diagonals of opposite lags are equal up to a shift, half of them are enough.
    """
    n = len(x)
    norms = torch.zeros(2, dtype=torch.float64, device=x.device)
    spectrum = torch.zeros(n // 2 + 1, dtype=torch.complex128, device=x.device)
    for lags in slices(n // 2 + 1, rows_per_chunk(8 * n * x.element_size(), chunk_bytes)):
        weight = torch.full((lags.stop - lags.start,), 2.0, dtype=x.dtype, device=x.device)
        for own in (0, n // 2 if n % 2 == 0 else 0):  # these lags are their own opposites
            if lags.start <= own < lags.stop:
                weight[own - lags.start] = 1
        sides = [_diagonals(rows, lags) for rows in (x, y)]
        norms += torch.stack([(row_norms(side) * weight).sum() for side in sides])
        left, right = (torch.fft.rfft(side) for side in sides)
        spectrum += (left.conj().mul_(right).mul_(weight[:, None])).sum(0, dtype=torch.complex128)
    return norms[0], norms[1], torch.fft.irfft(spectrum, n)[1:]


def _diagonals(x: Tensor, lags: slice) -> Tensor:
    """K_(i, i + lag) for each lag and row, (lags, n), of the Gram matrix of rows."""
    n, width = len(x), lags.stop - lags.start
    found = x.new_empty(width, n)
    for rows in slices(n, ROWS_AT_ONCE):
        size = rows.stop - rows.start
        columns = torch.arange(rows.start + lags.start, rows.stop + lags.stop - 1, device=x.device)
        block = x[rows] @ x[columns % n].mT
        found[:, rows] = block.as_strided((size, width), (block.shape[1] + 1, 1)).mT
    return found


def _correlated(x: Tensor, y: Tensor) -> Tensor:
    """Sums of x_i y_(i + s) over the first dimension, for each s from 0."""
    products = torch.fft.rfft(x, dim=0).conj() * torch.fft.rfft(y, dim=0)
    sums: Tensor = torch.fft.irfft(products, len(x), dim=0)
    return sums


def permuted_overlaps(
    near_x: Tensor, near_y: Tensor, orders: Tensor, ks: tuple[int, ...], overlap: Overlap
) -> Values:
    """k-NN overlap at each k from neighbor lists, (p,) each, or one for each shift."""
    n = len(near_x)
    if not FEW < n <= MANY:
        found = [
            overlap_of_neighbors(near_x, order.argsort()[near_y[order]], ks, overlap)
            for order in orders
        ]
        return {k: torch.stack([values[k] for values in found]) for k in ks}
    # With neighbors counted from their own row, row i meets row i + s unchanged: one product of
    # both membership matrices has what any two rows share.
    order, rows = orders[0], torch.arange(n, device=near_x.device)
    sides = [(order.argsort()[near[order]] - rows[:, None]) % n for near in (near_x, near_y)]
    partners = (rows[:, None] + rows[1:]) % n
    values: Values = {}
    for k in ks:
        left, right = (
            torch.zeros(n, n, device=rows.device).scatter_(1, side[:, :k], 1.0) for side in sides
        )
        with full_precision(rows.device):
            shared = (left @ right.mT).gather(1, partners)
        values[k] = overlap_share(shared.double(), k, overlap).mean(0)
    return values


def permuted_correlation(x: Tensor, y: Tensor, orders: Tensor, chunk_bytes: int) -> Values:
    """Mean and median of the dimension-wise correlation, (p,) each, or one for each shift."""
    x, y = standardized(x, chunk_bytes), standardized(y, chunk_bytes)
    varies = (x != 0).any(0) & (y != 0).any(0)
    if not bool(varies.any()):
        undefined = torch.full((len(orders),), torch.nan, dtype=torch.float64, device=x.device)
        return {"mean": undefined, "median": undefined}
    x, y = x[:, varies], y[:, varies]
    if len(x) > FEW:
        values = _correlated(x[orders[0]], y[orders[0]])[1:] / len(x)
    else:
        values = torch.stack([(x * y[order]).mean(0) for order in orders])
    return {"mean": values.mean(1).double(), "median": values.quantile(0.5, dim=1).double()}


def permuted_procrustes(
    x: Tensor, y: Tensor, orders: Tensor, judged: Tensor, rotation: Tensor
) -> Values:
    """Held-out values of a fitted rotation, (p,) each, in the order of `ProcrustesResult`."""
    unit_x, unit_y = unit_of(x), unit_of(y)
    left, right = in_units(x[judged], unit_x), in_units(y[judged], unit_y)
    left, right = ((v - float64_mean(v, 1, DEFAULT_CHUNK_BYTES).to(v)) for v in (left, right))
    norms_x, norms_y, orders = row_norms(left), row_norms(right), within(orders, judged)
    turned = left @ rotation.to(left)
    inner, total_x, total_y = _paired_sums(turned, right, orders), norms_x.sum(), norms_y.sum()
    size = unit_x / unit_y
    turned, right = (
        rows * norms.rsqrt().nan_to_num(posinf=0)[:, None].to(rows)
        for rows, norms in ((turned, norms_x), (right, norms_y))
    )
    return {
        "residual_variance_ratio": (total_x * size - 2 * inner) * size / total_y + 1,
        "global_cosine": inner / (total_x * total_y).sqrt(),
        "mean_cosine": _paired_sums(turned, right, orders) / len(right),
    }


def _paired_sums(x: Tensor, y: Tensor, orders: Tensor) -> Tensor:
    """Sums of x times permuted y, float64 (p,), or of each shift of more than `FEW` samples."""
    if len(x) <= FEW:
        return torch.stack([(x * y[order]).sum(1).double().sum() for order in orders])
    left, right = (torch.fft.rfft(rows[orders[0]], dim=0) for rows in (x, y))
    spectrum = left.conj().mul_(right).sum(1, dtype=torch.complex128)
    sums: Tensor = torch.fft.irfft(spectrum, len(x))
    return sums[1:]


def permuted_map(
    source: Tensor,
    target: Tensor,
    scored: Tensor,
    num_classes: int | None,
    orders: Tensor,
    judged: Tensor,
    regularization: float,
    chunk_bytes: int,
) -> Tensor:
    """Held-out scores (p,) of the ridge map from ``source`` to ``target``, for ``scored`` rows.

    Args:
        source: (n, d) rows that the map is fitted on.
        target: (n, t) values or (n,) classes.
        scored: (n, d) rows whose outputs are compared with permuted targets.
        num_classes: None for values.
        orders: (p, n).
        judged: (n,) bool.
        regularization: weight of the ridge penalty.
        chunk_bytes: bound of the working memory of the fit.
    """
    unit, target_unit = unit_of(source), 1.0 if num_classes else unit_of(target)

    def samples(rows: Tensor, chosen: Tensor) -> RidgeSamples:
        return RidgeSamples(rows, unit, chosen, target, target_unit, num_classes, chunk_bytes)

    ridge = fit_ridge(samples(source, ~judged), regularization)
    outputs = torch.cat([ridge.outputs(rows) for rows, _ in samples(scored, judged).parts()])
    if num_classes is not None:
        hits = outputs.argmax(1) == target[judged][within(orders, judged)]
        return hits.double().mean(1)
    targets = in_units(target[judged].double(), target_unit)
    mean = targets.mean(0)
    outputs, targets = outputs - mean, targets - mean
    inner = _paired_sums(outputs, targets, within(orders, judged))
    return (2 * inner - outputs.square().sum()) / targets.square().sum()


def within(orders: Tensor, judged: Tensor) -> Tensor:
    """(p, m) permutations of the judged samples alone."""
    return orders[:, judged].argsort(1)


def _of_cka(
    x: Tensor,
    y: Tensor,
    orders: Tensor,
    debiased: bool = True,
    *,
    standardize: bool = False,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    **_: Any,
) -> Values:
    return {"": permuted_cka(x, y, orders, standardize, chunk_bytes)[int(debiased)]}


def _of_knn(
    x: Tensor,
    y: Tensor,
    orders: Tensor,
    k: int | Sequence[int] = 10,
    similarity: Similarity = "cosine",
    overlap: Overlap = "jaccard",
    *,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    **_: Any,
) -> Values:
    ks = (k,) if isinstance(k, int) else tuple(k)
    near_x, near_y = (nearest_neighbors(v, ks, similarity, chunk_bytes).indices for v in (x, y))
    found = permuted_overlaps(near_x, near_y, orders, ks, overlap)
    return {"": found[k]} if isinstance(k, int) else found


def _of_cknna(
    x: Tensor,
    y: Tensor,
    orders: Tensor,
    k: int = 10,
    *,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    **_: Any,
) -> Values:
    kernels = sparse_kernels(x, y, Reference(y), k, chunk_bytes)
    return {} if kernels is None else {"": permuted_alignment(*kernels, orders)}


def permuted_alignment(x: SparseKernel, y: SparseKernel, orders: Tensor) -> Tensor:
    """CKNNA, (p,)."""
    norm = (hsic(x, x) * hsic(y, y)).sqrt()
    return torch.stack([hsic(x, y.permuted(order)) for order in orders]) / norm


def _of_correlation(
    x: Tensor, y: Tensor, orders: Tensor, *, chunk_bytes: int = DEFAULT_CHUNK_BYTES, **_: Any
) -> Values:
    return permuted_correlation(x, y, orders, chunk_bytes)


def _of_procrustes(
    x: Tensor,
    y: Tensor,
    orders: Tensor,
    protocol: Protocol = "held_out",
    *,
    y_ids: SampleIds | None = None,
    x_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    **_: Any,
) -> Values:
    options: dict[str, Any] = {"chunk_bytes": chunk_bytes, "x_ids": x_ids, "y_ids": y_ids}
    if protocol != "held_out":
        return recomputed(
            lambda x, y: by_key(orthogonal_procrustes(x, y, protocol, **options)), x, y, orders
        )
    judged = split_halves(y, check_ids(x_ids, y_ids, len(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SimilarityWarning)
        fitted = orthogonal_procrustes(x, y, return_rotation=True, **options)
    if fitted.rotation is None:
        return {}
    return permuted_procrustes(x, y, orders, judged, fitted.rotation)


def permuted_predictivity(
    x: Tensor,
    y: Tensor,
    orders: Tensor,
    *,
    regularization: float = 1e-5,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Values:
    judged = split_halves(y, check_ids(x_ids, y_ids, len(x)))
    rest = (None, orders, judged, regularization, chunk_bytes)
    return {
        "forward": permuted_map(x, y, x, *rest),
        "backward": permuted_map(y, x, y, *rest),
    }


def permuted_probe(
    x: Tensor,
    y: Tensor,
    orders: Tensor,
    labels: Tensor,
    *,
    regularization: float = 1e-3,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Values:
    judged = split_halves(y, check_ids(x_ids, y_ids, len(x)))
    num_classes = None
    if labels.is_floating_point():
        labels = labels[:, None]
    else:
        classes, labels = torch.unique(labels, return_inverse=True)
        num_classes = len(classes)
    rest = (num_classes, orders, judged, regularization, chunk_bytes)
    return {"transfer": permuted_map(y, labels, x, *rest)}


PERMUTED: dict[Callable[..., Any], Callable[..., Values]] = {
    linear_cka: _of_cka,
    knn_overlap: _of_knn,
    cknna: _of_cknna,
    dimension_correlation: _of_correlation,
    orthogonal_procrustes: _of_procrustes,
    linear_predictivity: permuted_predictivity,
    linear_probe_transfer: permuted_probe,
}
"""How each function is permuted without computing it anew."""
