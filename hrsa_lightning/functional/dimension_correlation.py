"""Correlation of equal dimensions: is the coordinate basis kept?"""

from typing import NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import SampleIds, check_ids, check_pair
from hrsa_lightning.functional._moments import PairMoments
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    float64_chunks,
    float64_mean,
    full_precision,
    in_units,
    is_constant,
    scalar_nan,
    unit_of,
    warn_nan,
)

MIN_SAMPLES = 2
QUANTILES = (0.05, 0.25, 0.75, 0.95)


class DimensionCorrelationResult(NamedTuple):
    """Values of `dimension_correlation`, float64.

    Attributes:
        values: (d,) Pearson r per dimension, NaN where degenerate.
        mean: over dimensions that are not degenerate.
        median: likewise.
        quantiles: (4,), at .05, .25, .75 and .95, likewise.
        degenerate_share: share of dimensions without variance in either representation.
    """

    values: Tensor
    mean: Tensor
    median: Tensor
    quantiles: Tensor
    degenerate_share: Tensor


def dimension_correlation(
    x: Tensor,
    y: Tensor,
    *,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> DimensionCorrelationResult:
    """Pearson correlation over samples of each dimension of ``x`` with the same one of ``y``.

    1 means that the coordinate basis is kept, 0 is what unrelated representations have on average
    (arXiv 2601.21192). Invariant to translation and positive scaling of each dimension, not to
    rotation: that is its purpose.

    Args:
        x: (n, d) representations, floating point.
        y: (n, d) representations of the same samples.
        x_ids: ids of the rows of ``x``, int or str.
        y_ids: ids of the rows of ``y``; must equal ``x_ids``.
        chunk_bytes: bound of the working memory beside the inputs.

    Returns:
        A `DimensionCorrelationResult`. NaN, with a warning, if an input is not finite or every
        dimension is degenerate.

    Raises:
        ValueError: if shapes or ids do not match or n < 2.
        TypeError: if an input is no floating point tensor.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
        >>> y = torch.stack((2 * x[:, 0], -x[:, 1]), dim=1)
        >>> dimension_correlation(x, y).values.round().tolist()
        [1.0, -1.0]
    """
    x, y = check_pair(x, y, min_samples=MIN_SAMPLES, equal_width=True)
    check_ids(x_ids, y_ids, x.shape[0])
    with full_precision(x.device):
        unit_x, unit_y = unit_of(x), unit_of(y)
        mean_x = float64_mean(x, unit_x, chunk_bytes)
        mean_y = float64_mean(y, unit_y, chunk_bytes)
        squares_x, squares_y, cross = torch.zeros_like(mean_x).repeat(3, 1)
        for part in float64_chunks(x, x.shape[1], chunk_bytes):
            left, right = in_units(x[part], unit_x) - mean_x, in_units(y[part], unit_y) - mean_y
            squares_x += torch.linalg.vector_norm(left, dim=0).square_()
            squares_y += torch.linalg.vector_norm(right, dim=0).square_()
            cross += left.mul_(right).sum(0)
        constant = is_constant(mean_x, squares_x, len(x), x.dtype)
        constant |= is_constant(mean_y, squares_y, len(y), y.dtype)
        return summarize_correlation(cross, squares_x, squares_y, constant)


def correlation_from_moments(moments: PairMoments) -> DimensionCorrelationResult:
    """Dimension-wise correlation of streamed moments; see `dimension_correlation`."""
    sum_x, sum_y, n = moments.sum_x.sum(0), moments.sum_y.sum(0), int(moments.count.sum())
    offset_x, offset_y = moments.mean_offsets()
    squares_x = moments.self_x.diagonal() - sum_x * offset_x
    squares_y = moments.self_y.diagonal() - sum_y * offset_y
    cross = moments.cross.diagonal(dim1=1, dim2=2).sum(0) - sum_x * offset_y
    mean_x, mean_y = moments.means()
    constant = is_constant(mean_x, squares_x, n, moments.dtype)
    constant |= is_constant(mean_y, squares_y, n, moments.dtype)
    return summarize_correlation(cross, squares_x, squares_y, constant)


def summarize_correlation(
    cross: Tensor, squares_x: Tensor, squares_y: Tensor, constant: Tensor
) -> DimensionCorrelationResult:
    """Correlation per dimension and its summary, from centered sums per dimension (d,)."""
    finite = bool((squares_x + squares_y).isfinite().all())
    nan = scalar_nan(cross)
    values = torch.where(constant, nan, cross / (squares_x.sqrt() * squares_y.sqrt()))
    kept = values[~constant]
    share = constant.double().mean()
    if not finite or kept.numel() == 0:
        reason = "every dimension is constant" if finite else "an input is not finite"
        warn_nan("dimension correlation", reason)
        return DimensionCorrelationResult(values, nan, nan, nan.expand(len(QUANTILES)), share)
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device=cross.device)
    return DimensionCorrelationResult(
        values, kept.mean(), kept.quantile(0.5), kept.quantile(levels), share
    )
