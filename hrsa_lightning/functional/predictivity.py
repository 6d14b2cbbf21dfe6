"""Linear predictivity: what of one representation a linear map of the other tells."""

from typing import NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import SampleIds, check_ids, check_pair, split_halves
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    full_precision,
    is_finite,
    scalar_nan,
    unit_of,
    warn_nan,
)
from hrsa_lightning.functional.probe_transfer import (
    RidgeSamples,
    check_regularization,
    fit_ridge,
    score_ridge,
)

MIN_SAMPLES = 4


class LinearPredictivityResult(NamedTuple):
    """Values of `linear_predictivity`, float64 scalars, at most 1.

    Attributes:
        forward: of ``y`` predicted from ``x``.
        backward: of ``x`` predicted from ``y``.
    """

    forward: Tensor
    backward: Tensor


def linear_predictivity(
    x: Tensor,
    y: Tensor,
    *,
    regularization: float = 1e-5,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> LinearPredictivityResult:
    r"""Held-out R^2 of a ridge map from each representation to the other.

    An affine map is fitted on one half of the samples and judged on the other by
    :math:`1 - \|Y - \hat Y\|^2 / \|Y - \bar y\|^2` over all features of the target together
    (:math:`\bar y` is the mean of the judged half). It tells what was lost from what was merely
    encoded otherwise: an invertible linear map costs CKA and neighbors, and leaves both values
    near 1. Where information was dropped, one direction falls. Unrelated representations have 0
    or less: a map fitted to noise predicts worse than the mean does. Take more fitted samples than
    features, or a large ``regularization``.

    The penalty is ``regularization`` times the mean variance per feature of the fitted half, so
    that scaling either side changes nothing.

    Args:
        x: (n, d_x) representations of the live model, floating point.
        y: (n, d_y) representations of the same samples by the reference.
        regularization: weight of the ridge penalty, positive.
        x_ids: ids of the rows of ``x``, int or str. Halves are decided by the ids, or else by the
            rows of ``y``; see `orthogonal_procrustes`.
        y_ids: ids of the rows of ``y``; must equal ``x_ids``.
        chunk_bytes: bound of the working memory beside inputs and d^2 sums in float64.

    Returns:
        A `LinearPredictivityResult`. NaN, with a warning, if an input is not finite or has no
        variance in the judged half.

    Raises:
        ValueError: if shapes or ids do not match, n < 4, or ``regularization`` is not positive.
        TypeError: if an input is no floating point tensor.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> mixed = x @ torch.tensor([[1.0, 3.0, 0.0], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0]])
        >>> [round(value.item(), 2) for value in linear_predictivity(x, mixed)]
        [1.0, 1.0]
    """
    x, y = check_pair(x, y, min_samples=MIN_SAMPLES)
    check_regularization(regularization)
    ids = check_ids(x_ids, y_ids, x.shape[0])
    with full_precision(x.device):
        if not (is_finite(x) and is_finite(y)):
            warn_nan("linear predictivity", "an input is not finite")
            return LinearPredictivityResult(scalar_nan(x), scalar_nan(x))
        judged = split_halves(y, ids)
        if bool(judged.all()) or not bool(judged.any()):
            warn_nan("linear predictivity", "all samples fall into one half")
            return LinearPredictivityResult(scalar_nan(x), scalar_nan(x))
        result = LinearPredictivityResult(
            _held_out(x, y, judged, regularization, chunk_bytes),
            _held_out(y, x, judged, regularization, chunk_bytes),
        )
    if not bool(torch.stack(result).isfinite().all()):
        warn_nan("linear predictivity", "a representation has no variance in the judged half")
        return LinearPredictivityResult(*(r.where(r.isfinite(), scalar_nan(r)) for r in result))
    return result


def _held_out(
    source: Tensor, target: Tensor, judged: Tensor, regularization: float, chunk_bytes: int
) -> Tensor:
    """R^2, in the judged half, of the map from source to target that the other half gives."""
    fitted, tested = (
        RidgeSamples(source, unit_of(source), chosen, target, unit_of(target), None, chunk_bytes)
        for chosen in (~judged, judged)
    )
    return score_ridge(fit_ridge(fitted, regularization), tested)
