"""Metrics between two models' representations: which layers meet, values, floors, heatmaps."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from hrsa_lightning.comparison.loading import OUTPUT
from hrsa_lightning.comparison.options import METRICS, Measures
from hrsa_lightning.comparison.store import Representations
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.functional._numerics import DEFAULT_CHUNK_BYTES
from hrsa_lightning.functional.cka_heatmap import linear_cka_heatmaps
from hrsa_lightning.metrics import PairMetric, hrsa_metrics
from hrsa_lightning.similarity.comparer import MIN_SAMPLES, Comparer

__all__ = ["Heatmap", "LabelRows", "Meter", "Value", "heatmap", "pair_layers"]

CHUNK_BYTES = {"cpu": 32 * 2**20}
"""Working memory of the metrics where it is scarcer than time; elsewhere their default."""

EQUAL_WIDTHS = frozenset({"dimension_correlation", "probe_transfer"})
"""Metrics that compare feature by feature."""

HEATMAP_ROWS = 2048
"""Heatmaps take at most so many rows, evenly spaced: their time grows with the square."""


@dataclass(frozen=True)
class Value:
    """One number.

    Attributes:
        layer: Of the model.
        reference_layer: Of the reference.
        label: Of the texts that it was measured on; empty for all.
        metric: Such as `cka`.
        value: NaN where it is undefined.
        floor: Value of unrelated representations, where one is known.
    """

    layer: str
    reference_layer: str
    label: str
    metric: str
    value: float
    floor: float | None


@dataclass(frozen=True)
class Heatmap:
    """Linear CKA of every layer of a model (rows) with every layer of the reference (columns)."""

    rows: list[str]
    columns: list[str]
    debiased: list[list[float]]
    plain: list[list[float]]
    num_samples: int


@dataclass(frozen=True)
class LabelRows:
    """Labels of the rows as numbers.

    Attributes:
        names: Of the classes, sorted.
        numbers: (rows,), int64.
    """

    names: list[str]
    numbers: Tensor

    @classmethod
    def of(cls, labels: Sequence[str]) -> "LabelRows":
        """Number the labels of rows."""
        names = sorted(set(labels))
        place = {name: index for index, name in enumerate(names)}
        return cls(names, torch.tensor([place[label] for label in labels]))


def pair_layers(layers: Sequence[str], reference_layers: Sequence[str]) -> list[tuple[str, str]]:
    """Which layer of a model is compared with which of the reference.

    Models of one depth are compared layer by layer. Otherwise each layer of the shallower one meets
    the layer of the deeper one that is nearest in relative depth, counted from 1: layer i of s
    meets layer round(i l / s) of l, so that the last meets the last. Outputs meet outputs.

    Example:
        >>> pair_layers(["layer_0", "layer_1", "output"], ["a", "b", "c", "d", "e", "output"])
        [('layer_0', 'c'), ('layer_1', 'e'), ('output', 'output')]
    """
    left = [name for name in layers if not _is_output(name)]
    right = [name for name in reference_layers if not _is_output(name)]
    shorter, longer = sorted((len(left), len(right)))
    steps = range(1, shorter + 1)
    deep = [(2 * step * longer + shorter) // (2 * shorter) - 1 for step in steps]
    flat = [step - 1 for step in steps]
    rows, columns = (flat, deep) if len(left) <= len(right) else (deep, flat)
    pairs = [(left[i], right[j]) for i, j in zip(rows, columns, strict=True)]
    return pairs + [
        (name, name) for name in layers if _is_output(name) and name in reference_layers
    ]


def _is_output(name: str) -> bool:
    return name == OUTPUT or name.startswith(f"{OUTPUT}.")


class Meter:
    """Measures pairs of layers with the metrics that were asked for.

    Args:
        measures: Which ones.
        labels: Of the rows, `None` where there are none.
        device: Where metrics are computed.

    Raises:
        ConfigError: The probe is asked for by name, or labels, and there are none.
    """

    def __init__(self, measures: Measures, labels: LabelRows | None, device: torch.device) -> None:
        self._labels = labels if labels is not None and len(labels.names) > 1 else None
        probes = "probe_transfer" in measures.metrics and measures.metrics != METRICS
        if self._labels is None and (probes or measures.by_label):
            option = "--by-label" if measures.by_label else "--metrics probe_transfer"
            raise ConfigError(f"{option}: needs texts with two labels or more, at sentence level")
        # float64, which the metrics need, does not exist on MPS.
        self._device = torch.device("cpu") if device.type == "mps" else device
        num_classes = len(self._labels.names) if self._labels is not None else None
        chunk_bytes = CHUNK_BYTES.get(self._device.type, DEFAULT_CHUNK_BYTES)
        metrics = _collection(measures, num_classes, chunk_bytes)
        self.min_samples = _min_samples(metrics)
        self._by_label = measures.by_label
        self._comparer = Comparer(metrics)
        self._unlabeled: Comparer | None = None
        if measures.by_label and measures.metrics != ("probe_transfer",):
            self._unlabeled = Comparer(_collection(measures, None, chunk_bytes))

    def check_count(self, num_rows: int) -> None:
        """Refuse texts that are too few for the metrics.

        Raises:
            DataError: There are too few rows.
        """
        if num_rows < self.min_samples:
            raise DataError(
                f"--texts: the metrics need at least {self.min_samples} rows, got {num_rows}"
            )

    def measure(
        self, x: Representations, y: Representations, layer: str, reference_layer: str
    ) -> tuple[list[Value], list[str]]:
        """Values of one pair of layers over all rows and within labels, and what is to be noted.

        Raises:
            DataError: The numbers of rows differ, or the widths and no metric can take that.
        """
        left = x.rows(layer).to(self._device)
        right = y.rows(reference_layer).to(self._device)
        numbers = None if self._labels is None else self._labels.numbers.to(self._device)
        result = self._comparer.compare(left, right, numbers)
        notes = list(result.notes)
        values = _values(layer, reference_layer, "", result.values, result.chance)
        if self._by_label:
            within, more = self._measure_within(left, right, layer, reference_layer)
            values, notes = values + within, notes + more
        return values, notes

    def _measure_within(
        self, x: Tensor, y: Tensor, layer: str, reference_layer: str
    ) -> tuple[list[Value], list[str]]:
        values: list[Value] = []
        notes: list[str] = []
        if self._labels is None or self._unlabeled is None:
            return values, notes
        for number, label in enumerate(self._labels.names):
            rows = (self._labels.numbers == number).to(x.device)
            if int(rows.sum()) < self.min_samples:
                notes.append(f"label {label!r} has fewer rows than the metrics need")
                continue
            result = self._unlabeled.compare(x[rows], y[rows])
            notes += [f"label {label!r}: {note}" for note in result.notes]
            values += _values(layer, reference_layer, label, result.values, result.chance)
        return values, notes


def heatmap(x: Representations, y: Representations, device: torch.device) -> Heatmap:
    """All layers of one model against all of another, on at most `HEATMAP_ROWS` rows."""
    num_rows = x.num_rows[x.layers[0]]
    step = -(-num_rows // HEATMAP_ROWS)
    device = torch.device("cpu") if device.type == "mps" else device
    # Copies: views would keep all that was mapped to read them.
    left, right = (
        [model.rows(layer)[::step].to(device, copy=True) for layer in model.layers]
        for model in (x, y)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the values of the layers say which are undefined
        plain, debiased = linear_cka_heatmaps(left, right)
    return Heatmap(x.layers, y.layers, debiased.tolist(), plain.tolist(), len(left[0]))


def _collection(measures: Measures, num_classes: int | None, chunk_bytes: int) -> MetricCollection:
    everything = hrsa_metrics(
        num_classes=num_classes,
        protocol=measures.protocol,
        k=measures.k,
        chunk_bytes=chunk_bytes,
    )
    wanted = [
        name
        for name in map(str, everything.keys(keep_base=True))
        if name.removesuffix("_plain") in measures.metrics
    ]
    members = dict(everything.items(keep_base=True, copy_state=False))
    return MetricCollection({name: members[name] for name in wanted}, compute_groups=[wanted])


def _min_samples(metrics: MetricCollection) -> int:
    needs = [
        metric.min_samples
        for metric in metrics.values(copy_state=False)
        if isinstance(metric, PairMetric)
    ]
    return max(MIN_SAMPLES, *needs)


def _values(
    layer: str,
    reference_layer: str,
    label: str,
    values: Mapping[str, float],
    floors: Mapping[str, float],
) -> list[Value]:
    return [
        Value(layer, reference_layer, label, metric, value, floors.get(metric))
        for metric, value in values.items()
    ]
