"""Orthogonal Procrustes: how well a rotation turns one representation into another."""

import math
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import (
    SampleIds,
    check_choice,
    check_ids,
    check_pair,
    split_halves,
)
from hrsa_lightning.functional._moments import PairMoments
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    full_precision,
    in_units,
    is_finite,
    row_chunks,
    scalar_nan,
    unit_of,
    warn_nan,
)
from hrsa_lightning.functional._polar import (
    Polar,
    least_share,
    polar_factor,
    quick_polar,
    settles_all,
)

Protocol = Literal["held_out", "in_sample", "paper"]
PROTOCOLS = ("held_out", "in_sample", "paper")
ROWS_PER_PRODUCT = 512
"""Few enough rows to stay in the cache between the steps of a cosine."""

FAR = 2.0
"""Judged as they are, means this many deviations off the origin need every digit of a rotation."""

CLOSE = 0.02
"""What is left of two representations must be more than this share of them for float32 sums to say
how much it is: it is their difference, in which rounding of 1e-7 stays."""


class ProcrustesResult(NamedTuple):
    """Values of `orthogonal_procrustes`; all scalars are float64.

    Attributes:
        residual_variance_ratio: scalar, 0 for a perfect alignment.
        global_cosine: scalar in [-1, 1], 1 for a perfect alignment.
        mean_cosine: scalar in [-1, 1]: mean of the cosines of matched rows.
        inverse_row_entropy: scalar in [0, 1], 1 where the rotation only permutes and flips axes.
        rotation: (d_x, d_y), if it was asked for.
    """

    residual_variance_ratio: Tensor
    global_cosine: Tensor
    mean_cosine: Tensor
    inverse_row_entropy: Tensor
    rotation: Tensor | None = None


class AlignmentSpectrum(NamedTuple):
    """Values of `alignment_spectrum`, float64.

    Attributes:
        singular_values: (k,), falling: those of the cross-covariance, at most min(d_x, d_y, n - 1).
        row_entropies: (d_x,) in [0, 1]: how evenly the rotation spreads each feature of ``x``.
    """

    singular_values: Tensor
    row_entropies: Tensor


def orthogonal_procrustes(
    x: Tensor,
    y: Tensor,
    protocol: Protocol = "held_out",
    *,
    return_rotation: bool = False,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> ProcrustesResult:
    r"""Align ``x`` to ``y`` by the best orthogonal matrix and measure what is left.

    :math:`O^* = U V'` from the SVD of :math:`X_c'Y_c` minimizes :math:`\|X_c O - Y_c\|_F`
    (Schönemann 1966). Reported are

    - ``residual_variance_ratio``: :math:`\|X O^* - Y\|^2 / \|Y\|^2`, 0 for a perfect alignment and
      2 for unrelated representations of equal size;
    - ``global_cosine``: :math:`\langle X O^*, Y\rangle / (\|X\| \|Y\|)`, in [-1, 1];
    - ``mean_cosine``: the mean over samples of the cosine of :math:`x_i O^*` and :math:`y_i`;
    - ``inverse_row_entropy``: 1 minus the mean over rows of :math:`H(o_{ij}^2) / \ln d`, 1 when
      :math:`O^*` only permutes and flips axes (arXiv 2601.21192). Its value for a random rotation
      is `random_rotation_inverse_row_entropy`.

    A rotation fitted and judged on the same few samples looks good on unrelated data. So the
    default fits it on one half of the samples and judges it on the other. Halves are decided by
    ``x_ids``/``y_ids``, or else by where the rows of ``y`` lie along a fixed direction; either way
    batches, order, ranks and scale do not matter. Where the optimum is not unique (fewer samples
    than features), directions it leaves open count as unaligned, which is their average over all
    optima.

    Args:
        x: (n, d_x) representations, floating point.
        y: (n, d_y) representations of the same samples, the reference. The narrower of two widths
            is taken as padded with zeros.
        protocol: ``"held_out"`` (above); ``"in_sample"``, fitted and judged on all samples;
            ``"paper"``, the authors' definition: fitted on centered, judged on uncentered data.
        return_rotation: whether to return the fitted :math:`O^*`, (d_x, d_y).
        x_ids: ids of the rows of ``x``, int or str.
        y_ids: ids of the rows of ``y``; must equal ``x_ids``.
        chunk_bytes: bound of the working memory beside inputs and moments.

    Returns:
        A `ProcrustesResult`. Values are NaN, with a warning, if an input is not finite or has no
        variance. ``inverse_row_entropy`` belongs to the rotation fitted on all samples under
        every protocol, and is NaN where that is not unique: n - 1 < d, vanishing singular values,
        or different widths.

    Raises:
        ValueError: if shapes or ids do not match, the protocol is unknown, or there are too few
            samples (2; 4 for ``"held_out"``).
        TypeError: if an input is no floating point tensor.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 5.0], [4.0, 3.0]])
        >>> turned = x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) + 3
        >>> result = orthogonal_procrustes(x, turned, protocol="in_sample")
        >>> round(result.global_cosine.item(), 6), round(result.inverse_row_entropy.item(), 6)
        (1.0, 1.0)
    """
    check_choice(protocol, "protocol", PROTOCOLS)
    x, y = check_pair(x, y, min_samples=min_samples(protocol))
    ids = check_ids(x_ids, y_ids, x.shape[0])
    with full_precision(x.device):
        judged = split_halves(y, ids) if protocol == "held_out" else None
        result = align(x, y, judged, protocol, chunk_bytes)
    return result if return_rotation else result._replace(rotation=None)


def align(
    x: Tensor,
    y: Tensor,
    judged: Tensor | None,
    protocol: Protocol,
    chunk_bytes: int,
    quick: bool = True,
) -> ProcrustesResult:
    """`orthogonal_procrustes` of rows of one dtype; ``quick`` tries whether float32 is enough."""
    moments, rotations = _fit(x, y, judged, protocol, chunk_bytes, quick)
    result = judge_rotations(moments, protocol, rotations)
    cosine = mean_cosine(x, y, judged, moments, protocol, result.rotation, chunk_bytes)
    return result._replace(mean_cosine=cosine)


def procrustes_identity(y: Tensor, *, y_ids: SampleIds | None = None) -> ProcrustesResult:
    """What held-out `orthogonal_procrustes` gives for a representation and itself.

    0, 1 and 1 where the fitted half has more samples than features. With fewer it leaves directions
    open, which count as unaligned: the best that any representation can reach with these samples.

    Args:
        y: (n, d) representations, floating point.
        y_ids: ids of the rows, which decide the halves; see `orthogonal_procrustes`.

    Returns:
        A `ProcrustesResult` of scalars, whose inverse row entropy is 1.

    Example:
        >>> y = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> round(procrustes_identity(y).global_cosine.item(), 1)
        0.5
    """
    y, _ = check_pair(y, y, min_samples=min_samples("held_out"))
    with full_precision(y.device):
        judged = split_halves(y, check_ids(None, y_ids, len(y)))
        one = torch.ones((), dtype=torch.float64, device=y.device)
        if int((~judged).sum()) > y.shape[1] or bool(judged.all()) or not is_finite(y):
            return ProcrustesResult(0 * one, one, one, one)
        rows = in_units(y, unit_of(y)).double()
        fit, judge = (part - part.mean(0) for part in (rows[~judged], rows[judged]))
        values, vectors = torch.linalg.eigh(fit @ fit.mT)
        kept = values > values[-1] * least_share(rows)
        # Squared norms of the judged rows within the span of the fitted ones.
        inside = (judge @ (fit.mT @ (vectors[:, kept] / values[kept].sqrt()))).square().sum(1)
        norms = judge.square().sum(1)
        cosine = inside.sum() / norms.sum()
        mean = (inside / norms).masked_fill(norms == 0, 0).mean()
    return ProcrustesResult(2 - 2 * cosine, cosine, mean, one)


def alignment_spectrum(
    x: Tensor, y: Tensor, *, chunk_bytes: int = DEFAULT_CHUNK_BYTES
) -> AlignmentSpectrum:
    r"""Look inside the rotation that `orthogonal_procrustes` fits on all samples.

    - ``singular_values``, (k,): those of the cross-covariance :math:`X_c'Y_c / (n - 1) = U S V'`,
      falling: how strongly the data ask for each direction of :math:`O^*`. Directions that the
      data leave open are left out, so k is at most min(d_x, d_y, n - 1). In units of
      :math:`\|X_c\| \|Y_c\| / (n - 1)` they add up to the in-sample ``global_cosine``.
    - ``row_entropies``, (d_x,): :math:`H(o_{ij}^2) / \ln d` of each row, in [0, 1]: 0 where a
      feature of ``x`` became one feature of ``y``, 1 where it is spread evenly over all. One minus
      their mean is ``inverse_row_entropy``.

    Args:
        x: (n, d_x) representations, floating point.
        y: (n, d_y) representations of the same samples, the reference.
        chunk_bytes: bound of the working memory beside inputs and moments.

    Returns:
        An `AlignmentSpectrum`. All is NaN, with a warning, if an input is not finite;
        ``row_entropies`` are also where the rotation is not unique.

    Raises:
        ValueError: if shapes do not match or there are fewer than 2 samples.
        TypeError: if an input is no floating point tensor.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]])
        >>> spectrum = alignment_spectrum(x, x.flip(1))
        >>> [round(value * 3 / 4, 6) for value in spectrum.singular_values.tolist()]
        [4.0, 1.0]
        >>> round(spectrum.row_entropies.sum().item(), 6)
        0.0
    """
    x, y = check_pair(x, y, min_samples=min_samples("in_sample"))
    with full_precision(x.device):
        moments, rotations = _fit(x, y, None, "in_sample", chunk_bytes)
        n, d_x, d_y = x.shape[0], x.shape[1], y.shape[1]
        nan = torch.full((d_x,), torch.nan, dtype=torch.float64, device=x.device)
        if rotations is None:
            warn_nan("alignment spectrum", "an input is not finite")
            return AlignmentSpectrum(nan[: min(d_x, d_y, n - 1)], nan)
        fitted = rotations.fitted
        values = fitted.singular_values.double() / (n - 1) * moments.unit[0] * moments.unit[1]
        if not fitted.unique:
            _warn_not_unique("row entropies", (d_x, d_y), n, fitted)
            return AlignmentSpectrum(values, nan)
        return AlignmentSpectrum(values, _row_entropies(fitted.rotation))


def _fit(
    x: Tensor,
    y: Tensor,
    judged: Tensor | None,
    protocol: Protocol,
    chunk_bytes: int,
    quick: bool = True,
) -> "tuple[PairMoments, Rotations | None]":
    """Sums and rotations, in the dtype of the data where that is enough, or else in float64."""
    num_fitted = x.shape[0] if judged is None else int((~judged).sum())
    quick = quick and x.dtype == torch.float32
    rotations = None
    if quick and settles_all((x.shape[1], y.shape[1]), num_fitted):
        moments = _cross_moments(x, y, judged, chunk_bytes, x.dtype)
        rotations = fit_rotations(moments, protocol, quick=True)
    if rotations is None:
        moments = _cross_moments(x, y, judged, chunk_bytes, torch.float64)
        rotations = fit_rotations(moments, protocol)
    return moments, rotations


def _cross_moments(
    x: Tensor, y: Tensor, judged: Tensor | None, chunk_bytes: int, dtype: torch.dtype
) -> PairMoments:
    num_halves = 1 if judged is None else 2
    moments = PairMoments.zeros(x.shape[1], y.shape[1], num_halves, x.device, own=False)
    # The other half is left to the decomposition.
    moments.add(x, y, judged, -(-chunk_bytes // 2), dtype=dtype)
    return moments


def min_samples(protocol: Protocol) -> int:
    """Smallest number of samples a protocol is defined for."""
    return 4 if protocol == "held_out" else 2


class Rotations(NamedTuple):
    """Rotations fitted on all samples, None where that is not unique, and as a protocol fits."""

    everything: Polar | None
    fitted: Polar


def fit_rotations(
    moments: PairMoments, protocol: Protocol, quick: bool = False
) -> Rotations | None:
    """Fit the rotations that `judge_rotations` judges.

    Args:
        moments: with two halves for ``"held_out"``; those of other protocols are added up.
        protocol: see `orthogonal_procrustes`.
        quick: whether to work in float32 and give up where that is not enough.

    Returns:
        None if not all rows are finite, a half is empty, or ``quick`` gave up.
    """
    held_out = protocol == "held_out"
    if not bool(torch.isfinite(moments.trace).all()):
        return None
    far = protocol == "paper" and moments.far_from_origin(FAR)
    if quick and (moments.dtype == torch.float64 or far):
        return None
    polar = quick_polar if quick else partial(polar_factor, eps=float(moments.rounding))
    if held_out and not bool((moments.count >= 2).all()):
        return None
    half = moments.half(0) if held_out else moments
    fitted = polar(half.centered_cross(), int(half.count.sum()))
    if fitted is None:
        return None
    if quick and _is_close(moments.half(1) if held_out else moments, fitted.rotation):
        return None
    if not held_out:
        return Rotations(fitted, fitted)
    num_samples = int(moments.count.sum())
    if not settles_all(moments.widths, num_samples):
        return Rotations(None, fitted)
    everything = polar(moments.centered_cross(), num_samples)
    return None if everything is None else Rotations(everything, fitted)


def _is_close(judged: PairMoments, rotation: Tensor) -> bool:
    """Whether a rotation leaves so little that float32 sums cannot tell how much."""
    size = judged.unit / judged.unit.max()
    squares = (judged.centered_trace() * size.square()).sum()
    return bool(squares - 2 * judged.centered_inner(rotation) * size.prod() < CLOSE * squares)


def judge_rotations(
    moments: PairMoments, protocol: Protocol, rotations: Rotations | None
) -> ProcrustesResult:
    """Everything in `orthogonal_procrustes` that sums give: all but the mean cosine."""
    nan = scalar_nan(moments.cross)
    if rotations is None:
        finite = bool(torch.isfinite(moments.trace).all())
        reason = "one half holds fewer than 2 samples" if finite else "an input is not finite"
        warn_nan("orthogonal Procrustes", reason)
        return ProcrustesResult(nan, nan, nan, nan, None)
    fitted, n = rotations.fitted, moments.count.sum()
    judged = moments.half(1) if protocol == "held_out" else moments
    inner = judged.centered_inner(fitted.rotation)
    total_x, total_y = judged.centered_trace()
    if protocol == "paper":
        mean_x, mean_y = judged.means()
        inner = inner + n * (mean_x @ fitted.rotation).dot(mean_y)
        total_x, total_y = total_x + n * mean_x.dot(mean_x), total_y + n * mean_y.dot(mean_y)
    if not bool((total_x > 0) & (total_y > 0)):
        warn_nan("orthogonal Procrustes", "a representation has no variance")
        return ProcrustesResult(nan, nan, nan, nan, None)
    everything, entropy = rotations.everything, nan
    if everything is not None and everything.unique:
        entropy = inverse_row_entropy(everything.rotation)
    else:
        _warn_not_unique("inverse row entropy", moments.widths, int(n), everything)
    size = moments.unit[0] / moments.unit[1]
    return ProcrustesResult(
        residual_variance_ratio=(total_x * size - 2 * inner) * size / total_y + 1,
        global_cosine=inner / (total_x * total_y).sqrt(),
        mean_cosine=nan,
        inverse_row_entropy=entropy,
        rotation=fitted.rotation,
    )


def mean_cosine(
    x: Tensor,
    y: Tensor,
    judged: Tensor | None,
    moments: PairMoments,
    protocol: Protocol,
    rotation: Tensor | None,
    chunk_bytes: int,
) -> Tensor:
    """Mean over the judged samples of the cosine of x O and y.

    Args:
        x: (n, d_x), float32 or float64.
        y: (n, d_y).
        judged: (n,) bool, the samples to judge; None for all.
        moments: of the same rows.
        protocol: ``"paper"`` takes the rows as they are, the others around their means.
        rotation: (d_x, d_y), None when it has no meaning.
        chunk_bytes: bound of the working memory.
    """
    if rotation is None:
        return scalar_nan(x)
    moments = moments if judged is None else moments.half(1)
    # Means are subtracted in two steps: the rounding of a large one would shift every row.
    near = zip((moments.center_x, moments.center_y), moments.mean_offsets(), strict=True)
    means_x, means_y = ([part.to(x.dtype) for part in parts] for parts in near)
    unit_x, unit_y = moments.unit.tolist()
    rotation = rotation.to(x.dtype)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    bytes_per_row = 4 * sum(moments.widths) * x.element_size()
    for part in row_chunks(x, bytes_per_row, chunk_bytes, ROWS_PER_PRODUCT):
        left, right = x[part], y[part]
        if judged is not None:
            left, right = left[judged[part]], right[judged[part]]
        left, right = in_units(left, unit_x), in_units(right, unit_y)
        if protocol != "paper":
            left = (left - means_x[0]).sub_(means_x[1])
            right = (right - means_y[0]).sub_(means_y[1])
        norms = torch.linalg.vector_norm(left, dim=1) * torch.linalg.vector_norm(right, dim=1)
        inner = ((left @ rotation) * right).sum(1)
        # A row of zeros has no direction: it counts as unaligned.
        total += (inner / norms).masked_fill(norms == 0, 0).sum(dtype=torch.float64)
    return total / (x.shape[0] if judged is None else judged.sum())


def _warn_not_unique(
    what: str, widths: tuple[int, int], num_samples: int, fitted: Polar | None
) -> None:
    """Warn that a rotation is not the only one, with the rank that it would need."""
    d_x, d_y = widths
    if d_x != d_y:
        warn_nan(what, f"it needs equal widths, got {d_x} and {d_y}")
        return
    rank = min(num_samples - 1 if fitted is None else len(fitted.singular_values), d_x - 1)
    warn_nan(
        what,
        f"X'Y of the {num_samples} samples must have rank d = {d_x} for a unique rotation, "
        f"and has rank {rank} to rounding",
    )


def inverse_row_entropy(rotation: Tensor) -> Tensor:
    """1 minus the mean normalized entropy of the squared rows of an orthogonal matrix.

    Args:
        rotation: (d, d), orthogonal.

    Returns:
        float scalar in [0, 1]; 1 for d = 1.
    """
    value: Tensor = 1 - _row_entropies(rotation).mean()
    return value


def _row_entropies(rotation: Tensor) -> Tensor:
    """Entropy of each squared row over ln d, which is 0 for d = 1."""
    d = rotation.shape[0]
    if d == 1:
        return rotation.new_zeros(1)
    entropies = []
    for start in range(0, d, ROWS_PER_PRODUCT):
        shares = rotation[start : start + ROWS_PER_PRODUCT].square()
        shares /= shares.sum(1, keepdim=True)
        entropies.append(torch.special.xlogy(shares, shares).sum(1))
    return torch.cat(entropies) / -math.log(d)


def random_rotation_inverse_row_entropy(d: int) -> float:
    """Expected inverse row entropy of a random rotation: its chance level.

    1 - [psi(d/2 + 1) - psi(3/2)] / ln d, from the Beta(1/2, (d-1)/2) law of squared entries.

    Args:
        d: number of features, at least 1.

    Returns:
        A number in (0, 1]; 1 for d = 1, where there is nothing to rotate.

    Example:
        >>> round(random_rotation_inverse_row_entropy(768), 3)
        0.11
    """
    if d == 1:
        return 1.0
    psi = torch.special.digamma(torch.tensor([d / 2 + 1, 1.5], dtype=torch.float64))
    return 1 - float(psi[0] - psi[1]) / math.log(d)
