"""Pairs of representations for the tests: ordinary ones and hostile ones."""

from collections.abc import Callable

import torch
from torch import Tensor


def pair(n: int = 120, d: int = 16, noise: float = 0.7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows that share structure: y is a rotated noisy copy of x."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) * torch.linspace(0.5, 2, d)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    return x, x @ rotation + noise * torch.randn(n, d, generator=generator)


def rotation(d: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]


def _large_mean() -> tuple[Tensor, Tensor]:
    x, y = pair()
    offset = torch.randn(16, generator=torch.Generator().manual_seed(5))
    return x + 1000 * offset.sign(), y - 1000


def _massive_dimension() -> tuple[Tensor, Tensor]:
    x, y = pair()
    x[:, 3] *= 1000
    y[:, 7] *= 300
    return x, y


def _massive_rows() -> tuple[Tensor, Tensor]:
    x, y = pair()
    x[0] *= 1000
    y[0] *= 1000
    x[50] *= 300
    return x, y


def _duplicates() -> tuple[Tensor, Tensor]:
    x, y = pair()
    x, y = x.clone(), y.clone()
    x[60:90], y[60:90] = x[:30], y[:30]
    x[90:100] = x[0]
    return x, y


def _rank_deficient() -> tuple[Tensor, Tensor]:
    x, y = pair()
    return x[:, :4] @ x[:4, :], y


HOSTILE: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "ordinary": pair,
    "large_mean": _large_mean,
    "tiny_scale": lambda: tuple(1e-6 * v for v in pair()),  # type: ignore[dict-item, return-value]
    "huge_scale": lambda: tuple(1e6 * v for v in pair()),  # type: ignore[dict-item, return-value]
    "massive_dimension": _massive_dimension,
    "massive_rows": _massive_rows,
    "duplicates": _duplicates,
    "fewer_samples_than_features": lambda: pair(n=24, d=64),
    "rank_deficient": _rank_deficient,
    "different_widths": lambda: (pair()[0], pair()[1][:, :5]),
}
