"""Linear centered kernel alignment (CKA), plain and debiased."""

import math

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import SampleIds, check_ids, check_pair
from hrsa_lightning.functional._moments import (
    MASSIVE,
    PairMoments,
    location,
    row_norms,
)
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    feature_spread,
    float64_chunks,
    float64_mean,
    full_precision,
    in_units,
    is_constant,
    scalar_nan,
    unit_of,
    warn_nan,
)
from hrsa_lightning.functional.cka_heatmap import MIN_SAMPLES, linear_cka_heatmaps
from hrsa_lightning.functional.reference import Reference

SMALL_WIDTH = 128
"""Features whose product with themselves is not worth halving."""


def linear_cka(
    x: Tensor,
    y: Tensor | Reference,
    debiased: bool = True,
    *,
    standardize: bool = False,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Tensor:
    r"""Linear CKA between two representations of the same samples.

    Plain CKA (Kornblith et al. 2019, arXiv 1905.00414, eq. 5) is
    :math:`\|X_c'Y_c\|_F^2 / (\|X_c'X_c\|_F \|Y_c'Y_c\|_F)`, in [0, 1], and biased upwards: with
    fewer samples than features, unrelated representations look alike. The debiased form (Nguyen
    et al. 2021, arXiv 2010.15327) uses the unbiased HSIC of Song et al. (2012) in all three
    places; its value for unrelated representations is 0 on average, so it may be slightly
    negative. Both are 1 for equal representations and do not change under rotation, isotropic
    scaling, translation and reordering of the samples.

    Where an input requires gradients (and they are on) the value has them, in both forms, so that
    it can be part of a loss. The graph holds what autograd keeps, not bounded by ``chunk_bytes``.

    Args:
        x: (n, d_x) representations, floating point.
        y: (n, d_y) representations of the same samples, or a `Reference`.
        debiased: whether to return the debiased form.
        standardize: whether to bring every feature to unit variance first. One massive feature
            shared by both models otherwise decides the value alone.
        x_ids: ids of the rows of ``x``, int or str.
        y_ids: ids of the rows of ``y``; must equal ``x_ids``.
        chunk_bytes: bound of the working memory beside inputs (and their copies if standardized)
            and moments.

    Returns:
        float64 scalar. NaN, with a warning, if an input is not finite or has no variance.

    Raises:
        ValueError: if shapes or ids do not match or n < 4.
        TypeError: if an input is no floating point tensor.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 5.0], [4.0, 3.0]])
        >>> round(linear_cka(x, 3 * x + 7).item(), 6)
        1.0
        >>> y = torch.tensor([[1.0], [0.0], [3.0], [1.0], [0.0]])
        >>> round(linear_cka(x, y, debiased=False).item(), 4)
        0.0152
    """
    reference = y if isinstance(y, Reference) and not standardize else None
    rows = y.rows if isinstance(y, Reference) else y
    x, y = check_pair(x, rows, min_samples=MIN_SAMPLES, gradients=True)
    check_ids(x_ids, y_ids, x.shape[0])
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        with full_precision(x.device, gradients=True):
            return _cka_with_gradients(x, y, debiased, standardize, chunk_bytes)
    x, y = x.detach(), y.detach()
    with full_precision(x.device):
        if x.shape[0] < x.shape[1] + y.shape[1]:
            plain, unbiased = linear_cka_heatmaps(
                [x], [y], chunk_bytes=chunk_bytes, standardize=standardize
            )
            return (unbiased if debiased else plain)[0, 0]
        if standardize:
            x, y = standardized(x, chunk_bytes), standardized(y, chunk_bytes)
        if reference is None and (value := _cka_at_once(x, y, debiased, chunk_bytes)) is not None:
            return value
        moments = PairMoments.zeros(x.shape[1], y.shape[1], 1, x.device)
        known = None if reference is None else _kept_moments(reference, y, chunk_bytes)
        moments.add(x, y, None, chunk_bytes, known_y=known)
        return cka_from_moments(moments, debiased)


def _cka_at_once(x: Tensor, y: Tensor, debiased: bool, chunk_bytes: int) -> Tensor | None:
    """`linear_cka` of ordinary rows that fit one chunk: no sums of size d squared in float64.

    None where the way over `PairMoments` is needed: for more rows, massive ones, and whatever has
    no value.
    """
    products = [x.shape[1] ** 2, y.shape[1] ** 2, x.shape[1] * y.shape[1]]
    copies = x.shape[0] * (x.shape[1] + y.shape[1])
    if (sum(products) + copies) * x.element_size() > chunk_bytes:
        return None
    x, y = _padded(centered(x)), _padded(centered(y))
    k, ell = row_norms(x), row_norms(y)
    for norms in (k, ell):
        if not bool(norms.max() <= MASSIVE * norms.median()):
            return None
    xx, yy = _squared_norm_of_self_product(x), _squared_norm_of_self_product(y)
    xy = _squared_norm(x.mT @ y)
    if debiased:
        n = x.shape[0]
        trace_x, trace_y = k.sum(), ell.sum()
        xx = hsic_unbiased(xx, k.dot(k), trace_x, trace_x, n)
        yy = hsic_unbiased(yy, ell.dot(ell), trace_y, trace_y, n)
        xy = hsic_unbiased(xy, k.dot(ell), trace_x, trace_y, n)
    if not bool((xx > 0) & (yy > 0)):
        return None
    value: Tensor = xy / (xx.sqrt() * yy.sqrt())
    return value


def _cka_with_gradients(
    x: Tensor, y: Tensor, debiased: bool, standardize: bool, chunk_bytes: int
) -> Tensor:
    """`linear_cka` by operations that autograd knows, in the smaller of its two forms."""
    n, sides = x.shape[0], []
    for whole in (x, y):
        unit = unit_of(whole.detach())
        rows = in_units(whole, unit) - location(whole.detach(), unit).to(whole.dtype)
        if standardize:
            mean = float64_mean(whole.detach(), unit, chunk_bytes)
            variance = (rows - rows.mean(0)).square().mean(0)
            constant = is_constant(mean, n * variance.detach(), n, whole.dtype)
            rows = rows / variance.masked_fill(constant, torch.inf).sqrt()
        sides.append(rows)
    k, ell = (row_norms(rows - rows.mean(0)) for rows in sides)
    few = n < x.shape[1] + y.shape[1]
    massive = any(bool(norms.max() > MASSIVE * norms.median()) for norms in (k, ell))
    if debiased and (few or massive):
        xx, yy, xy = _hsic_of_grams(*sides)
    else:
        left, right = ((rows - rows.mean(0)) for rows in sides)
        if few:
            left, right = left @ left.mT, right @ right.mT
            products = [left * left, right * right, left * right]
        else:
            pairs = ((left, left), (right, right), (left, right))
            products = [(a.mT @ b).square() for a, b in pairs]
        xx, yy, xy = (product.sum(dtype=torch.float64) for product in products)
        if debiased:
            xx = hsic_unbiased(xx, k.dot(k), k.sum(), k.sum(), n)
            yy = hsic_unbiased(yy, ell.dot(ell), ell.sum(), ell.sum(), n)
            xy = hsic_unbiased(xy, k.dot(ell), k.sum(), ell.sum(), n)
    return _ratio(xx, yy, xy, bool((k.sum() > 0) & (ell.sum() > 0)))


def _hsic_of_grams(x: Tensor, y: Tensor) -> list[Tensor]:
    """`hsic_unbiased` of x, of y and of both, without the diagonals that massive rows dominate."""
    n = len(x)
    kernels = [gram - gram.diagonal().diag_embed() for gram in (x @ x.mT, y @ y.mT)]
    sums = [kernel.sum(1, dtype=torch.float64) for kernel in kernels]
    return [
        (kernels[a] * kernels[b]).sum(dtype=torch.float64)
        - 2 / (n - 2) * sums[a].dot(sums[b])
        + sums[a].sum() * sums[b].sum() / ((n - 1) * (n - 2))
        for a, b in ((0, 0), (1, 1), (0, 1))
    ]


def _padded(x: Tensor) -> Tensor:
    """Features of zeros added until `_num_parts` equal parts hold them."""
    missing = -x.shape[1] % _num_parts(x.shape[1])
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def centered(x: Tensor) -> Tensor:
    """Rows in their unit around their mean, taken out in two steps so that it costs no digits."""
    unit = unit_of(x)
    rows = in_units(x, unit) - location(x, unit).to(x.dtype)
    return rows.sub_(rows.mean(0))


def _num_parts(width: int) -> int:
    """The least power of two that cuts features into parts of `SMALL_WIDTH` or fewer."""
    return 1 << max(0, math.ceil(math.log2(width / SMALL_WIDTH)))


def _squared_norm_of_self_product(x: Tensor) -> Tensor:
    """||x'x||_F^2 from the blocks on and above the diagonal: of parts, pairs of parts, and so on.

    Args:
        x: (n, d), d a multiple of `_num_parts`.
    """
    parts = _num_parts(x.shape[1])
    blocks = x.view(len(x), parts, -1).permute(1, 2, 0)
    total = _squared_norm(blocks @ blocks.mT)
    while parts > 1:
        parts //= 2
        left, right = x.view(len(x), parts, 2, -1).permute(2, 1, 3, 0)
        total += 2 * _squared_norm(left @ right.mT)
    return total


def _squared_norm(products: Tensor) -> Tensor:
    """Sum of squares, row by row: float32 sums of all of them at once would lose digits."""
    return row_norms(products.flatten(0, -2)).sum()


def _kept_moments(reference: Reference, y: Tensor, chunk_bytes: int) -> PairMoments:
    def compute() -> PairMoments:
        moments = PairMoments.zeros(0, y.shape[1], 1, y.device)
        moments.add(y[:, :0], y, None, chunk_bytes)
        return moments

    return reference.keep(("moments", y.dtype), compute)


def standardized(x: Tensor, chunk_bytes: int) -> Tensor:
    """Features centered and divided by their standard deviation; constant ones become 0."""
    unit = unit_of(x)
    mean, deviation = feature_spread(x, chunk_bytes)
    scaled = torch.empty_like(x)
    for part in float64_chunks(x, x.shape[1], chunk_bytes):
        scaled[part] = (in_units(x[part], unit) - mean).div_(deviation)
    return scaled


def hsic_unbiased(
    product: Tensor, diagonal: Tensor, trace_x: Tensor, trace_y: Tensor, n: Tensor | int
) -> Tensor:
    """n (n - 3) times the unbiased HSIC (Song et al. 2012, eq. 5) of centered linear kernels.

    Args:
        product: <K, L> with K and L the centered Gram matrices.
        diagonal: sum over samples of K_ii L_ii.
        trace_x: trace of K.
        trace_y: trace of L.
        n: number of samples.
    """
    return product - diagonal * n / (n - 2) + trace_x * trace_y / ((n - 1) * (n - 2))


def cka_from_moments(moments: PairMoments, debiased: bool) -> Tensor:
    """Linear CKA of streamed moments; see `linear_cka`."""
    xx, yy, xy = moments.centered_square_norms()
    k, ell = moments.centered_trace()
    if debiased:
        n = moments.count.sum()
        kk, ll, kl = moments.centered_quartic()
        xx, yy = hsic_unbiased(xx, kk, k, k, n), hsic_unbiased(yy, ll, ell, ell, n)
        xy = hsic_unbiased(xy, kl, k, ell, n)
    return _ratio(xx, yy, xy, bool((k > 0) & (ell > 0)))


def _ratio(xx: Tensor, yy: Tensor, xy: Tensor, varies: bool) -> Tensor:
    """CKA from three HSIC; ``varies`` tells whether both representations have variance."""
    if bool((xx > 0) & (yy > 0)):
        value: Tensor = xy / (xx.sqrt() * yy.sqrt())
        return value
    reason = "an input is not finite"
    if bool((xx + yy).isfinite()):
        few = "the unbiased HSIC of a representation with itself is negative, for too few samples"
        reason = few if varies else "a representation has no variance"
    warn_nan("linear CKA", reason)
    return scalar_nan(xy)


def chance_cka(moments: PairMoments) -> Tensor:
    """Plain linear CKA expected when the samples of y are shuffled at random.

    tr(K) tr(L) / ((n - 1) ||K|| ||L||) for centered Gram matrices K and L, which is about
    d / (n + d) for d independent features of equal variance.
    """
    xx, yy, _ = moments.centered_square_norms()
    k, ell = moments.centered_trace()
    level: Tensor = k * ell / ((moments.count.sum() - 1) * (xx.sqrt() * yy.sqrt()))
    return level
