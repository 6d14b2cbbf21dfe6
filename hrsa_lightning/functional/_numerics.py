"""Precision guards and warnings shared by the functional metrics."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

DEFAULT_CHUNK_BYTES = 128 * 2**20
"""Default of every ``chunk_bytes``: working memory beside the inputs, in bytes."""


FLOAT64_COPIES = 4
"""Copies of rows in float64 that `float64_chunks` leaves room for."""

FLOAT64_AT_ONCE = 2**18
"""Numbers that `float64_chunks` copies at once on a CPU: about what its caches hold."""


class SimilarityWarning(UserWarning):
    """A metric has no meaningful value for its input and is NaN; the message says why."""


def warn_nan(metric: str, reason: str) -> None:
    """Say once which metric is NaN and why."""
    warnings.warn(f"{metric} is NaN: {reason}.", SimilarityWarning, stacklevel=3)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run float32 products in float32: no TF32, no bf16 shortcuts, no autocast, no gradients.

    The settings of the caller are restored on the way out, whatever happens inside.
    """
    before = _get_precision()
    try:
        _set_precision(_EXACT)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        _set_precision(before)


# Since torch 2.9 each backend has its own setting, and reading the old one after somebody wrote a
# new one is an error.
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    _EXACT = ["ieee", "ieee"]

    def _get_precision() -> list[str]:
        return [b.fp32_precision for b in _matmul_backends()]

    def _set_precision(precision: list[str]) -> None:
        for backend, value in zip(_matmul_backends(), precision, strict=True):
            backend.fp32_precision = value

    def _matmul_backends() -> tuple[Any, Any]:
        return torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]

else:
    _EXACT = ["highest"]

    def _get_precision() -> list[str]:
        return [torch.get_float32_matmul_precision()]

    def _set_precision(precision: list[str]) -> None:
        torch.set_float32_matmul_precision(precision[0])


def rows_per_chunk(bytes_per_row: int, chunk_bytes: int) -> int:
    """Number of rows whose working memory fits in ``chunk_bytes`` (at least one)."""
    if chunk_bytes <= 0:
        raise ValueError(f"Expected `chunk_bytes` to be positive, got {chunk_bytes}.")
    return max(1, chunk_bytes // max(1, bytes_per_row))


def slices(length: int, step: int) -> list[slice]:
    """Slices of ``step`` places each that cover ``length``; the last one may be shorter."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def row_chunks(x: Tensor, bytes_per_row: int, chunk_bytes: int, most: int) -> list[slice]:
    """Slices over the rows of ``x`` whose working memory fits in ``chunk_bytes``.

    Args:
        x: (n, ...) rows.
        bytes_per_row: working memory that a row needs.
        chunk_bytes: bound of the working memory.
        most: rows at once on a CPU, whose caches do better with few.
    """
    step = rows_per_chunk(bytes_per_row, chunk_bytes)
    step = min(step, max(1, most)) if x.device.type == "cpu" else step
    return slices(x.shape[0], step)


def float64_chunks(x: Tensor, width: int, chunk_bytes: int) -> list[slice]:
    """Slices over the rows of ``x`` for work on float64 copies of them, of some width."""
    return row_chunks(x, FLOAT64_COPIES * 8 * width, chunk_bytes, FLOAT64_AT_ONCE // width)


def float64_mean(x: Tensor, chunk_bytes: int) -> Tensor:
    """Mean of the rows, float64 (d,), measured from the first, so that constants are exact."""
    first = x[0].double()
    total = torch.zeros_like(first)
    for part in float64_chunks(x, x.shape[1], chunk_bytes):
        total += (x[part] - first).sum(0)
    return first + total / x.shape[0]


def scalar_nan(like: Tensor) -> Tensor:
    """A NaN scalar in float64 on the device of ``like``."""
    return torch.full((), math.nan, dtype=torch.float64, device=like.device)
