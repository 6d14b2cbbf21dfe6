"""From a layer's activation to a (samples, features) matrix, for tokens, images and vectors."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["POOLINGS", "PoolingMethod", "drop_first_token", "pool"]

POOLINGS = ("none", "mean", "cls", "first", "last", "flatten")

PoolingMethod = (
    Literal["none", "mean", "cls", "first", "last", "flatten"]
    | Callable[[Tensor, Tensor | None], Tensor]
)


def pool(activation: Tensor, method: PoolingMethod = "mean", mask: Tensor | None = None) -> Tensor:
    """Reduce an activation to one row per sample, or per token, in float32.

    Args:
        activation: (samples,), (samples, features), (samples, tokens, features) or
            (samples, channels, *spatial); the last form, with two or more spatial dimensions, is
            read as an image with channels first. For signals, (samples, channels, time), and
            images with channels last give a function: `lambda signal, mask: signal.mean(2)`.
        method: `mean` over tokens or positions, `first` (also called `cls`) or `last` token,
            `flatten` to one long row, `none` for one row per token or position, or a function of
            the activation and the mask. Vectors are left as they are.
        mask: (samples, tokens), true where a token counts; honoured by all but `flatten`.

    Returns:
        (rows, features), float32 (float64 stays float64).

    Raises:
        ValueError: On an unknown method, a mask of another shape, or a sample without any token.

    Example:
        >>> tokens = torch.tensor([[[1.0], [3.0], [100.0]]])
        >>> pool(tokens, "mean", torch.tensor([[1, 1, 0]]))
        tensor([[2.]])
    """
    if callable(method):
        return _as_float(method(activation, mask))
    if method not in POOLINGS:
        raise ValueError(
            f"pooling: expected none, mean, cls, first, last, flatten or a function, got {method!r}"
        )
    if activation.ndim <= 2 or method == "flatten":
        return _as_float(activation.reshape(len(activation), -1))
    if activation.ndim > 3:  # channels first: positions become tokens
        activation = activation.flatten(2).transpose(1, 2)
        mask = None
    if mask is None:
        return _pool_all(activation, method)
    if mask.shape != activation.shape[:2]:
        raise ValueError(
            f"mask: expected the shape (samples, tokens) = {tuple(activation.shape[:2])} of the "
            f"layer, got {tuple(mask.shape)}; pool this layer with a function"
        )
    return _pool_masked(activation, method, mask.bool())


def drop_first_token(mask: Tensor) -> Tensor:
    """Clear the first counted token of each row that has more than one.

    In decoder LLMs the first token often carries a massive activation that outweighs all others.

    Args:
        mask: (samples, tokens).

    Returns:
        A new boolean mask of the same shape.

    Example:
        >>> drop_first_token(torch.tensor([[0, 1, 1], [0, 0, 1]])).int()
        tensor([[0, 0, 1],
                [0, 0, 1]], dtype=torch.int32)
    """
    mask = mask.bool()
    is_first = mask & (mask.cumsum(1) == 1)
    return mask & ~(is_first & (mask.sum(1, keepdim=True) > 1))


def _pool_all(activation: Tensor, method: str) -> Tensor:
    if method == "none":
        return _as_float(activation.flatten(0, 1))
    if method == "mean":
        return _as_float(activation).mean(1)
    return _as_float(activation[:, -1] if method == "last" else activation[:, 0])


def _pool_masked(activation: Tensor, method: str, mask: Tensor) -> Tensor:
    if method == "none":
        return _as_float(activation[mask])
    counts = mask.sum(1)
    if not bool(counts.all()):
        raise ValueError("mask: a sample has no token that counts")
    if method == "mean":
        values = _as_float(activation)
        weights = (mask / counts.unsqueeze(1)).to(values.dtype)
        means = torch.bmm(weights.unsqueeze(1), values).squeeze(1)
        if not bool(means.isfinite().all()):
            # A masked position may hold inf or NaN, and 0 * inf is NaN: blank it, do not weight it.
            values = values.masked_fill(~mask.unsqueeze(2), 0.0)
            means = torch.bmm(weights.unsqueeze(1), values).squeeze(1)
        return means
    positions = torch.arange(mask.shape[1], device=mask.device)
    if method == "last":
        index = torch.where(mask, positions, -1).amax(1)
    else:
        index = torch.where(mask, positions, mask.shape[1]).amin(1)
    return _as_float(activation[torch.arange(len(mask), device=mask.device), index])


def _as_float(values: Tensor) -> Tensor:
    values = values.unsqueeze(1) if values.ndim == 1 else values
    return values if values.dtype == torch.float64 else values.float()
