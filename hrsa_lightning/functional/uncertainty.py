"""Standard errors of similarities by the delete-a-group jackknife."""

import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import (
    SampleIds,
    check_ids,
    check_pair,
    projections,
    sample_keys,
)
from hrsa_lightning.functional._numerics import SimilarityWarning, warn_nan

NUM_GROUPS = 20

Value: TypeAlias = Tensor | Mapping[str, Tensor] | Mapping[int, Tensor]


class JackknifeResult(NamedTuple):
    """A value and its standard error, of one form: a tensor, or a dict of tensors.

    Attributes:
        value: as the function gives it for all samples.
        standard_error: float64, of the shape of ``value`` and under the same keys.
    """

    value: Tensor | dict[str | int, Tensor]
    standard_error: Tensor | dict[str | int, Tensor]


def jackknife(
    function: Callable[..., Value],
    x: Tensor,
    y: Tensor,
    *others: Tensor,
    num_groups: int = NUM_GROUPS,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
) -> JackknifeResult:
    r"""Standard error of a similarity over the choice of samples, by leaving out groups of them.

    The samples are dealt into :math:`G` groups of equal size (give or take one), and the value is
    computed anew without each group in turn. With :math:`\theta_{(j)}` the value without group j
    and :math:`\bar\theta` their mean, the variance is
    :math:`\frac{G - 1}{G} \sum_j (\theta_{(j)} - \bar\theta)^2` (Kott 2001, Journal of Official
    Statistics 17(4), 521-526). The groups are decided by the ids, or else by the content of the
    rows, so that batches, order and ranks do not matter.

    No bootstrap is offered: drawing samples with replacement duplicates rows, each duplicate is a
    nearest neighbor of itself and weighs on the bias of CKA, and the replicates then measure
    another quantity than the value. Leaving out whole groups, unlike single samples, is also
    consistent for values that are not smooth, such as medians (Shao and Wu 1989, Annals of
    Statistics 17(3), 1176-1197).

    The error covers the choice of samples only. For training curves, the spread over seeds is the
    better one.

    Args:
        function: takes rows of ``x``, ``y`` and ``others`` and gives a tensor (a scalar, a heatmap)
            or a mapping of tensors.
        x: (n, d_x) representations, floating point.
        y: (n, d_y) representations of the same samples.
        others: further tensors with one entry per sample, such as labels.
        num_groups: number of groups, at least 2; no more than samples are used. The error itself
            has a relative error of about 1 / sqrt(2 (num_groups - 1)): 16 % for 20 groups.
        x_ids: ids of the rows of ``x``, int or str.
        y_ids: ids of the rows of ``y``; must equal ``x_ids``.

    Returns:
        The value for all samples and its standard error. The error is NaN, with a warning, where
        the value without a group is NaN or missing though the value itself is finite.

    Raises:
        ValueError: if shapes or ids do not match or ``num_groups`` is below 2.
        TypeError: if ``x`` or ``y`` is no floating point tensor.

    Example:
        >>> import torch
        >>> from hrsa_lightning.functional import linear_cka
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, noise = torch.randn(2, 200, 4, generator=generator)
        >>> value, error = jackknife(linear_cka, x, x + noise, num_groups=10)
        >>> bool(0 < error < 0.1 < value < 1)
        True
    """
    check_num_groups(num_groups)
    check_pair(x, y)
    for index, other in enumerate(others):
        if other.shape[0] != x.shape[0]:
            raise ValueError(
                f"Expected `others[{index}]` to have {x.shape[0]} entries, got {other.shape[0]}."
            )
    ids = check_ids(x_ids, y_ids, x.shape[0])
    samples = (x, y, *others)
    value = function(*samples)
    values = _by_key(value)
    group = _groups(x, y, ids, num_groups)
    replicates = []
    with warnings.catch_warnings():
        # What makes a replicate NaN either made the value NaN, which warned, or is told below.
        warnings.simplefilter("ignore", SimilarityWarning)
        if any(bool(v.isfinite().any()) for v in values.values()):
            for index in range(min(num_groups, len(group))):
                kept = group != index
                replicates.append(_by_key(function(*(s[kept.to(s.device)] for s in samples))))
    errors = {
        key: _standard_error(key, whole, [found.get(key) for found in replicates])
        for key, whole in values.items()
    }
    if isinstance(value, Tensor):
        return JackknifeResult(values[""], errors[""])
    return JackknifeResult(values, errors)


def check_num_groups(num_groups: int) -> None:
    """Raise unless there are at least two groups."""
    if num_groups < 2:
        raise ValueError(f"Expected `num_groups` to be at least 2, got {num_groups}.")


def _groups(x: Tensor, y: Tensor, ids: list[int | str] | None, num_groups: int) -> Tensor:
    """Group of each sample, (n,): dealt in the order of keys that stay the same in any order.

    Samples with one key are told apart by ``x``; where that is equal as well, it does not matter
    which of them goes where.
    """
    order = projections(x).argsort(stable=True)
    keys = projections(y) if ids is None else sample_keys(y, ids)
    order = order[keys[order].argsort(stable=True)]
    places = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter_(0, order, places % num_groups)


def _by_key(value: Value) -> dict[str | int, Tensor]:
    if isinstance(value, Tensor):
        return {"": value}
    return dict(value.items())


def _standard_error(key: str | int, whole: Tensor, replicates: list[Tensor | None]) -> Tensor:
    nan = torch.full_like(whole, torch.nan)
    if not bool(whole.isfinite().any()):
        return nan
    found = torch.stack([nan, *(nan if part is None else part for part in replicates)])[1:]
    if not bool(found[:, whole.isfinite()].isfinite().all()):
        warn_nan(f"standard error {key}".rstrip(), "there is no value without one of the groups")
        return nan
    error: Tensor = (found.var(0, correction=0) * (len(found) - 1)).sqrt()
    return error
