"""Checks and conversions shared by the functional metrics: matrices, sample ids, halves.

Shapes: ``x`` is (n, d_x) and ``y`` is (n, d_y), two models' representations of the same n inputs.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hrsa_lightning.functional._numerics import in_units, unit_of

SampleIds: TypeAlias = Tensor | Sequence[int] | Sequence[str]

NUMBERS_AT_ONCE = 2**20
"""Keys are hashed from the rows in pieces of about so many numbers."""

_SIGN_BIT = 1 << 63
_WORD = 1 << 64


def _signed(value: int) -> int:
    """Reinterpret an unsigned 64-bit integer as the signed one with the same bits."""
    value %= _WORD
    return value - _WORD if value & _SIGN_BIT else value


# Constants of the splitmix64 finalizer (Steele et al. 2014, OOPSLA, "Fast splittable ...").
_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _logical_shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """Scramble int64 values so that every output bit depends on every input bit."""
    z = z + _GAMMA
    z = (z ^ _logical_shift(z, 30)) * _MIX_1
    z = (z ^ _logical_shift(z, 27)) * _MIX_2
    return z ^ _logical_shift(z, 31)


def check_matrix(value: object, name: str, gradients: bool = False) -> Tensor:
    """Return ``value`` if it is a floating (n, d) matrix, else raise; detached without gradients.

    Backward through a detached value is an error of torch's own; its function transforms instead
    would take it for a constant, with a gradient of zero.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"Expected `{name}` to be a torch.Tensor, got {type(value).__name__}.")
    if not value.is_floating_point():
        raise TypeError(f"Expected `{name}` to hold floating point values, got {value.dtype}.")
    if value.ndim != 2 or value.shape[1] == 0:
        raise ValueError(
            f"Expected `{name}` to have shape (samples, features), got {tuple(value.shape)}."
        )
    if gradients:
        return value
    if torch._C._functorch.is_gradtrackingtensor(value):
        raise TypeError(
            f"Expected `{name}` without gradients of torch.func: of these functions `linear_cka` "
            f"alone is differentiable."
        )
    return value.detach()


def compute_dtype(*values: Tensor) -> torch.dtype:
    """float64 if any input has it, float32 otherwise (half precision is always raised)."""
    return torch.float64 if any(v.dtype == torch.float64 for v in values) else torch.float32


def check_pair(
    x: object,
    y: object,
    *,
    min_samples: int = 0,
    equal_width: bool = False,
    gradients: bool = False,
) -> tuple[Tensor, Tensor]:
    """Check two representation matrices and bring them to one compute dtype.

    Args:
        x: expected (n, d_x), floating point.
        y: expected (n, d_y), floating point, on the device of ``x``.
        min_samples: smallest n for which the metric is defined.
        equal_width: whether the metric needs d_x = d_y.
        gradients: whether to keep them.

    Returns:
        ``x`` and ``y``, detached without ``gradients``, both float32 or both float64.

    Raises:
        TypeError: if an input is no floating point tensor.
        ValueError: if shapes or devices do not fit the metric.
    """
    x, y = check_matrix(x, "x", gradients), check_matrix(y, "y", gradients)
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"Expected `x` and `y` to hold the same samples, "
            f"got {x.shape[0]} and {y.shape[0]} rows."
        )
    if x.device != y.device:
        raise ValueError(f"Expected `x` and `y` on one device, got {x.device} and {y.device}.")
    if equal_width and x.shape[1] != y.shape[1]:
        raise ValueError(
            f"Expected `x` and `y` to have the same width, got {x.shape[1]} and {y.shape[1]}."
        )
    check_count(x.shape[0], min_samples)
    dtype = compute_dtype(x, y)
    return x.to(dtype), y.to(dtype)


def check_layers(
    xs: Tensor | Sequence[Tensor], ys: Tensor | Sequence[Tensor], *, equal_width: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Check the layers of both models: matrices of the same samples on one device."""
    left, right = _layer_list(xs, "xs"), _layer_list(ys, "ys")
    for name, layers in (("xs", left), ("ys", right)):
        for index, layer in enumerate(layers):
            if layer.shape[0] != left[0].shape[0] or layer.device != left[0].device:
                raise ValueError(
                    f"Expected `{name}[{index}]` to hold {left[0].shape[0]} samples on "
                    f"{left[0].device} like `xs[0]`, got {layer.shape[0]} on {layer.device}."
                )
            if equal_width and layer.shape[1] != left[0].shape[1]:
                raise ValueError(
                    f"Expected layers of one width, since equal dimensions are compared, "
                    f"got {left[0].shape[1]} in `xs[0]` and {layer.shape[1]} in `{name}[{index}]`."
                )
    return left, right


def _layer_list(layers: Tensor | Sequence[Tensor], name: str) -> list[Tensor]:
    if isinstance(layers, Tensor) and layers.ndim != 3:
        raise ValueError(
            f"Expected `{name}` to have shape (layers, samples, features), "
            f"got {tuple(layers.shape)}."
        )
    if len(layers) == 0:
        raise ValueError(f"Expected `{name}` to hold at least one layer, got none.")
    return [check_matrix(layer, f"{name}[{i}]") for i, layer in enumerate(layers)]


def check_count(num_samples: int, min_samples: int, metric: str = "") -> None:
    """Raise if there are fewer samples than the metric is defined for."""
    if num_samples < min_samples:
        purpose = f" for {metric}" if metric else ""
        raise ValueError(f"Expected at least {min_samples} samples{purpose}, got {num_samples}.")


def check_choice(value: str, name: str, choices: Sequence[str]) -> None:
    """Raise if an option is none of its choices."""
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {', '.join(choices)}, got {value!r}.")


def _id_list(ids: SampleIds, name: str, num_samples: int) -> list[int | str]:
    values: list[int | str] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    if len(values) != num_samples:
        raise ValueError(f"Expected `{name}` to have {num_samples} entries, got {len(values)}.")
    for value in values:
        if not isinstance(value, int | str):
            raise TypeError(f"Expected `{name}` to hold int or str, got {type(value).__name__}.")
    return values


def _id_word(value: int | str) -> int:
    if isinstance(value, int):
        return _signed(value)
    digest = hashlib.blake2b(value.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def check_ids(
    x_ids: SampleIds | None, y_ids: SampleIds | None, num_samples: int
) -> list[int | str] | None:
    """Compare the sample ids of both sides.

    Returns:
        The ids as a list, or None if neither side has any.

    Raises:
        ValueError: if a list has another length than the matrices, or at the first pair of ids
            that differ.
        TypeError: if an id is neither int nor str.
    """
    left = None if x_ids is None else _id_list(x_ids, "x_ids", num_samples)
    right = None if y_ids is None else _id_list(y_ids, "y_ids", num_samples)
    if left is None or right is None:
        return right if left is None else left
    for row, (a, b) in enumerate(zip(left, right, strict=True)):
        if a != b:
            raise ValueError(
                f"Expected `x` and `y` to hold the same samples in the same order, "
                f"got id {a!r} in `x_ids` and {b!r} in `y_ids` at row {row}."
            )
    return left


def id_words(ids: list[int | str], device: torch.device) -> Tensor:
    """Ids as int64 (n,): an int is itself, a str its hash."""
    if all(type(v) is int and -_SIGN_BIT <= v < _SIGN_BIT for v in ids):
        return torch.tensor(ids, dtype=torch.int64, device=device)
    return torch.tensor([_id_word(v) for v in ids], dtype=torch.int64, device=device)


def id_list(words: Tensor | None) -> list[int | str] | None:
    """Ids in the form `check_ids` gives them, from `id_words`."""
    if words is None:
        return None
    values: list[int | str] = words.tolist()
    return values


def sample_keys(y: Tensor, ids: list[int | str] | None) -> Tensor:
    """A 64-bit key per sample that does not depend on batches, ranks or order.

    With ids the key is a hash of the id; without, of the row of ``y`` (the reference: it stays the
    same while the live model moves), rounded to float32. Equal rows get equal keys.

    Returns:
        int64 tensor of shape (n,) on the device of ``y``.
    """
    if ids is not None:
        return _mix(id_words(ids, y.device))
    columns = torch.arange(y.shape[1], dtype=torch.int64, device=y.device)
    low = (_mix(columns) | 1).to(torch.int32)
    high = _mix(columns + y.shape[1]).to(torch.int32) | 1
    words = []
    for rows in torch.split(y, max(1, NUMBERS_AT_ONCE // max(1, y.shape[1]))):
        # Adding zero turns -0.0 into 0.0, which has other bits.
        bits = (rows.float() + 0.0).view(torch.int32)
        word = (bits * low).sum(1)
        words.append(word + (bits ^ (bits >> 15)).mul_(high).sum(1) * (1 << 32))
    return _mix(torch.cat(words))


def halves(keys: Tensor) -> Tensor:
    """Assign each sample to half 0 (fit) or half 1 (judge) by its key.

    Args:
        keys: (n,) from `sample_keys`.

    Returns:
        bool tensor of shape (n,), True for the judged half. Each sample falls on either side with
        probability 1/2, so that the halves differ in size by about sqrt(n).
    """
    return keys < 0


def split_halves(y: Tensor, ids: list[int | str] | None) -> Tensor:
    """`halves` by ids; without, every second sample along a fixed direction, equal rows together.

    Neither depends on the order of the samples, nor on scale or offset of ``y``.
    """
    if ids is not None:
        return halves(sample_keys(y, ids))
    _, group = torch.unique(sample_keys(in_units(y, unit_of(y)), None), return_inverse=True)
    place = projections(y)
    first = torch.full_like(place, torch.inf).scatter_reduce(0, group, place, "amin")
    rank = torch.empty_like(group).scatter_(0, first.argsort(), torch.arange(len(y)).to(group))
    return rank[group] % 2 == 1


def projections(x: Tensor) -> Tensor:
    """Where each row lies along a fixed direction without symmetries, float64 (n,)."""
    unit = unit_of(x)
    columns = torch.arange(x.shape[1], dtype=torch.int64, device=x.device)
    direction = _mix(columns).double() / 2.0**63
    parts = torch.split(x, max(1, NUMBERS_AT_ONCE // x.shape[1]))
    return torch.cat([(in_units(rows.double(), unit) * direction).sum(1) for rows in parts])
