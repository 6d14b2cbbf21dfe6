"""Linear probes carried from one model to another: is the linear readout kept?"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import (
    SampleIds,
    check_ids,
    check_pair,
    split_halves,
)
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    float64_chunks,
    full_precision,
    in_units,
    is_finite,
    scalar_nan,
    unit_of,
    warn_nan,
)

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
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
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
        chunk_bytes: bound of the working memory beside inputs and d^2 sums in float64.

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
    check_regularization(regularization)
    check_labels(labels, x.shape[0])
    ids = check_ids(x_ids, y_ids, x.shape[0])
    with full_precision(x.device):
        if not (is_finite(x) and is_finite(y)):
            warn_nan("linear probe transfer", "an input is not finite")
            nan = scalar_nan(x)
            return ProbeTransferResult(nan, nan, nan)
        test = split_halves(y, ids)
        if bool(test.all()) or not bool(test.any()):
            warn_nan("linear probe transfer", "all samples fall into one half")
            nan = scalar_nan(x)
            return ProbeTransferResult(nan, nan, nan)
        labels, num_classes = labels.to(x.device), None
        if labels.is_floating_point():
            labels = labels.double()[:, None]
        else:
            classes, labels = torch.unique(labels, return_inverse=True)
            num_classes = len(classes)

        def samples(rows: Tensor, like: Tensor, chosen: Tensor) -> RidgeSamples:
            return RidgeSamples(rows, unit_of(like), chosen, labels, 1, num_classes, chunk_bytes)

        probe = fit_ridge(samples(y, y, ~test), regularization)
        own = fit_ridge(samples(x, x, ~test), regularization)
        result = ProbeTransferResult(
            transfer=score_ridge(probe, samples(x, y, test)),
            source=score_ridge(probe, samples(y, y, test)),
            ceiling=score_ridge(own, samples(x, x, test)),
        )
    if not bool(torch.stack(result).isfinite().all()):
        warn_nan("linear probe transfer", "the targets of the test half are constant or not finite")
    return result


def check_regularization(regularization: float) -> None:
    """Raise unless it is positive."""
    if not regularization > 0:
        raise ValueError(f"Expected `regularization` to be positive, got {regularization}.")


def check_labels(labels: object, num_samples: int) -> None:
    """Raise unless there is one label per sample."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"Expected `labels` to be a torch.Tensor, got {type(labels).__name__}.")
    if labels.shape != (num_samples,):
        raise ValueError(
            f"Expected `labels` to have shape ({num_samples},), got {tuple(labels.shape)}."
        )


class RidgeSamples(NamedTuple):
    """Samples to fit or to score a linear map on.

    Attributes:
        x: (n, d) representations.
        unit: power of two to divide them by, that of the rows that the map is fitted on.
        chosen: (n,) bool, the samples meant.
        targets: (n,) classes from 0, or (n, t) values.
        target_unit: power of two to divide values by.
        num_classes: None for values.
        chunk_bytes: bound of the working memory.
    """

    x: Tensor
    unit: float
    chosen: Tensor
    targets: Tensor
    target_unit: float
    num_classes: int | None
    chunk_bytes: int

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The chosen rows in pieces, (m, d), with their targets, (m, classes or t), in float64."""
        width = max(self.x.shape[1], self.num_classes or self.targets.shape[1])
        for part in float64_chunks(self.x, width, self.chunk_bytes):
            chosen = self.chosen[part]
            targets = self.targets[part][chosen]
            if self.num_classes is None:
                targets = in_units(targets.double(), self.target_unit)
            else:
                targets = torch.nn.functional.one_hot(targets, self.num_classes).double()
            yield in_units(self.x[part][chosen].double(), self.unit), targets


class RidgeMap(NamedTuple):
    center: Tensor
    weight: Tensor
    bias: Tensor

    def outputs(self, x: Tensor) -> Tensor:
        """(n, t) for float64 rows (n, d)."""
        return (x - self.center) @ self.weight + self.bias


def fit_ridge(samples: RidgeSamples, regularization: float) -> RidgeMap:
    """Ridge regression with intercept, in the smaller of its primal and dual forms."""
    sums = [(rows.sum(0), targets.sum(0)) for rows, targets in samples.parts()]
    n, d = int(samples.chosen.sum()), samples.x.shape[1]
    center, bias = (torch.stack(parts).sum(0) / n for parts in zip(*sums, strict=True))
    shifted = ((rows - center, targets - bias) for rows, targets in samples.parts())
    if n < d:
        x, targets = (torch.cat(parts) for parts in zip(*shifted, strict=True))
        weight = x.mT @ _solve(x @ x.mT, targets, regularization / d)
    else:
        gram, products = center.new_zeros(d, d), center.new_zeros(d, len(bias))
        for x, targets in shifted:
            gram.addmm_(x.mT, x)
            products.addmm_(x.mT, targets)
        weight = _solve(gram, products, regularization / d)
    return RidgeMap(center, weight, bias)


def _solve(gram: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """(gram + penalty tr(gram) I)^-1 targets; zeros if the trace is zero. Changes ``gram``."""
    trace = gram.diagonal().sum()
    if bool(trace == 0):
        return torch.zeros_like(targets)
    gram.diagonal().add_(penalty * trace)
    return torch.cholesky_solve(targets, torch.linalg.cholesky(gram))


def score_ridge(ridge: RidgeMap, samples: RidgeSamples) -> Tensor:
    """Accuracy, or R^2 over all targets together."""
    n = samples.chosen.sum()
    if samples.num_classes is not None:
        hits = [
            (ridge.outputs(x).argmax(1) == targets.argmax(1)).sum()
            for x, targets in samples.parts()
        ]
        return torch.stack(hits).sum() / n.double()
    mean = torch.stack([targets.sum(0) for _, targets in samples.parts()]).sum(0) / n
    left = [
        torch.stack(((ridge.outputs(x) - targets).square().sum(), (targets - mean).square().sum()))
        for x, targets in samples.parts()
    ]
    errors, total = torch.stack(left).sum(0)
    value: Tensor = 1 - errors / total
    return value
