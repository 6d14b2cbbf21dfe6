"""Orthogonal Procrustes: how well a rotation turns one representation into another."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import (
    SampleIds,
    check_choice,
    check_ids,
    check_pair,
    halves,
    sample_keys,
)
from hrsa_lightning.functional._numerics import full_precision, scalar_nan, warn_nan

Protocol = Literal["held_out", "in_sample", "paper"]
PROTOCOLS = ("held_out", "in_sample", "paper")
MIN_SAMPLES = 2
MIN_SAMPLES_HELD_OUT = 4


class ProcrustesResult(NamedTuple):
    """Values of `orthogonal_procrustes`; all scalars are float64."""

    residual_variance_ratio: Tensor
    global_cosine: Tensor
    mean_cosine: Tensor
    inverse_row_entropy: Tensor
    rotation: Tensor | None = None


def orthogonal_procrustes(
    x: Tensor,
    y: Tensor,
    protocol: Protocol = "held_out",
    *,
    return_rotation: bool = False,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
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
    ``x_ids``/``y_ids``, or else by the content of the rows of ``y``, and so do not depend on
    batches, order or ranks. Where the optimum is not unique (fewer samples than features),
    directions it leaves open count as unaligned, which is their average over all optima.

    Args:
        x: (n, d_x) representations, floating point.
        y: (n, d_y) representations of the same samples, the reference. The narrower of two widths
            is taken as padded with zeros.
        protocol: ``"held_out"`` (above); ``"in_sample"``, fitted and judged on all samples;
            ``"paper"``, the authors' definition: fitted on centered, judged on uncentered data.
        return_rotation: whether to return the fitted :math:`O^*`, (d_x, d_y).
        x_ids: ids of the rows of ``x``, int or str.
        y_ids: ids of the rows of ``y``; must equal ``x_ids``.

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
    held_out = protocol == "held_out"
    x, y = check_pair(x, y, min_samples=MIN_SAMPLES_HELD_OUT if held_out else MIN_SAMPLES)
    ids = check_ids(x_ids, y_ids, x.shape[0])
    with full_precision(x.device):
        if not bool(torch.isfinite(x.sum()) & torch.isfinite(y.sum())):
            warn_nan("orthogonal Procrustes", "an input is not finite")
            nan = scalar_nan(x)
            return ProcrustesResult(nan, nan, nan, nan)
        everything = _polar(x, y)
        entropy = _entropy(everything, x.shape[0])
        if held_out:
            judged = halves(sample_keys(y, ids))
            fitted = _polar(x[~judged], y[~judged])
            x, y = x[judged], y[judged]
        else:
            fitted = everything
        x, y = x.double(), y.double()
        if protocol != "paper":
            x, y = x - x.mean(0), y - y.mean(0)
        values = _judge(x, y, fitted.rotation)
    return ProcrustesResult(*values, entropy, fitted.rotation if return_rotation else None)


class _Polar(NamedTuple):
    rotation: Tensor
    unique: bool


def _polar(x: Tensor, y: Tensor) -> _Polar:
    """Polar factor of the centered cross moment; directions without variance are left out."""
    x, y = x.double(), y.double()
    cross = (x - x.mean(0)).mT @ (y - y.mean(0))
    u, s, v = torch.linalg.svd(cross, full_matrices=False)
    kept = s > s[0] * max(cross.shape) * torch.finfo(torch.float32).eps
    return _Polar((u * kept) @ v, bool(kept.all()))


def _judge(x: Tensor, y: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    turned = x @ rotation
    inner = (turned * y).sum(1)
    norm_x, norm_y = torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(y, dim=1)
    total_x, total_y = norm_x.square().sum(), norm_y.square().sum()
    ratio = (total_x + total_y - 2 * inner.sum()) / total_y
    cosines = inner / (norm_x * norm_y)
    mean = cosines.masked_fill((norm_x == 0) | (norm_y == 0), 0).mean()
    return ratio, inner.sum() / (total_x * total_y).sqrt(), mean


def _entropy(fitted: _Polar, num_samples: int) -> Tensor:
    d_x, d_y = fitted.rotation.shape
    if d_x != d_y or num_samples - 1 < d_x or not fitted.unique:
        warn_nan(
            "inverse row entropy",
            f"the alignment of widths {d_x} and {d_y} is not unique with {num_samples} samples",
        )
        return scalar_nan(fitted.rotation)
    return inverse_row_entropy(fitted.rotation)


def inverse_row_entropy(rotation: Tensor) -> Tensor:
    """1 minus the mean normalized entropy of the squared rows of an orthogonal matrix.

    Args:
        rotation: (d, d), orthogonal.

    Returns:
        Scalar in [0, 1]; 1 for d = 1.
    """
    d = rotation.shape[0]
    if d == 1:
        return torch.ones((), dtype=rotation.dtype, device=rotation.device)
    return 1 + torch.special.xlogy(rotation.square(), rotation.square()).sum(1).mean() / math.log(d)


def random_rotation_inverse_row_entropy(d: int) -> float:
    """Expected inverse row entropy of a random rotation: its floor.

    1 - [psi(d/2 + 1) - psi(3/2)] / ln d, from the Beta(1/2, (d-1)/2) law of squared entries.

    Example:
        >>> round(random_rotation_inverse_row_entropy(768), 3)
        0.11
    """
    if d == 1:
        return 1.0
    psi = torch.special.digamma(torch.tensor([d / 2 + 1, 1.5], dtype=torch.float64))
    return 1 - float(psi[0] - psi[1]) / math.log(d)
