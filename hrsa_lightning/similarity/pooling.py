"""From a layer's activation to a (samples, features) matrix, for tokens, images and vectors."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor

from hrsa_lightning.errors import ConfigError, DataError

__all__ = ["POOLINGS", "LayerPooling", "PoolingMethod", "drop_first_token", "pool"]

POOLINGS = ("none", "mean", "cls", "first", "last", "flatten")

PoolingMethod = (
    Literal["none", "mean", "cls", "first", "last", "flatten"]
    | Callable[[Tensor, Tensor | None], Tensor]
)


class LayerPooling:
    """How the activations of each layer become rows.

    Args:
        pooling: One method for all layers, or a mapping from short names (globs allowed) to
            methods; layers that the mapping does not name are averaged.
        mask: Key of the mask in a batch, a function `mask(batch) -> Tensor`, or `None` to use
            `pool_mask` or `attention_mask` where the batch is a mapping that has one.
        exclude_first_token: Leave each sample's first counted token out.

    Raises:
        ConfigError: When a method is unknown.
    """

    def __init__(
        self,
        pooling: PoolingMethod | Mapping[str, PoolingMethod] = "mean",
        mask: str | Callable[[Any], Tensor] | None = None,
        exclude_first_token: bool = False,
    ) -> None:
        for method in pooling.values() if isinstance(pooling, Mapping) else [pooling]:
            if not (callable(method) or method in POOLINGS):
                raise ConfigError(
                    f"pooling: expected {', '.join(POOLINGS)} or a function, got {method!r}"
                )
        self._pooling = pooling
        self._mask = mask
        self._exclude_first_token = exclude_first_token

    def method_of(self, layer: str) -> PoolingMethod:
        """The pooling method of one layer."""
        if not isinstance(self._pooling, Mapping):
            return self._pooling
        for pattern, method in self._pooling.items():
            if fnmatchcase(layer, pattern):
                return method
        return "mean"

    def mask_of(self, batch: Any) -> Tensor | None:
        """The (samples, tokens) mask of a batch, `None` where there is none."""
        if callable(self._mask):
            mask: Tensor | None = self._mask(batch)
        elif not isinstance(batch, Mapping):
            mask = None
        elif self._mask is not None:
            if self._mask not in batch:
                raise DataError(
                    f"mask: expected a key of the batch, got {self._mask!r}; it has {list(batch)}"
                )
            mask = batch[self._mask]
        else:
            mask = _token_mask(batch)
        if mask is not None and self._exclude_first_token:
            return drop_first_token(mask)
        return mask

    def rows(self, name: str, activation: Tensor, num_samples: int, mask: Tensor | None) -> Tensor:
        """(rows, features) of a layer, which the next layer cannot change.

        Raises:
            DataError: The activation cannot be pooled, or gives another number of rows.
        """
        full_tensor = getattr(activation, "full_tensor", None)
        activation = full_tensor() if full_tensor is not None else activation
        method = self.method_of(name)
        if mask is None and self._exclude_first_token and activation.ndim == 3:
            mask = drop_first_token(activation.new_ones(activation.shape[:2], dtype=torch.bool))
        try:
            rows = pool(activation, method, mask)
        except ValueError as error:
            raise DataError(f"layer {name}: {error}") from None
        if method != "none" and len(rows) != num_samples:
            raise DataError(
                f"layer {name}: expected a row for each of {num_samples} samples, got {len(rows)} "
                "rows; choose pooling='none' or a function for this layer"
            )
        if rows.untyped_storage().data_ptr() == activation.untyped_storage().data_ptr():
            # The next layer may work in place, and a view would keep the whole activation alive.
            return rows.clone(memory_format=torch.contiguous_format)
        return rows


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


def _token_mask(batch: Mapping[str, Any]) -> Tensor | None:
    attention, pooled = batch.get("attention_mask"), batch.get("pool_mask")
    if pooled is None or attention is None:
        return attention if pooled is None else pooled
    # A text without any token to pool (an instruction that fills it) is pooled over all it has.
    return torch.where(pooled.bool().any(1, keepdim=True), pooled.bool(), attention.bool())


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
