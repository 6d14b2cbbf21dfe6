"""Precision guards and warnings shared by the functional metrics."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

DEFAULT_CHUNK_BYTES = 128 * 2**20
"""Default of every ``chunk_bytes``: working memory beside the inputs, in bytes."""


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
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def rows_per_chunk(bytes_per_row: int, chunk_bytes: int) -> int:
    """Number of rows whose working memory fits in ``chunk_bytes`` (at least one)."""
    if chunk_bytes <= 0:
        raise ValueError(f"Expected `chunk_bytes` to be positive, got {chunk_bytes}.")
    return max(1, chunk_bytes // max(1, bytes_per_row))


def scalar_nan(like: Tensor) -> Tensor:
    """A NaN scalar in float64 on the device of ``like``."""
    return torch.full((), math.nan, dtype=torch.float64, device=like.device)
