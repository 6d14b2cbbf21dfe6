"""Linear probes carried from one model to another: is the linear readout kept?"""

from typing import NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import (
    SampleIds,
    check_ids,
    check_pair,
    halves,
    sample_keys,
)
from hrsa_lightning.functional._numerics import full_precision, scalar_nan, warn_nan

MIN_SAMPLES = 4


class ProbeTransferResult(NamedTuple):
    """Values of `linear_probe_transfer`, float64: accuracy in [0, 1], or R^2 for float labels.

    Attributes:
        transfer: probe trained on the reference, tested on the live model.
        source: probe trained and tested on the reference.
        ceiling: probe trained and tested on the live model.
    """

    transfer: Tensor
    source: Tensor
    ceiling: Tensor


def linear_probe_transfer(
    x: Tensor,
    y: Tensor,
    labels: Tensor,
    *,
    regularization: float = 1e-3,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
) -> ProbeTransferResult:
    r"""Train a linear probe on the reference and test it on the live model, on held-out samples.

    The probe is ridge regression in closed form, onto one-hot targets for classes (the largest
    output decides) and onto the values themselves for float labels. It is an affine map: centering
    by the training mean belongs to it and is carried over. The penalty is ``regularization`` times
    the mean variance per feature of the training half, so that scaling the data changes nothing.

    Args:
        x: (n, d) representations of the live model, floating point.
        y: (n, d) representations of the same samples by the reference.
        labels: (n,) classes (integer dtype) or targets (floating dtype).
        regularization: weight of the ridge penalty, positive.
        x_ids: ids of the rows of ``x``, int or str. Training and test halves are decided by the
            ids, or else by the content of the rows of ``y``; see `orthogonal_procrustes`.
        y_ids: ids of the rows of ``y``; must equal ``x_ids``.

    Returns:
        A `ProbeTransferResult`. NaN, with a warning, if an input is not finite.

    Raises:
        ValueError: if shapes or ids do not match, n < 4, or ``regularization`` is not positive.
        TypeError: if ``x`` or ``y`` is no floating point tensor or ``labels`` no tensor.

    Example:
        >>> import torch
        >>> y = torch.cat((torch.eye(2), -torch.eye(2), 2 * torch.eye(2), -3 * torch.eye(2)))
        >>> labels = (y.sum(1) > 0).long()
        >>> linear_probe_transfer(2 * y, y, labels, x_ids=list(range(8))).transfer.item()
        1.0
    """
    x, y = check_pair(x, y, min_samples=MIN_SAMPLES, equal_width=True)
    if not regularization > 0:
        raise ValueError(f"Expected `regularization` to be positive, got {regularization}.")
    check_labels(labels, x.shape[0])
    ids = check_ids(x_ids, y_ids, x.shape[0])
    with full_precision(x.device):
        if not bool(torch.isfinite(x.sum()) & torch.isfinite(y.sum())):
            warn_nan("linear probe transfer", "an input is not finite")
            nan = scalar_nan(x)
            return ProbeTransferResult(nan, nan, nan)
        test = halves(sample_keys(y, ids))
        if bool(test.all()) or not bool(test.any()):
            warn_nan("linear probe transfer", "all samples fall into one half")
            nan = scalar_nan(x)
            return ProbeTransferResult(nan, nan, nan)
        targets = _targets(labels.to(x.device))
        probe = _fit(y[~test], targets[~test], regularization)
        own = _fit(x[~test], targets[~test], regularization)
        classes = not labels.is_floating_point()
        return ProbeTransferResult(
            _score(probe, x[test], targets[test], classes),
            _score(probe, y[test], targets[test], classes),
            _score(own, x[test], targets[test], classes),
        )


def check_labels(labels: object, num_samples: int) -> None:
    """Raise unless there is one label per sample."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"Expected `labels` to be a torch.Tensor, got {type(labels).__name__}.")
    if labels.shape != (num_samples,):
        raise ValueError(
            f"Expected `labels` to have shape ({num_samples},), got {tuple(labels.shape)}."
        )


def _targets(labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return labels.double()[:, None]
    classes, index = torch.unique(labels, return_inverse=True)
    return torch.nn.functional.one_hot(index, len(classes)).double()


class _Probe(NamedTuple):
    center: Tensor
    weight: Tensor
    bias: Tensor


def _fit(x: Tensor, targets: Tensor, regularization: float) -> _Probe:
    """Ridge regression with intercept, in the smaller of its primal and dual forms."""
    n, d = x.shape
    center, bias = x.double().mean(0), targets.mean(0)
    x, targets = x.double() - center, targets - bias
    gram = x @ x.mT if n < d else x.mT @ x
    trace = gram.diagonal().sum()
    if bool(trace == 0):
        return _Probe(center, torch.zeros_like(x.mT @ targets), bias)
    gram.diagonal().add_(regularization * trace / d)
    factor = torch.linalg.cholesky(gram)
    if n < d:
        return _Probe(center, x.mT @ torch.cholesky_solve(targets, factor), bias)
    return _Probe(center, torch.cholesky_solve(x.mT @ targets, factor), bias)


def _score(probe: _Probe, x: Tensor, targets: Tensor, classes: bool) -> Tensor:
    outputs = (x.double() - probe.center) @ probe.weight + probe.bias
    if classes:
        return (outputs.argmax(1) == targets.argmax(1)).double().mean()
    spread = (targets - targets.mean(0)).square().sum()
    return 1 - (outputs - targets).square().sum() / spread
