"""From a layer's activation to a (samples, features) matrix, for tokens, images and vectors."""

import copy
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hrsa_lightning.errors import ConfigError, DataError, first_line
from hrsa_lightning.similarity.batches import Activation, described, entry_of

POOLINGS = ("none", "mean", "cls", "first", "last", "flatten")

# Attributes that say how wide a layer's result is: convolutions and their norms, and all others.
_WIDTHS_FIRST = ("out_channels", "num_features", "num_channels")
_WIDTHS_LAST = ("out_features", "normalized_shape", "embedding_dim", "hidden_size")

PoolingMethod = (
    Literal["none", "mean", "cls", "first", "last", "flatten"]
    | Callable[[Tensor, Tensor | None], Tensor]
)


Pooling = Mapping[str, PoolingMethod] | PoolingMethod
"""For all layers, or by short name; the mapping first, as jsonargparse takes what fits first."""


class LayerPooling:
    """How the activations of each layer become rows.

    Args:
        pooling: One method for all layers, or a mapping from short names (globs allowed) to
            methods; layers that the mapping does not name are averaged.
        mask: Key or attribute of the mask in a batch, a function `mask(batch) -> Tensor`, or `None`
            for its `pool_mask` or `attention_mask`, or else its `batch`, the graph of each node.
        exclude_first_token: Leave each sample's first counted token out.

    Raises:
        ConfigError: When a method is unknown.
    """

    def __init__(
        self,
        pooling: Pooling = "mean",
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
        self._max_rows: int | None = None

    def at_level(self, level: str, max_rows: int | None = None) -> "LayerPooling":
        """The pooling of a probe set with a level of its own.

        Args:
            level: `token` for a row per token, `pooled` for one per sample, or empty for neither.
            max_rows: At level `token`, most rows of a sample, evenly spaced.
        """
        own = copy.copy(self)
        own._max_rows = max_rows
        if level == "token":
            own._pooling = "none"
        elif level == "pooled" and isinstance(self._pooling, Mapping):
            own._pooling = {k: "mean" if m == "none" else m for k, m in self._pooling.items()}
        elif level == "pooled" and self._pooling == "none":
            own._pooling = "mean"
        return own

    def method_of(self, layer: str) -> PoolingMethod:
        """The pooling method of one layer."""
        if not isinstance(self._pooling, Mapping):
            return self._pooling
        for pattern, method in self._pooling.items():
            if fnmatchcase(layer, pattern):
                return method
        return "mean"

    def counts_samples(self, layer: str) -> bool:
        """Whether rows of a layer have to be as many as there are samples."""
        method = self.method_of(layer)
        return not callable(method) and method != "none"

    def mask_of(self, batch: Any) -> Tensor | None:
        """The (samples, tokens) mask of a batch, the graph of each node, or `None`."""
        if callable(self._mask):
            mask: Tensor | None = self._mask(batch)
        elif self._mask is not None:
            mask = entry_of(batch, self._mask)
            if mask is None:
                raise DataError(
                    f"mask: {self._mask!r} is not in the probe batch {described(batch)}; give a "
                    "function of the batch"
                )
        else:
            mask = _token_mask(batch)
        if mask is not None and mask.ndim > 1 and self._exclude_first_token:
            mask = drop_first_token(mask)
        return mask if mask is None or self._max_rows is None else _thinned(mask, self._max_rows)

    def rows(
        self,
        name: str,
        activation: Activation,
        mask: Tensor | None,
        channels_first: bool | None = None,
    ) -> Tensor:
        """(rows, features) of a layer, which the next layer cannot change.

        Raises:
            DataError: The activation cannot be pooled.
        """
        if isinstance(activation, list):
            if len({part.shape for part in activation}) == 1 and activation[0].ndim == 1:
                return self.rows(name, torch.stack(activation), None)
            try:
                return torch.cat([self.rows(name, _one_sample(p), None) for p in activation])
            except RuntimeError as error:
                raise DataError(
                    f"pooling: samples of layer {name} have rows of different widths; give a "
                    f"function, pooling={{{name!r}: lambda activation, mask: ...}}"
                ) from error
        full_tensor = getattr(activation, "full_tensor", None)
        activation = full_tensor() if full_tensor is not None else activation
        method = self.method_of(name)
        if mask is None and self._exclude_first_token and activation.ndim == 3:
            mask = drop_first_token(activation.new_ones(activation.shape[:2], dtype=torch.bool))
        try:
            rows = pool(activation, method, mask, channels_first)
        except ValueError as error:
            raise DataError(f"{error} (layer {name})") from error
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise DataError(f"pooling: {reason} (layer {name})") from error
        if rows.ndim != 2:
            raise DataError(
                f"pooling: expected (rows, features) of the function, got {tuple(rows.shape)} "
                f"(layer {name})"
            )
        if rows.untyped_storage().data_ptr() == activation.untyped_storage().data_ptr():
            # The next layer may work in place, and a view would keep the whole activation alive.
            return rows.clone(memory_format=torch.contiguous_format)
        return rows


def pool(
    activation: Tensor,
    method: PoolingMethod = "mean",
    mask: Tensor | None = None,
    channels_first: bool | None = None,
) -> Tensor:
    """Reduce an activation to one row per sample, or per token, in float32.

    Args:
        activation: (samples,), (samples, features), (samples, tokens, features),
            (samples, channels, *spatial), or (nodes, features) where `mask` has the graph of each.
        method: `mean` over tokens, positions or nodes, `first` (also called `cls`) or `last` token,
            `flatten` to one long row, `none` for one row per token, position or node, or a function
            of the activation and the mask. Vectors are left as they are.
        mask: (samples, tokens), true where a token counts, honoured by all but `flatten`; or
            (nodes,), the number of the graph that a node belongs to.
        channels_first: Whether channels come before positions; `None` reads three dimensions as
            tokens, with features last, and more as an image, with channels first.

    Returns:
        (rows, features), float32 (float64 stays float64).

    Raises:
        ValueError: On an unknown method, a mask of another shape, or a sample without any token.

    Example:
        >>> tokens = torch.tensor([[[1.0], [3.0], [100.0]]])
        >>> pool(tokens, "mean", torch.tensor([[1, 1, 0]]))
        tensor([[2.]])
        >>> pool(torch.tensor([[1.0], [3.0], [5.0]]), "mean", torch.tensor([0, 0, 1]))
        tensor([[2.],
                [5.]])
    """
    if callable(method):
        return _as_float(method(activation, mask))
    if method not in POOLINGS:
        raise ValueError(
            f"pooling: expected none, mean, cls, first, last, flatten or a function, got {method!r}"
        )
    if mask is not None and mask.ndim == 1:
        # Layers after a readout have a row for each graph already.
        is_of_nodes = activation.ndim == 2 and len(activation) == len(mask)
        if is_of_nodes and method != "none":
            return _pool_graphs(_as_float(activation), method, mask)
        mask = None
    if activation.ndim <= 2 or method == "flatten":
        return _as_float(activation.reshape(len(activation), -1))
    is_image = activation.ndim > 3
    if is_image if channels_first is None else channels_first:  # positions become tokens
        activation = activation.flatten(2).transpose(1, 2)
    else:
        activation = activation.flatten(1, -2)
    mask = None if is_image else mask
    if mask is None:
        return _pool_all(activation, method)
    if mask.shape != activation.shape[:2]:
        raise ValueError(
            f"mask: expected the shape (samples, tokens) = {tuple(activation.shape[:2])} of the "
            f"layer, got {tuple(mask.shape)}; pool this layer with a function"
        )
    return _pool_masked(activation, method, mask.bool())


def has_channels_first(root: nn.Module, part: nn.Module, shape: Sequence[int]) -> bool | None:
    """Where a layer puts its channels: as the last part of it, or before it, that fits the shape.

    Returns:
        Whether channels come before positions; `None` where nothing tells.

    Example:
        >>> net = nn.Sequential(nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Linear(30, 16))
        >>> has_channels_first(net, net[1], (4, 8, 30)), has_channels_first(net, net, (4, 8, 16))
        (True, False)
    """
    if len(shape) < 3:
        return None
    parts = [*root.modules()]
    own = {id(each) for each in part.modules()}
    end = max((n for n, each in enumerate(parts) if id(each) in own), default=len(parts) - 1)
    for each in reversed(parts[: end + 1]):
        first = next((v for name in _WIDTHS_FIRST if (v := getattr(each, name, None))), None)
        last = next((v for name in _WIDTHS_LAST if (v := getattr(each, name, None))), None)
        if first == shape[1]:
            return True
        if (last[-1] if isinstance(last, tuple) else last) == shape[-1]:
            return False
    return None


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


def _thinned(mask: Tensor, most: int) -> Tensor:
    """At most so many counted tokens of each sample, evenly spaced."""
    place, count = mask.bool().cumsum(1), mask.bool().sum(1, keepdim=True)
    kept = count.clamp(max=most)
    return mask.bool() & (
        place * kept // count.clamp(min=1) > (place - 1) * kept // count.clamp(min=1)
    )


def _one_sample(part: Tensor) -> Tensor:
    """A tensor of one sample as a batch, with a row of zeros where it is empty."""
    part = part.unsqueeze(-1) if part.ndim == 1 else part
    return (part if len(part) else part.new_zeros(1, *part.shape[1:])).unsqueeze(0)


def _token_mask(batch: Any) -> Tensor | None:
    # Of (inputs, labels), the inputs know which of their tokens count.
    parts = batch if isinstance(batch, (list, tuple)) else ()
    found = (_mask_in(each) for each in (batch, *parts))
    return next((mask for mask in found if mask is not None), None)


def _mask_in(batch: Any) -> Tensor | None:
    attention, pooled = entry_of(batch, "attention_mask"), entry_of(batch, "pool_mask")
    if attention is None and pooled is None:
        graphs = entry_of(batch, "batch")
        is_vector = isinstance(graphs, Tensor) and graphs.dtype == torch.int64 and graphs.ndim == 1
        # Nodes come graph by graph; what is in another order numbers batches of something else.
        return graphs if is_vector and bool((graphs.diff() >= 0).all()) else None
    if pooled is None or attention is None:
        mask: Tensor = attention if pooled is None else pooled
        return mask
    # A text without any token to pool (an instruction that fills it) is pooled over all it has.
    return torch.where(pooled.bool().any(1, keepdim=True), pooled.bool(), attention.bool())


def _pool_graphs(nodes: Tensor, method: str, graphs: Tensor) -> Tensor:
    """(graphs, features) of (nodes, features)."""
    counts = torch.bincount(graphs)
    if method == "mean":
        sums = nodes.new_zeros(len(counts), nodes.shape[1]).index_add(0, graphs, nodes)
        return sums / counts.clamp(min=1).unsqueeze(1)
    if method == "flatten":
        raise ValueError("pooling: graphs have different numbers of nodes; choose 'mean'")
    numbers = torch.arange(len(graphs), device=graphs.device)
    reduce = "amax" if method == "last" else "amin"
    places = torch.zeros_like(counts).scatter_reduce(0, graphs, numbers, reduce, include_self=False)
    return nodes[places]


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
