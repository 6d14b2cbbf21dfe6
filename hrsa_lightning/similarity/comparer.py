"""From two representations of the same samples to values, whatever the metrics are."""

import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from hrsa_lightning.callbacks.metric_sets import fit_widths, metric_set
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.functional import jackknife
from hrsa_lightning.functional.uncertainty import t_quantile

__all__ = ["Comparer", "Result", "variance_shares"]

MIN_SAMPLES = 4
MIN_GROUPS = 5


@dataclass
class Result:
    """What one comparison gave.

    Attributes:
        values: By metric key.
        floors: Chance or null value by metric key, where one is known.
        notes: What the reader has to know: metrics left out, degenerate or non-finite input.
    """

    values: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Comparer:
    """Applies a set of metrics to pairs of representations.

    Args:
        metrics: See `metric_set`.
        num_classes: See `metric_set`.
        num_groups: Leave each of so many groups of samples out once, for a jackknife band around
            every value; 0 for none.

    Raises:
        ConfigError: When `metrics` is none of these or names an unknown key.
    """

    def __init__(
        self, metrics: Any = None, *, num_classes: int | None = None, num_groups: int = 0
    ) -> None:
        if num_groups and num_groups < MIN_GROUPS:
            raise ConfigError(
                f"num_jackknife_groups: expected 0 or at least {MIN_GROUPS}, got {num_groups}"
            )
        self._metrics, self._keys = metric_set(metrics, num_classes)
        self._num_groups = num_groups
        self._fitting: dict[Hashable, tuple[MetricCollection, list[str]]] = {}

    def compare(
        self, x: Tensor, y: Tensor, labels: Tensor | None = None, key: Hashable = None
    ) -> Result:
        """Compare two (samples, features) matrices, row by row of the same samples.

        Args:
            x: (samples, features) of the live model.
            y: (samples, other features) of the reference.
            labels: (samples,), classes, for metrics that use them.
            key: Names a reference whose `y` will come again, so that metrics that keep what they
                found of it, such as its neighbor lists, are kept for it.

        Raises:
            DataError: When the numbers of rows differ or are too small, or a metric gives no
                single number.
        """
        if len(x) != len(y):
            raise DataError(
                f"{len(x)} rows against {len(y)}; tokens can be compared only where both models "
                "use the same tokenizer"
            )
        if len(x) < MIN_SAMPLES:
            raise DataError(f"probes: expected at least {MIN_SAMPLES} samples, got {len(x)}")
        # Ids keep a sample in its half at every evaluation, though both models change. A metric
        # that does not know them is not given them, as with labels.
        ids = torch.arange(len(x), device=x.device)
        known = {"x_ids": ids, "y_ids": ids} | ({} if labels is None else {"labels": labels})
        metrics, notes = self._metrics_for(x, y, known, key)
        result = Result(notes=list(notes))
        if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
            # Some metrics make a plausible number of NaN, so they do not get to see it. Which keys
            # there would be is asked with noise.
            noise = [torch.randn(m.shape, device=m.device) for m in (x, y)]
            keys = self._run(metrics, noise[0], noise[1], known, Result())
            result.values = dict.fromkeys(keys, float("nan"))
            result.notes.append("representations are not finite, so all values are NaN")
            return result
        result.values = self._run(metrics, x, y, known, result)
        if self._num_groups:
            result.values |= self._band(metrics, x, y, known, result)
        return result

    def _metrics_for(
        self, x: Tensor, y: Tensor, known: dict[str, Tensor], key: Hashable
    ) -> tuple[MetricCollection, list[str]]:
        """The metrics that can take these widths; the others are left out and named."""
        widths = (x.shape[1], y.shape[1])
        if (widths, key) not in self._fitting:
            self._fitting[widths, key] = fit_widths(self._metrics, x, y, known)
        return self._fitting[widths, key]

    def _run(
        self,
        metrics: MetricCollection,
        x: Tensor,
        y: Tensor,
        known: dict[str, Tensor],
        result: Result,
    ) -> dict[str, float]:
        """Values by key; floors and notes go to `result`."""
        if _members(metrics)[0][1].device != x.device:
            metrics.to(x.device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                metrics.update(x, y, **known)
                values = {name: _number(name, value) for name, value in metrics.compute().items()}
                floors = _floors(metrics, values)
            finally:
                metrics.reset()  # lets go of the rows as well
        result.notes += dict.fromkeys(str(warning.message) for warning in caught)
        if self._keys is not None:
            values = {key: values[key] for key in self._keys if key in values}
        result.floors |= {key: floors[key] for key in values if key in floors}
        return values

    def _band(
        self,
        metrics: MetricCollection,
        x: Tensor,
        y: Tensor,
        known: dict[str, Tensor],
        result: Result,
    ) -> dict[str, float]:
        """95 % band around every value, from the standard errors of a grouped jackknife."""

        def values_of(x: Tensor, y: Tensor, *parts: Tensor) -> dict[str, Tensor]:
            values = self._run(metrics, x, y, dict(zip(known, parts, strict=True)), Result())
            return {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}

        groups = min(self._num_groups, len(x))
        ids = known["y_ids"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            errors = jackknife(
                values_of, x, y, *known.values(), num_groups=groups, x_ids=ids, y_ids=ids
            )[1]
        result.notes += dict.fromkeys(str(warning.message) for warning in caught)
        assert isinstance(errors, dict)
        width = t_quantile(groups - 1)
        band: dict[str, float] = {}
        for key, value in result.values.items():
            half = width * float(errors[key])
            band |= {f"{key}_low": value - half, f"{key}_high": value + half}
        return band


def variance_shares(x: Tensor) -> dict[str, float]:
    """Share of the variance that the largest sample and the largest dimension carry.

    Where one sample or dimension dominates, the similarity of two representations is a tale of that
    one.

    Args:
        x: (samples, features).

    Returns:
        `variance_share_sample` and `variance_share_dimension`, in [0, 1]; NaN without variance.

    Example:
        >>> shares = variance_shares(torch.tensor([[9.0, 1.0], [-9.0, -1.0]]))
        >>> round(shares["variance_share_dimension"], 3)
        0.988
    """
    centered = x.double()
    squares = (centered - centered.mean(0)).square_()
    total = squares.sum()
    return {
        "variance_share_sample": float(squares.sum(1).max() / total),
        "variance_share_dimension": float(squares.sum(0).max() / total),
    }


def _floors(metrics: MetricCollection, values: Mapping[str, float]) -> dict[str, float]:
    """Chance or null values under the keys of the values, where metrics know them."""
    found: dict[str, float] = {}
    for name, metric in _members(metrics):
        if not callable(chance := getattr(metric, "chance", None)):
            continue
        known = {
            f"{metrics.prefix or ''}{k}{metrics.postfix or ''}": v for k, v in chance().items()
        }
        whole = f"{metrics.prefix or ''}{name}{metrics.postfix or ''}"
        if len(known) == 1 and whole in values:  # one value has the metric's name for a key
            known = dict.fromkeys([whole], *known.values())
        found |= known
    return {key: floor for key, floor in found.items() if key in values}


def _members(metrics: MetricCollection) -> list[tuple[str, Metric]]:
    """What `items` gives, without its setting the shared state of every metric anew."""
    return [(name, part) for name, part in metrics.named_children() if isinstance(part, Metric)]


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise DataError(f"metric {name}: expected one number, got the shape {tuple(value.shape)}")
    return float(value)
