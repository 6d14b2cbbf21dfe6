"""One forward pass over the probes, with the wanted layers pooled on the way."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from hrsa_lightning.errors import DataError
from hrsa_lightning.representations.layers import LayerSelection
from hrsa_lightning.representations.pooling import PoolingMethod, drop_first_token, pool

__all__ = [
    "CaptureOptions",
    "batch_size",
    "call_module",
    "capture",
    "capture_batch",
    "dtype_of",
    "is_sharded",
]

Forward = Callable[[nn.Module, Any], Any]
Snapshot = dict[str, Tensor]

# Entries of a returned mapping that stand for the model's result, the most telling first.
_RESULT_KEYS = ("embeddings", "sentence_embedding", "last_hidden_state", "logits")


@dataclass(frozen=True)
class CaptureOptions:
    """How a forward pass is made and its activations are reduced.

    Attributes:
        forward: Called as `forward(module, batch)`; `None` calls the module itself.
        pooling: One method for all layers, or a mapping from short names (globs allowed) to
            methods; layers that the mapping does not name are averaged.
        mask: Key of the mask in a batch, a function `mask(batch) -> Tensor`, or `None` to use
            `pool_mask` or `attention_mask` where the batch is a mapping that has one.
        exclude_first_token: Leave each sample's first counted token out.
        context: Makes the context of each forward pass, such as the trainer's autocast.
    """

    forward: Forward | None = None
    pooling: PoolingMethod | Mapping[str, PoolingMethod] = "mean"
    mask: str | Callable[[Any], Tensor] | None = None
    exclude_first_token: bool = False
    context: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)

    def pooling_of(self, name: str) -> PoolingMethod:
        """The pooling method of one layer."""
        if not isinstance(self.pooling, Mapping):
            return self.pooling
        for pattern, method in self.pooling.items():
            if fnmatchcase(name, pattern):
                return method
        return "mean"

    def mask_of(self, batch: Any) -> Tensor | None:
        """The (samples, tokens) mask of a batch, `None` where there is none."""
        if callable(self.mask):
            mask: Tensor | None = self.mask(batch)
        elif not isinstance(batch, Mapping):
            mask = None
        elif self.mask is not None:
            if self.mask not in batch:
                raise DataError(f"mask: the batch has no key {self.mask!r}; it has {list(batch)}")
            mask = batch[self.mask]
        else:
            mask = _token_mask(batch)
        if mask is not None and self.exclude_first_token:
            return drop_first_token(mask)
        return mask


def capture(
    module: nn.Module,
    batches: Iterable[Any],
    layers: LayerSelection,
    options: CaptureOptions,
    *,
    device: torch.device,
    store_on: torch.device,
) -> Iterator[Snapshot]:
    """Run `module` over `batches` and yield each batch's pooled representations.

    Hooks live only while a batch is in flight. Call it inside `untouched`.

    Args:
        module: The module to call.
        batches: What `options.forward` or the module takes.
        layers: The layers and outputs wanted of `module`.
        options: Forward call, pooling and mask.
        device: Where the module is.
        store_on: Where the pooled rows go.

    Yields:
        Short name to (rows, features), float32.

    Raises:
        DataError: When a layer was not called or returned nothing that can be compared.
    """
    for batch in batches:
        yield capture_batch(module, batch, layers, options, device=device, store_on=store_on)


def capture_batch(
    module: nn.Module,
    batch: Any,
    layers: LayerSelection,
    options: CaptureOptions,
    *,
    device: torch.device,
    store_on: torch.device,
) -> Snapshot:
    """What `capture` yields for one batch; of a layer that is called several times, the last call.

    What cannot be pooled is told when the forward pass is over: one that ends early on one rank
    would leave the others waiting where weights are spread over ranks.

    Raises:
        DataError: See `capture`.
    """
    batch = _to_module(batch, device, dtype_of(module))
    taker = _Taker(batch, options)
    with _recording(layers.modules, taker), options.context():
        result = (options.forward or call_module)(module, batch)
    for name, key in layers.outputs.items():
        taker.take(name, result, key)
    missing = [name for name in layers.modules if name not in taker.found]
    if missing:
        raise DataError(
            f"layers: {', '.join(missing)} took no part in the forward pass; "
            "choose layers that it calls, or give forward="
        )
    return {name: taker.rows(name).to(store_on) for name in layers.names}


class _Taker:
    """Pools activations as they appear, so that no more than one layer's is held at a time.

    Args:
        batch: The inputs.
        options: How to pool.

    Attributes:
        found: Short name to pooled rows, or to why there are none.
    """

    def __init__(self, batch: Any, options: CaptureOptions) -> None:
        self.found: dict[str, Tensor | Exception] = {}
        self._batch = batch
        self._options = options

    @cached_property
    def _mask(self) -> Tensor | None:
        return self._options.mask_of(self._batch)

    @cached_property
    def _num_samples(self) -> int:
        return batch_size(self._batch)

    def take(self, name: str, result: Any, key: str | None = None) -> None:
        """Pool what a layer or the module returned, in full precision."""
        try:
            activation = _output(result, key)
            with torch.autocast(activation.device.type, enabled=False):
                self.found[name] = _reduce(
                    name, activation, self._num_samples, self._mask, self._options
                )
        except Exception as error:
            self.found[name] = error

    def rows(self, name: str) -> Tensor:
        """The pooled rows of one layer; raises what kept them from being made."""
        found = self.found[name]
        if isinstance(found, Exception):
            raise found
        return found


def call_module(module: nn.Module, batch: Any) -> Any:
    """Call a module with a batch in the way that its `forward` can take it.

    A mapping is passed by keyword, without the keys that `forward` does not name (or as one
    argument when `forward` names none of them); a tuple or list fills the parameters that have no
    default, so that the labels of `(inputs, labels)` are left out; anything else is the argument.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    if isinstance(batch, Mapping):
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return module(**batch)
        known = {p.name for p in parameters} & set(batch)
        return (
            module(**{key: batch[key] for key in batch if key in known}) if known else module(batch)
        )
    if isinstance(batch, (tuple, list)):
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        required = [p for p in parameters if p.kind in positional and p.default is p.empty]
        return module(*batch[: max(1, len(required))])
    return module(batch)


def batch_size(batch: Any) -> int:
    """Number of samples of a batch: the first dimension of its first tensor.

    Raises:
        DataError: When the batch holds no tensor with a first dimension.
    """
    for tensor in _tensors(batch):
        if tensor.ndim > 0:
            return len(tensor)
    raise DataError(f"probes: expected batches of tensors, got {type(batch).__name__} without any")


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of a module's first floating-point weight; float32 where it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters are spread over ranks, so that a forward pass needs all of them."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters()) or any(
        "FullyShardedDataParallel" in type(part).__name__ for part in module.modules()
    )


def _token_mask(batch: Mapping[str, Any]) -> Tensor | None:
    attention, pooled = batch.get("attention_mask"), batch.get("pool_mask")
    if pooled is None or attention is None:
        return attention if pooled is None else pooled
    # A text without any token to pool (an instruction that fills it) is pooled over all it has.
    return torch.where(pooled.bool().any(1, keepdim=True), pooled.bool(), attention.bool())


def _tensors(batch: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []
    apply_to_collection(batch, Tensor, found.append)
    yield from found


def _to_module(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    def move(value: Tensor) -> Tensor:
        # Under true half precision the weights are cast, and the inputs have to follow.
        if value.is_floating_point() and dtype in (torch.float16, torch.bfloat16, torch.float64):
            return value.to(device, dtype)
        return value.to(device)

    return apply_to_collection(batch, Tensor, move)


@contextmanager
def _recording(modules: Mapping[str, nn.Module], taker: _Taker) -> Iterator[None]:
    def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            taker.take(name, output)

        return record

    handles = [part.register_forward_hook(recorder(name)) for name, part in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output(result: Any, key: str | None) -> Tensor:
    if key is not None:
        if not isinstance(result, Mapping) or key not in result:
            has = list(result) if isinstance(result, Mapping) else f"a {type(result).__name__}"
            raise DataError(f"layers: 'output.{key}' is not in what forward returned ({has})")
        result = result[key]
    if isinstance(result, Mapping):
        named = [result[name] for name in _RESULT_KEYS if name in result]
        candidates: Sequence[Any] = [*named, *result.values()]
    else:
        candidates = result if isinstance(result, (tuple, list)) else [result]
    for value in candidates:
        # A zero-dimensional first entry is a loss, not a representation.
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0:
            return value.detach()
    raise DataError(
        f"layers: expected a floating-point tensor, or a tuple or mapping with one, "
        f"got {type(result).__name__}"
    )


def _reduce(
    name: str, activation: Tensor, num_samples: int, mask: Tensor | None, options: CaptureOptions
) -> Tensor:
    full_tensor = getattr(activation, "full_tensor", None)
    activation = full_tensor() if full_tensor is not None else activation
    method = options.pooling_of(name)
    if mask is None and options.exclude_first_token and activation.ndim == 3:
        mask = drop_first_token(activation.new_ones(activation.shape[:2], dtype=torch.bool))
    try:
        rows = pool(activation, method, mask)
    except ValueError as error:
        raise DataError(f"layer {name}: {error}") from None
    if method != "none" and len(rows) != num_samples:
        raise DataError(
            f"layer {name}: {len(rows)} rows for {num_samples} samples; "
            "choose pooling='none' or a function for this layer"
        )
    if rows.untyped_storage().data_ptr() == activation.untyped_storage().data_ptr():
        # The next layer may work in place, and a view would keep the whole activation alive.
        return rows.clone(memory_format=torch.contiguous_format)
    return rows
