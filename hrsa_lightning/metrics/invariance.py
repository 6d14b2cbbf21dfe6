"""Which transformations of a representation a metric does not see, and the HRSA level that means.

Shape legend: n samples, d features.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.functional._numerics import SimilarityWarning
from hrsa_lightning.functional.permutation import by_key

SPAN = 0.02
"""A value that moved by more than this share of the way to that of unrelated rows has changed."""

READOUT = 2
"""Directions that tell the class of a sample; the others carry most of the variance."""

LINEAR_MAPS = ("permutation", "isotropic_scaling", "rotation", "anisotropic_scaling", "invertible")
ASKED = {
    "representation": (),
    "geometry": ("permutation", "isotropic_scaling", "rotation"),
    "function": LINEAR_MAPS,
    "readout": ("off_readout",),
}
"""What the levels of arXiv 2601.21192 must not see; a readout is of level function, too."""


class InvarianceProfile(NamedTuple):
    """What `invariance_profile` finds of one value.

    Attributes:
        level: ``"representation"``, ``"geometry"`` or ``"function"``; empty for a value that does
            not tell related rows from unrelated ones.
        kept: transformations that leave the value as it is.
        breaks: invariances that the level asks for and the value does not have.
        values: by transformation; ``"identity"`` and ``"unrelated"`` are the ends of the scale.
    """

    level: str
    kept: tuple[str, ...]
    breaks: tuple[str, ...]
    values: dict[str, float]


def invariance_profile(
    metric: Any,
    *,
    num_samples: int = 600,
    num_features: int = 12,
    seed: int = 0,
) -> InvarianceProfile | dict[str | int, InvarianceProfile]:
    r"""Find the HRSA level of a metric by what it does not see.

    The levels are defined by invariances (arXiv 2601.21192). Seeded rows are compared with
    transformed copies of themselves: features permuted, scaled alike, rotated, scaled one by one,
    mixed by an invertible matrix, shifted, and replaced by noise in all directions but the few that
    tell the class of a sample.

    - *representation*: a rotation changes the value.
    - *geometry*: a rotation does not, an anisotropic or invertible map does.
    - *function*: no invertible map changes it; or it takes labels, and what happens off the
      directions of their readout does not change it.

    A shift is in the profile, but no level asks for it.

    Args:
        metric: a torchmetrics metric or collection with ``update(x, y)`` or ``update(x, y,
            labels)`` (it is not changed), or a function of ``x`` and ``y`` (and ``labels``) that
            gives a tensor, a named tuple or a mapping.
        num_samples: n.
        num_features: d, at least 8.
        seed: of rows and transformations.

    Returns:
        A profile, or a dict of them by key for a metric with several values.

    Example:
        >>> from hrsa_lightning.functional import linear_cka
        >>> profile = invariance_profile(linear_cka)
        >>> profile.level, profile.breaks, "anisotropic_scaling" in profile.kept
        ('geometry', (), False)
    """
    generator = torch.Generator().manual_seed(seed)
    y, labels, others = _rows(num_samples, num_features, generator)
    takes_labels = _takes_labels(metric, y, labels)

    def value(x: Tensor) -> dict[str | int, float]:
        given = (x, y, labels) if takes_labels else (x, y)
        found = _applied(metric, *given)
        parts = {"": found} if isinstance(found, Tensor | float) else by_key(found)
        return {key: float(part) for key, part in parts.items()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SimilarityWarning)
        found = {name: value(x) for name, x in others.items()}
    profiles = {
        key: _profile({name: parts[key] for name, parts in found.items()}, takes_labels)
        for key in found["identity"]
    }
    return profiles[""] if list(profiles) == [""] else profiles


def _rows(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Rows (n, d) whose classes follow a few of their directions, and what becomes of them."""

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    def rotation() -> Tensor:
        matrix: Tensor = torch.linalg.qr(normal(d, d))[0]
        return matrix

    hidden = normal(n, d) * torch.cat((torch.ones(READOUT), torch.linspace(1.5, 3, d - READOUT)))
    hidden[:, :READOUT] += 4 * hidden[:, :READOUT].sign()  # classes apart, which a readout finds
    basis = rotation() * torch.logspace(-0.5, 0.5, d)  # features of unequal variance
    y = hidden @ basis
    labels = ((hidden[:, :READOUT] > 0).long() * torch.tensor([1, 2])).sum(1)
    replaced = torch.cat(
        (hidden[:, :READOUT], hidden[torch.randperm(n, generator=generator), READOUT:]), 1
    )
    scales = torch.logspace(-1, 1, d)[torch.randperm(d, generator=generator)]
    return (
        y,
        labels,
        {
            "identity": y,
            "unrelated": y[torch.randperm(n, generator=generator)],
            "permutation": y[:, torch.randperm(d, generator=generator)],
            "isotropic_scaling": 7 * y,
            "rotation": y @ rotation(),
            "anisotropic_scaling": y * scales,
            "invertible": y @ rotation() * scales @ rotation(),
            "shift": y + 5 * normal(d),
            "off_readout": replaced @ basis,
        },
    )


def _takes_labels(metric: Any, y: Tensor, labels: Tensor) -> bool:
    """Whether a metric cannot do without labels."""
    try:
        _applied(metric, y, y)
    except TypeError:
        _applied(metric, y, y, labels)
        return True
    return False


def _applied(metric: Any, *given: Tensor) -> Any:
    if not hasattr(metric, "update"):
        function: Callable[..., Any] = metric
        return function(*given)
    fresh = metric.clone()
    fresh.reset()
    fresh.update(*given)
    return fresh.compute()


def _profile(values: dict[str, float], takes_labels: bool) -> InvarianceProfile:
    same = values["identity"]
    span = abs(same - values["unrelated"])
    kept = tuple(
        name
        for name, value in values.items()
        if name not in ("identity", "unrelated") and abs(value - same) <= SPAN * span
    )
    if takes_labels and "off_readout" in kept:
        kind = "readout"
    elif set(LINEAR_MAPS) <= set(kept):
        kind = "function"
    else:
        kind = "geometry" if "rotation" in kept else "representation"
    if not span > 0:
        return InvarianceProfile("", kept, (), values)
    breaks = tuple(name for name in ASKED[kind] if name not in kept)
    return InvarianceProfile("function" if kind == "readout" else kind, kept, breaks, values)
