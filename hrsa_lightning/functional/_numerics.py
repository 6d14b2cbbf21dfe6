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


LEAST, MOST = 2.0**-8, 2.0**16
"""Rows whose largest magnitude is in between are computed with as they are: fourth powers of such
values and of their rounding, and sums of millions of them, stay within the range of float32."""

USUAL = 8
"""Other rows are divided by a power of two that makes their largest magnitude about 2^8."""


class SimilarityWarning(UserWarning):
    """A metric is NaN for its input, or means little; the message says why."""


def warn(message: str) -> None:
    """Give a `SimilarityWarning`."""
    warnings.warn(message, SimilarityWarning, stacklevel=3)


def warn_nan(metric: str, reason: str) -> None:
    """Say once which metric is NaN and why."""
    warnings.warn(f"{metric} is NaN: {reason}.", SimilarityWarning, stacklevel=3)


@contextmanager
def full_precision(device: torch.device, gradients: bool = False) -> Iterator[None]:
    """Run float32 products in float32: no TF32, no bf16 shortcuts, no autocast.

    Without gradients, unless they are asked for and on around it.

    The settings of the caller are restored on the way out, whatever happens inside.
    """
    before = _get_precision()
    try:
        _set_precision(_EXACT)
        gradients = gradients and torch.is_grad_enabled()
        with torch.set_grad_enabled(gradients), torch.autocast(device.type, enabled=False):
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


def is_finite(x: Tensor) -> bool:
    """Whether all values are finite, without a copy of them."""
    return x.numel() == 0 or bool(torch.stack(torch.aminmax(x)).isfinite().all())


def unit_of(x: Tensor) -> float:
    """A power of two to divide rows by, so that no product of them leaves the range of their dtype.

    Dividing by it is exact. It is 1 for ordinary rows and for those that are empty or not finite,
    and the least possible for zeros, so that they leave it to other rows.

    Args:
        x: (n, d), float32 or float64.
    """
    if x.numel() == 0:
        return 1.0
    low, high = torch.aminmax(x)
    largest = float(torch.maximum(-low, high))
    if LEAST <= largest <= MOST or not math.isfinite(largest):
        return 1.0
    # Its inverse must be a normal number of the dtype as well.
    most = 126 if x.dtype == torch.float32 else 1022
    exponent = math.frexp(largest)[1] - USUAL if largest else -most
    return math.ldexp(1.0, max(-most, exponent))


def in_units(x: Tensor, unit: float) -> Tensor:
    """``x / unit`` for a power of two; ``x`` itself where that is 1."""
    return x if unit == 1 else x * (1 / unit)


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


def float64_mean(x: Tensor, unit: float, chunk_bytes: int) -> Tensor:
    """Mean of rows over their unit, float64 (d,), from the first, so that constants are exact."""
    first = in_units(x[0].double(), unit)
    total = torch.zeros_like(first)
    for part in float64_chunks(x, x.shape[1], chunk_bytes):
        total += (in_units(x[part], unit) - first).sum(0)
    return first + total / x.shape[0]


def is_constant(mean: Tensor, squares: Tensor, num_samples: int, dtype: torch.dtype) -> Tensor:
    """Whether the deviation of features is zero or may be rounding of values of this dtype."""
    noise = 8 * torch.finfo(dtype).eps * mean
    return squares <= num_samples * noise.square()


def feature_spread(x: Tensor, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of features in the unit of ``x``, float64 (d,); inf if constant.

    So that rows around the mean, divided by it, are 0 where a feature does not vary.
    """
    unit = unit_of(x)
    mean = float64_mean(x, unit, chunk_bytes)
    squares = torch.zeros_like(mean)
    for part in float64_chunks(x, x.shape[1], chunk_bytes):
        rows = in_units(x[part], unit) - mean
        squares += torch.linalg.vector_norm(rows, dim=0).square_()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    constant = is_constant(mean, squares, len(x), dtype)
    return mean, (squares / len(x)).sqrt().masked_fill(constant, torch.inf)


def scalar_nan(like: Tensor) -> Tensor:
    """A NaN scalar in float64 on the device of ``like``."""
    return torch.full((), math.nan, dtype=torch.float64, device=like.device)
