"""The rotation in a cross moment: its polar factor, and whether it is the only one."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

INVERSE_ITERATIONS = 4

WELL_CONDITIONED = 1e-4
"""The mean of the two least singular values must be above this share of the largest for a float32
rotation good to 1e-6: the condition of a polar factor is one over their sum (Higham 2008, Functions
of Matrices, theorem 8.9)."""

FULL_RANK = 1e-6
"""The least singular value must be above this share of the largest, or its sign may be rounding: in
float32 the sign has been right down to 2e-7, for widths of 64 to 512."""

OVERSAMPLING = 16
"""Columns beyond the rank, so that a random mixture of columns spans it well."""


class Polar(NamedTuple):
    """Polar factor of a cross moment.

    Attributes:
        rotation: (d_x, d_y).
        unique: whether it is the only one.
        singular_values: of the cross moment, falling, for the directions that it settles.
    """

    rotation: Tensor
    unique: bool
    singular_values: Tensor


def quick_polar(cross: Tensor, num_samples: int) -> Polar | None:
    """Polar factor in float32, if the cross moment is conditioned well enough for that."""
    if not settles_all(cross.shape, num_samples):
        return None
    # Brought to order 1, so that no scale of the data leaves the range of float32.
    scale = torch.linalg.vector_norm(cross, torch.inf)
    if not bool(scale > 0):
        return None
    scaled = torch.empty_like(cross, dtype=torch.float32)
    torch.div(cross, scale, out=scaled)
    del cross  # The decomposition is what takes the most memory; nothing else is kept beside it.
    u, s, v = torch.linalg.svd(scaled, full_matrices=False)
    if not bool(s[-2:].mean() > WELL_CONDITIONED * s[0]) or not bool(s[-1] > FULL_RANK * s[0]):
        return None
    # Float32 factors are a little short, all in the same way; lengths are easily put right.
    rotation = torch.matmul(u, v, out=scaled).double()
    rotation /= torch.linalg.vector_norm(rotation, dim=1, keepdim=True)
    return Polar(rotation, True, s * scale)


def polar_factor(cross: Tensor, num_samples: int, eps: float) -> Polar:
    """Polar factor of a cross moment; directions it leaves open are zero.

    Args:
        cross: (d_x, d_y), float64.
        num_samples: that it is the sum over.
        eps: of the dtype of the data.
    """
    unique = _has_full_rank(cross, num_samples, eps)
    if 2 * num_samples < min(cross.shape):
        u, s, v = _low_rank_svd(cross, num_samples)
    else:
        u, s, v = torch.linalg.svd(cross, full_matrices=False)
    if not unique:
        s[num_samples - 1 :] = 0
        # Rounding of the data alone makes a direction no less the one that they ask for.
        u = u * (s > s[0] * least_share(cross))
        s = s[s > s[0] * eps]
    return Polar(u @ v, unique, s)


def least_share(x: Tensor) -> float:
    """What singular values of a matrix that are zero may show of its largest, by rounding."""
    return max(x.shape) * torch.finfo(x.dtype).eps


def _low_rank_svd(cross: Tensor, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of a cross moment of few samples, whose rank is below their number.

    A few columns mixed at random span its range (Halko et al. 2011, arXiv 0909.4061, section 1.3),
    here up to rounding, since none of its singular values is left out.
    """
    generator = torch.Generator(cross.device).manual_seed(0)
    size = (cross.shape[1], num_samples + OVERSAMPLING)
    mixing = torch.randn(size, generator=generator, dtype=cross.dtype, device=cross.device)
    basis = torch.linalg.qr(cross @ mixing)[0]
    u, s, v = torch.linalg.svd(basis.mT @ cross, full_matrices=False)
    return basis @ u, s, v


def settles_all(widths: Sequence[int], num_samples: int) -> bool:
    """Whether so many samples can settle every direction of a rotation."""
    d_x, d_y = widths
    return d_x == d_y and num_samples - 1 >= d_x


def _has_full_rank(cross: Tensor, num_samples: int, eps: float) -> bool:
    """Whether every direction of a square cross moment stands out of the rounding of its data.

    Judged by the smallest singular value after rows and columns are brought to unit norm, so that
    a massive feature does not make the others look like rounding, against the effect of rounding
    the data.
    """
    if not settles_all(cross.shape, num_samples):
        return False
    d = cross.shape[0]
    scaled = cross / torch.linalg.vector_norm(cross, dim=1, keepdim=True)
    scaled = scaled / torch.linalg.vector_norm(scaled, dim=0)
    factor, pivots, info = torch.linalg.lu_factor_ex(scaled)
    if bool(info != 0) or not bool(torch.isfinite(factor).all()):
        return False
    # Inverse iteration from a vector without symmetries.
    vector = torch.linspace(-1, 1, d, dtype=cross.dtype, device=cross.device).cos()[:, None]
    for _ in range(INVERSE_ITERATIONS):
        vector = torch.linalg.lu_solve(factor, pivots, vector / vector.norm())
        norm = vector.norm()
        vector = torch.linalg.lu_solve(factor, pivots, vector / norm, adjoint=True)
    rounding = 2 * eps * math.sqrt(2 * d / num_samples)
    return bool(1 / torch.minimum(norm, vector.norm()) > rounding)
