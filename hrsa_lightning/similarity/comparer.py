"""Metrics of a pair of representations: which ones, which fit, their values, chance levels, bands.

Shapes: `x` is (samples, features) of the live model, `y` is (samples, other features) of the
reference, row by row of the same samples.
"""

import math
import re
import time
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.functional import SimilarityWarning, jackknife
from hrsa_lightning.functional.permutation import check_num_permutations
from hrsa_lightning.metrics import (
    CKNNA,
    InvarianceProfile,
    PairMetric,
    hrsa_metrics,
    invariance_profile,
)
from hrsa_lightning.metrics._base import shared_by
from hrsa_lightning.metrics.collection import EXTRAS
from hrsa_lightning.similarity.measurement import Measurement

MIN_SAMPLES = 4
MIN_GROUPS = 5


MIN_WIDTH = 16
DOMINATED = (
    "one dimension carries most of the variance, and CKA and Procrustes are about it: read "
    "cka_standardized"
)


@dataclass
class Result:
    """What one comparison gave.

    Attributes:
        values: By metric key.
        chance: Value of unrelated representations by metric key, where one is known.
        bands: Ends of the 95 % band by metric key, where bands were asked for.
        identity: Value of `y` and itself by metric key, where it was asked for and is known.
        null: 95 % level and p-value of permuted samples by metric key, likewise.
        notes: Metrics left out, degenerate or non-finite input.
        levels: HRSA level by metric key, of metrics that are not ours.
    """

    values: dict[str, float] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    bands: dict[str, tuple[float, float]] = field(default_factory=dict)
    identity: dict[str, float] = field(default_factory=dict)
    null: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    levels: Mapping[str, str] = field(default_factory=dict)


class Comparer:
    """Applies a set of metrics to pairs of representations.

    Args:
        metrics: `None` for the HRSA set, a list of its keys to keep only those, a torchmetrics
            metric or collection with `update(x, y)`, or a list or mapping of metrics.
        num_classes: Number of classes of the labels, for the probe of the HRSA set.
        num_groups: Leave each of so many groups of samples out once, for a jackknife band around
            every value; 0 for none.
        num_permutations: Permutations of the samples for levels and p-values where a comparison is
            calibrated; 0 for none.

    Attributes:
        min_samples: Fewest samples for which all metrics are defined.
        calibration_seconds: Time that calibrations have taken so far.

    Raises:
        ConfigError: When `metrics` is none of these or names an unknown key.
    """

    def __init__(
        self,
        metrics: Any = None,
        *,
        num_classes: int | None = None,
        num_groups: int = 0,
        num_permutations: int = 0,
    ) -> None:
        if num_permutations:
            try:
                check_num_permutations(num_permutations)
            except ValueError:
                raise ConfigError(
                    "null: expected 0 or at least 19 permutations, which a 95 % level needs, "
                    f"got {num_permutations}"
                ) from None
        if num_groups and num_groups < MIN_GROUPS:
            raise ConfigError(
                f"num_jackknife_groups: expected 0 or at least {MIN_GROUPS}, got {num_groups}"
            )
        self._metrics, self._keys = _metric_set(metrics, num_classes)
        members = self._metrics.values(copy_state=False)
        needs = [metric.min_samples for metric in members if isinstance(metric, PairMetric)]
        self.min_samples = max([MIN_SAMPLES, *needs])
        self._num_groups = num_groups
        self._num_permutations = num_permutations
        self.calibration_seconds = 0.0
        self._fitting: dict[Hashable, tuple[MetricCollection, list[str]]] = {}

    def compare(
        self,
        x: Tensor,
        y: Tensor,
        labels: Tensor | None = None,
        key: Hashable = None,
        *,
        calibrate: bool = False,
    ) -> Result:
        """Compare two representations.

        Args:
            x: (samples, features) of the live model.
            y: (samples, other features) of the reference.
            labels: (samples,), classes, for metrics that use them.
            key: Names a reference whose `y` will come again, so that metrics that keep what they
                found of it, such as its neighbor lists, are kept for it.
            calibrate: Also give what `y` has with itself and with permuted samples.

        Raises:
            DataError: When the numbers of rows differ or are too small, or a metric gives no
                single number.
        """
        if len(x) != len(y):
            raise DataError(
                f"{len(x)} rows against {len(y)}; tokens can be compared only where both models "
                "use the same tokenizer"
            )
        if len(x) < self.min_samples:
            raise DataError(f"probes: expected at least {self.min_samples} samples, got {len(x)}")
        # Ids keep a sample in its half at every evaluation, though both models change. A metric
        # that does not know them is not given them, as with labels.
        ids = torch.arange(len(x), device=x.device)
        known = {"x_ids": ids, "y_ids": ids} | ({} if labels is None else {"labels": labels})
        widths = (x.shape[1], y.shape[1])
        if (widths, key) not in self._fitting:
            self._fitting[widths, key] = _fit_widths(self._metrics, x, y, known)
        metrics, notes = self._fitting[widths, key]
        result = Result(notes=list(notes), levels=self._levels)
        if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
            # Some metrics make a plausible number of NaN, so they do not get to see it. Which keys
            # there would be is asked with noise.
            noise = [torch.randn(m.shape, device=m.device) for m in (x, y)]
            keys = self._run(metrics, noise[0], noise[1], known, Result())
            result.values = dict.fromkeys(keys, float("nan"))
            result.notes.append("representations are not finite, so all values are NaN")
            return result
        result.values = self._run(metrics, x, y, known, result, calibrate=calibrate)
        if any(key.startswith("procrustes") for key in result.values):
            self._note_width(len(x), max(widths), result)
        if self._num_groups:
            self._add_bands(metrics, x, y, known, result)
        return result

    @cached_property
    def _levels(self) -> dict[str, str]:
        """Levels of the metrics that are not ours, by their keys."""
        found: dict[str, str] = {}
        before, after = self._metrics.prefix or "", self._metrics.postfix or ""
        for name, metric in _members(self._metrics):
            if isinstance(metric, PairMetric):
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    profiles = invariance_profile(metric)
            except Exception:  # a metric may take other rows than those of the profile
                continue
            if isinstance(profiles, InvarianceProfile):
                profiles = {name: profiles}
            found |= {f"{before}{key}{after}": each.level for key, each in profiles.items()}
        return found

    def _run(
        self,
        metrics: MetricCollection,
        x: Tensor,
        y: Tensor,
        known: dict[str, Tensor],
        result: Result,
        *,
        calibrate: bool = False,
    ) -> dict[str, float]:
        """Values by key; what is known of them goes to `result`."""
        if _members(metrics)[0][1].device != x.device:
            metrics.to(x.device)
        with _noted_in(result):
            try:
                metrics.update(x, y, **known)
                values = {name: _number(name, value) for name, value in metrics.compute().items()}
                _split_null(metrics, values, result)
                chance = _by_key(metrics, values, "chance")
                if calibrate:
                    self._calibrate(metrics, values, result)
            finally:
                metrics.reset()  # lets go of the rows as well
        if self._keys is not None:
            values = {key: values[key] for key in self._keys if key in values}
        result.chance |= {key: chance[key] for key in values if key in chance}
        result.identity = {key: v for key, v in result.identity.items() if key in values}
        result.null = {key: v for key, v in result.null.items() if key in values}
        return values

    def _note_width(self, num_samples: int, width: int, result: Result) -> None:
        """Say once that samples are few for the width, and not at every place with its rank."""
        if num_samples // 2 > width:
            return
        told = [note for note in result.notes if "inverse row entropy is NaN" in note]
        result.notes = [note for note in result.notes if note not in told]
        undefined = "inverse row entropy is undefined, and " if told else ""
        result.notes.append(
            f"{num_samples} samples of {width} features: {undefined}held-out Procrustes of a model "
            f"with itself is not 0 / 1 / 1; take more than {2 * width} samples, or tokens as rows "
            "(pooling: none)"
        )

    def _calibrate(
        self,
        metrics: MetricCollection,
        values: Mapping[str, float],
        result: Result,
    ) -> None:
        started = time.perf_counter()
        result.identity = _by_key(metrics, values, "identity")
        if self._num_permutations:
            with shared_by([part for _, part in _members(metrics) if isinstance(part, PairMetric)]):
                result.null |= _by_key(metrics, values, "permuted", self._num_permutations)
        self.calibration_seconds += time.perf_counter() - started

    def _add_bands(
        self,
        metrics: MetricCollection,
        x: Tensor,
        y: Tensor,
        known: dict[str, Tensor],
        result: Result,
    ) -> None:
        """95 % bands around the values, from the standard errors of a grouped jackknife."""
        from scipy.special import stdtrit

        def values_of(x: Tensor, y: Tensor, *parts: Tensor) -> dict[str, Tensor]:
            values = self._run(metrics, x, y, dict(zip(known, parts, strict=True)), Result())
            return {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}

        groups = min(self._num_groups, len(x))
        ids = known["y_ids"]
        with _noted_in(result):
            errors = jackknife(
                values_of, x, y, *known.values(), num_groups=groups, x_ids=ids, y_ids=ids
            )[1]
        assert isinstance(errors, dict)
        width = float(stdtrit(groups - 1, 0.975))  # quantile of Student's t
        for key, value in result.values.items():
            half = width * float(errors[key])
            result.bands[key] = (value - half, value + half)


@contextmanager
def _noted_in(result: Result) -> Iterator[None]:
    """Turn the warnings of metrics into notes; those of other threads and libraries go on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    own = [warning for warning in caught if issubclass(warning.category, SimilarityWarning)]
    result.notes += dict.fromkeys(str(warning.message) for warning in own)
    for warning in caught:
        if warning not in own:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


class LabeledComparer:
    """Compares two representations over all samples and within each label.

    Args:
        comparer: For samples without labels, and within a label.
        labels: One per sample, or `None`.
        labeled: For all samples where they have labels; `None` takes `comparer`.
        by_label: Whether to compare within each label at all.

    Attributes:
        comparers: Those that were given.
    """

    def __init__(
        self,
        comparer: Comparer | None,
        labels: Sequence[str] | None = None,
        labeled: Comparer | None = None,
        *,
        by_label: bool = False,
    ) -> None:
        self._comparer = comparer
        self._labeled = labeled
        self.comparers = [each for each in (comparer, labeled) if each is not None]
        self._by_label = by_label
        self._classes = sorted(set(labels or ()))
        place = {label: number for number, label in enumerate(self._classes)}
        self._numbers = torch.tensor([place[label] for label in labels or ()], dtype=torch.int64)

    def compare(
        self,
        place: Measurement,
        x: Tensor,
        y: Tensor,
        key: tuple[Hashable, ...] | None = None,
        *,
        calibrate: bool = False,
    ) -> tuple[list[Measurement], list[tuple[str, Measurement]]]:
        """Measurements of two representations; notes for the reader, and the place of each.

        `place` is what the measurements have in common, the rest as of `Comparer.compare`; within
        labels nothing is calibrated.

        Raises:
            DataError: See `Comparer.compare`.
        """
        numbers = self._numbers.to(x.device) if len(self._numbers) == len(x) else None
        uses_labels = self._labeled is not None and numbers is not None
        comparer = self._labeled if uses_labels else self._comparer
        assert comparer is not None
        known = numbers if uses_labels else None
        result = comparer.compare(x, y, known, key, calibrate=calibrate)
        found, notes = _measurements(place, result), [(note, place) for note in result.notes]
        if not self._by_label or numbers is None or self._comparer is None:
            return found, notes
        for number, label in enumerate(self._classes):
            rows, here = numbers == number, place._replace(label=label)
            if int(rows.sum()) < self._comparer.min_samples:
                notes.append(("there are fewer samples than the metrics need", here))
                continue
            own = None if key is None else (*key, label)
            result = self._comparer.compare(x[rows], y[rows], key=own)
            found += _measurements(here, result)
            notes += [(note, here) for note in result.notes]
        return found, notes


def _measurements(place: Measurement, result: Result) -> list[Measurement]:
    found = []
    for metric, value in result.values.items():
        low, high = result.bands.get(metric, (None, None))
        level, p_value = result.null.get(metric, (None, None))
        found.append(
            place._replace(
                metric=metric,
                value=value,
                chance=result.chance.get(metric),
                low=low,
                high=high,
                identity=result.identity.get(metric),
                null_95=level,
                p_value=p_value,
                level=result.levels.get(metric, ""),
            )
        )
    return found


def variance_shares(x: Tensor) -> dict[str, float]:
    """Share of the variance that the largest sample and the largest dimension carry.

    Where one sample or dimension dominates, a similarity says little about all others.

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


def is_dominated(share: float, width: int) -> bool:
    """Whether the largest dimension carries most of the variance, where there are many."""
    return share > 0.5 and width >= MIN_WIDTH


def _metric_set(metrics: Any, num_classes: int | None) -> tuple[MetricCollection, list[str] | None]:
    """The collection that a user's `metrics=` means, and the keys to keep of its values."""
    if metrics is None:
        return hrsa_metrics(num_classes=num_classes), None
    if isinstance(metrics, MetricCollection):
        return metrics.clone(), None
    if isinstance(metrics, Metric):
        return MetricCollection([metrics.clone()]), None
    if isinstance(metrics, Mapping) and metrics:
        return MetricCollection({name: metric.clone() for name, metric in metrics.items()}), None
    if isinstance(metrics, Sequence) and metrics and not isinstance(metrics, str):
        if all(isinstance(metric, str) for metric in metrics):
            return _named(list(metrics), num_classes), list(metrics)
        if all(isinstance(metric, Metric) for metric in metrics):
            return MetricCollection([metric.clone() for metric in metrics]), None
    raise ConfigError(
        "metrics: expected null, a list of names of HRSA metrics, or torchmetrics metrics, "
        f"got {metrics!r}"
    )


def _named(keys: Sequence[str], num_classes: int | None) -> MetricCollection:
    """The metrics of the HRSA set that give these keys, without those that need absent labels."""
    ks = [int(key[12:]) for key in keys if key.startswith("knn_overlap_") and key[12:].isdigit()]
    available = hrsa_metrics(num_classes=num_classes, k=ks or (10,), extra=EXTRAS)
    known: dict[str, Any] = dict(
        hrsa_metrics(num_classes=2, k=ks or (10,), extra=EXTRAS).items(keep_base=True)
    )
    members: dict[str, Any] = dict(available.items(keep_base=True))
    for key in keys:  # any number of neighbors
        if (local := re.fullmatch(r"cknna_(\d+)", key)) and int(local[1]) > 1:
            members[key] = known[key] = CKNNA(int(local[1]), state=members["cknna_10"].parts)
    owners = {key: name for name, metric in known.items() for key in metric.keys() or (name,)}
    unknown = [key for key in keys if key not in owners]
    if unknown:
        raise ConfigError(f"metrics: no {unknown[0]!r}; there are {', '.join(owners)}")
    names = dict.fromkeys(owners[key] for key in keys)
    chosen: dict[str, Any] = {name: metric for name, metric in members.items() if name in names}
    if not chosen:
        raise ConfigError(f"metrics: {', '.join(keys)} need labels on the probes")
    return MetricCollection(chosen, compute_groups=[list(chosen)])


def _fit_widths(
    metrics: MetricCollection, x: Tensor, y: Tensor, known: Mapping[str, Tensor]
) -> tuple[MetricCollection, list[str]]:
    """A copy with the metrics that can take these widths, and notes on those left out.

    Raises:
        DataError: When none can.
    """
    fitting, notes = metrics.clone(), []
    if x.shape[1] != y.shape[1]:
        few = {name: values[:MIN_SAMPLES] for name, values in known.items()}
        kept: dict[str, Any] = {}
        for name, metric in metrics.items(keep_base=True):
            if _takes(metric, x[:MIN_SAMPLES], y[:MIN_SAMPLES], few):
                kept[name] = metric.clone()
            else:
                notes.append(
                    f"{name} needs equal widths and is left out "
                    f"({x.shape[1]} against {y.shape[1]} features)"
                )
        if not kept:
            raise DataError(notes[0])
        fitting = MetricCollection(kept, prefix=metrics.prefix, postfix=metrics.postfix)
    for metric in fitting.values(copy_state=False):
        # Every rank holds all rows when it compares, so there is nothing to add up.
        metric.distributed_available_fn = _not_distributed
    return fitting, notes


def _takes(metric: Metric, x: Tensor, y: Tensor, known: Mapping[str, Tensor]) -> bool:
    # A collection gives a metric only the keywords that its `update` has.
    trial = MetricCollection([metric.clone().to(x.device)])
    trial.reset()
    try:
        trial.update(x, y, **known)
    except (ValueError, RuntimeError):
        return False
    return True


def _not_distributed() -> bool:
    return False


def _split_null(metrics: MetricCollection, values: dict[str, float], result: Result) -> None:
    """What a metric with `null=` of its own gives beside its values goes to `result`."""
    parts = [part for _, part in _members(metrics) if isinstance(part, PairMetric) and part.null]
    for key in [key for key in values if parts and f"{key}_null" in values]:
        found = values.pop(f"{key}_null"), values.pop(f"{key}_p")
        if not math.isnan(found[0]):
            result.null[key] = found


def _by_key(
    metrics: MetricCollection, values: Mapping[str, float], method: str, *arguments: Any
) -> dict[str, Any]:
    """What a method of the metrics gives under the keys of the values, where metrics have it."""
    found: dict[str, Any] = {}
    for name, metric in _members(metrics):
        if not callable(ask := getattr(metric, method, None)):
            continue
        known = {
            f"{metrics.prefix or ''}{k}{metrics.postfix or ''}": v
            for k, v in ask(*arguments).items()
            if method == "chance" or math.isfinite(v[0] if isinstance(v, tuple) else v)
        }
        whole = f"{metrics.prefix or ''}{name}{metrics.postfix or ''}"
        if len(known) == 1 and whole in values:  # one value has the metric's name for a key
            known = dict.fromkeys([whole], *known.values())
        found |= known
    return {key: level for key, level in found.items() if key in values}


def _members(metrics: MetricCollection) -> list[tuple[str, Metric]]:
    """What `items` gives, without its setting the shared state of every metric anew."""
    return [(name, part) for name, part in metrics.named_children() if isinstance(part, Metric)]


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise DataError(f"metric {name}: expected one number, got the shape {tuple(value.shape)}")
    return float(value)
