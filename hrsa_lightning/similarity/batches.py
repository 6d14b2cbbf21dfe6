"""Batches and results of any structure: copied, hashed, given to a module, and taken apart.

Shapes: an activation is (samples, features), (samples, tokens, features), (samples, channels,
*spatial), or a list with a tensor for each sample.
"""

import copy
import dataclasses
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from hrsa_lightning.errors import DataError, cut

Activation = Tensor | list[Tensor]


class _PerSample(list[Any]):
    """Entries of the samples of a list."""


# Entries of a returned mapping that may be the model's result, in order of preference.
_RESULT_KEYS = ("embeddings", "sentence_embedding", "last_hidden_state", "logits")
_CAST = (torch.float16, torch.bfloat16, torch.float64)


@runtime_checkable
class _Movable(Protocol):
    """What Lightning moves to a device: a tensor, or an object with a method `to`."""

    def to(self, device: torch.device) -> Any: ...


def copied(batch: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A copy of a batch on a device, which a forward pass may change.

    What a trainer of Lightning moves is moved: tensors, and objects with a method `to`, in
    collections and dataclasses of any depth.

    Args:
        batch: The batch.
        device: Where the copy is.
        dtype: That of the weights: under true half precision they are cast, and floating-point
            tensors have to follow.
    """

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            follows = value.is_floating_point() and dtype in _CAST
            return value.detach().to(device, dtype if follows else None, copy=True)
        value = copy.deepcopy(value)
        moved = value.to(device)
        return value if moved is None else moved

    return apply_to_collection(batch, _Movable, move)


def content_of(batch: Any) -> Iterator[bytes]:
    """The content of a batch for a hash: its tensors, or all else where it has none."""
    tensors = [leaf for leaf in _leaves(batch, set()) if isinstance(leaf, Tensor)]
    for tensor in tensors:
        yield from map(_bytes, _strided(tensor.detach().cpu()))
    for leaf in () if tensors else _leaves(batch, set()):
        if hasattr(leaf, "tobytes"):
            yield leaf.tobytes()
        elif isinstance(leaf, (str, bytes, int, float)):
            yield repr(leaf).encode()


def sizes_of(batch: Any) -> set[int] | None:
    """How many samples a batch may have: first dimensions of tensors and lengths of lists.

    Returns:
        The numbers; `None` where an object keeps to itself how many it holds.
    """
    if hasattr(batch, "shape"):  # a tensor or an array
        return {len(batch)} if len(batch.shape) else set()
    if isinstance(batch, Mapping):
        parts: Sequence[Any] = [*batch.values()]
    elif _is_list(batch):
        parts = batch
    elif dataclasses.is_dataclass(batch):
        parts = [*_attributes(batch).values()]
    else:
        return None if _attributes(batch) else set()
    # A batch of its own class says how many samples it holds, a mapping how many keys.
    counts = isinstance(batch, list) or (
        dataclasses.is_dataclass(batch) and hasattr(batch, "__len__")
    )
    found: set[int] = {len(batch)} if counts else set()
    for sizes in map(sizes_of, parts):
        if sizes is None:
            return None
        found |= sizes
    return found


def described(batch: Any) -> str:
    """The structure of a batch in a few words of an error.

    Example:
        >>> described([torch.ones(4, 3), {"y": torch.ones(4)}])
        '[Tensor (4, 3), {y: Tensor (4,)}]'
    """
    if isinstance(batch, Tensor):
        return f"Tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        inner = ", ".join(f"{key}: {described(value)}" for key, value in batch.items())
        return cut(f"{{{inner}}}", 100)
    if _is_list(batch):
        return cut(f"[{', '.join(map(described, batch[:8]))}]", 100)
    return type(batch).__name__


def entry_of(holder: Any, name: str, default: Any = None) -> Any:
    """An entry of a mapping, or an attribute of any other object."""
    if isinstance(holder, Mapping):
        return holder.get(name, default)
    return getattr(holder, name, default)


def call_module(module: nn.Module, batch: Any) -> Any:
    """Call a module with a batch in the way that its `forward` can take it.

    A mapping is passed by keyword, without the keys that `forward` does not name (or as one
    argument when `forward` requires one that is no key); a tuple or list fills the parameters that
    have no default, so that the labels of `(inputs, labels)` are left out, or gives its first entry
    where that is a mapping with all of them; an object is passed by its attributes where `forward`
    requires several; anything else is the argument.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.kind in positional and p.default is p.empty]
    if isinstance(batch, Mapping):
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        known = {p.name for p in parameters} & set(batch)
        if (len(required) == 1 and required[0] not in batch) or not (known or takes_any):
            return module(batch)
        return module(**{key: batch[key] for key in batch if takes_any or key in known})
    if _is_list(batch) and not isinstance(batch, PackedSequence):
        first = batch[0] if len(batch) else None
        if required and isinstance(first, Mapping) and set(required) <= set(first):
            return call_module(module, first)
        return module(*batch[: max(1, len(required))])
    if len(required) > 1 and all(hasattr(batch, name) for name in required):
        given = {p.name for p in parameters if getattr(batch, p.name, None) is not None}
        return module(**{name: getattr(batch, name) for name in given})
    return module(batch)


def activation_of(result: Any, key: str | None, sizes: set[int] | None) -> Activation:
    """What a layer or a forward call returned, as a tensor or a list with one for each sample.

    Args:
        result: Of any structure.
        key: Entry of the result, `first.second` for one inside another; `None` for the result as a
            whole, of which the first floating-point tensor counts.
        sizes: How many samples the batch may have.

    Raises:
        DataError: When there is no such entry, or no floating-point tensor.
    """
    value = result
    for part in key.split(".") if key else ():
        value = _entry(value, part, f"output.{key}")
    found = next(_candidates(value, sizes or set()), None)
    if found is None:
        if _is_list(value) and value and all(isinstance(item, Mapping) for item in value):
            names = ", ".join(f"output.{name}" for name in value[0])
            raise DataError(f"layers: forward returns a list of mappings; choose one of {names}")
        raise DataError(
            "layers: expected a floating-point tensor, or a structure with one, "
            f"got {described(value)}; choose another layer"
        )
    return found


def _candidates(value: Any, sizes: Collection[int]) -> Iterator[Activation]:
    """Floating-point tensors of a structure, and lists of them with one for each sample."""
    if isinstance(value, Tensor):
        # A zero-dimensional entry is a loss, not a representation.
        if value.is_nested:
            yield [part.detach() for part in value.unbind()]
        elif value.is_floating_point() and value.ndim > 0:
            yield value.detach()
    elif isinstance(value, PackedSequence):
        padded, lengths = pad_packed_sequence(value, batch_first=True)
        yield [row[:length].detach() for row, length in zip(padded, lengths, strict=True)]
    elif isinstance(value, Mapping):
        named = [value[name] for name in _RESULT_KEYS if name in value]
        for part in (*named, *value.values()):
            yield from _candidates(part, sizes)
    elif _is_list(value):
        if _has_one_per_sample(value, sizes):
            yield [part.detach() for part in value]
        elif not all(isinstance(part, Mapping) for part in value):
            for part in value:
                yield from _candidates(part, sizes)
    elif not isinstance(value, (nn.Module, type)):
        for part in _attributes(value).values():
            if isinstance(part, (Tensor, Mapping, tuple, list)):
                yield from _candidates(part, sizes)


def _has_one_per_sample(values: Sequence[Any], sizes: Collection[int]) -> bool:
    """Whether a list holds samples, and not several results that all have a row for each."""
    are_rows = all(isinstance(v, Tensor) and v.is_floating_point() and v.ndim for v in values)
    if isinstance(values, _PerSample) or len(values) < 2 or not are_rows:
        return are_rows and isinstance(values, _PerSample)
    lengths, shapes = {len(value) for value in values}, {value.shape[1:] for value in values}
    if len(lengths) > 1 and len(shapes) == 1:
        return True  # ragged
    # Results of a block, such as two forecasts of different lengths, are not alike as samples are.
    dims, widths = {value.ndim for value in values}, {value.shape[-1] for value in values}
    are_alike = len(dims) == 1 and (max(dims) > 2 or len(widths) == 1)
    return are_alike and len(values) in sizes and not lengths & set(sizes)


def _entry(value: Any, part: str, name: str) -> Any:
    if _is_list(value) and not hasattr(value, "_fields"):
        if part.isdigit() and int(part) < len(value):
            return value[int(part)]
        return _PerSample(_entry(item, part, name) for item in value)
    found = entry_of(value, part)
    if found is None:
        has = list(value) if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise DataError(f"layers: {name!r} is not in what forward returned ({has})")
    return found


def _leaves(value: Any, seen: set[int]) -> Iterator[Any]:
    """What a structure holds, in order; of an object with a method `to`, its attributes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part, seen)
    elif _is_list(value):
        for part in value:
            yield from _leaves(part, seen)
    elif (attributes := _attributes(value)) and not callable(value):
        if id(value) not in seen:
            seen.add(id(value))
            yield from _leaves(attributes, seen)
    else:
        yield value


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds by name; of a dataclass, or one with a method `to`, slots as well."""
    held = {**getattr(value, "__dict__", {})}
    if dataclasses.is_dataclass(value) or isinstance(value, _Movable):
        for kind in inspect.getmro(type(value)):
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, name):
                    held[name] = getattr(value, name)
    return held


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _strided(tensor: Tensor) -> Sequence[Tensor]:
    """Tensors with all that one of another layout holds."""
    if tensor.is_nested:
        return tensor.unbind()
    if tensor.layout is torch.sparse_coo:
        return (tensor.coalesce().indices(), tensor.coalesce().values())
    if tensor.layout is torch.sparse_csr:
        return (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    return (tensor,)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
