"""The comparison: check, run the models, measure every pair."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torchmetrics import MetricCollection
from tqdm import tqdm

from hrsa_lightning.compare.models import OUTPUT, KnownModel, read_model
from hrsa_lightning.compare.options import ExtractionOptions, MetricOptions
from hrsa_lightning.compare.representations import ModelRunner, StoredRepresentations
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.functional._numerics import DEFAULT_CHUNK_BYTES
from hrsa_lightning.functional.cka_heatmap import linear_cka_heatmaps
from hrsa_lightning.io.sources import Texts
from hrsa_lightning.metrics import hrsa_metrics
from hrsa_lightning.metrics.heatmaps import layer_heatmaps
from hrsa_lightning.runs.resolve import Source
from hrsa_lightning.similarity.comparer import (
    Comparer,
    LabeledComparer,
    is_dominated,
    variance_shares,
)
from hrsa_lightning.similarity.measurement import (
    MEAN_OVER_LAYERS,
    Measurement,
    comparison_name,
    means_over_layers,
)
from hrsa_lightning.similarity.metric_info import EXTRAS, METRICS, option_of
from hrsa_lightning.similarity.probes import ProbeSet, text_probes

REPRESENTATIONS = "representations"

CHUNK_BYTES = {"cpu": 32 * 2**20}
"""Working memory of the metrics where it is scarcer than time; elsewhere their default."""

HEATMAP_ROWS = 2048
"""Heatmaps take at most so many rows, evenly spaced: their time grows with the square."""


@dataclass(frozen=True)
class Heatmap:
    """Every layer of a model (rows) with every layer of the reference (columns).

    Attributes:
        rows: Layers of the model.
        columns: Layers of the reference.
        debiased: Linear CKA, debiased.
        plain: Linear CKA, plain.
        dimension_correlation: Mean correlation of equal dimensions; `None` for unequal widths.
        standardized: Linear CKA, debiased, of features of unit variance; `None` where not asked
            for.
        num_samples: Rows of every layer.
    """

    rows: list[str]
    columns: list[str]
    debiased: list[list[float]]
    plain: list[list[float]]
    dimension_correlation: list[list[float]] | None
    standardized: list[list[float]] | None
    num_samples: int


@dataclass
class Comparison:
    """One model against another.

    Attributes:
        model: Name of the model whose rows are x in the metrics.
        reference: Name of the model whose rows are y.
        layers: Layer of the model to layer of the reference, in the order of depth.
        heatmap: Every layer with every layer.
        measurements: Layer by layer; within a layer all rows first, then labels.
        means: Over the pairs of layers before the output.
        notes: What a reader has to know, with the places where it holds.
        dominated: Share of the variance that one dimension carries, by layer where it is most of it
            on either side.
    """

    model: str
    reference: str
    layers: dict[str, str]
    heatmap: Heatmap
    measurements: list[Measurement] = field(default_factory=list)
    means: list[Measurement] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    dominated: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as `rlvr_vs_base`."""
        return comparison_name(self.model, self.reference)


@dataclass
class ComparisonResults:
    """What came out.

    Attributes:
        models: In the order given.
        texts: What they were compared on.
        num_rows: Rows of every representation: texts, or tokens.
        extraction: How the models were run.
        metrics: What was measured.
        comparisons: Every pair; the model given first is the reference.
        kept: Folder of the representations, `None` when they are gone.
    """

    models: list[KnownModel]
    texts: Texts
    num_rows: int
    extraction: ExtractionOptions
    metrics: MetricOptions
    comparisons: list[Comparison]
    kept: Path | None = None


def compare_models(
    sources: Mapping[str, Source],
    texts: Texts,
    out: Path,
    *,
    extraction: ExtractionOptions | None = None,
    metrics: MetricOptions | None = None,
    device: str = "auto",
    keep: bool = False,
    resume: bool = True,
) -> ComparisonResults:
    """Compare every pair of models, with one model in memory at a time.

    Each model runs once over the texts, and its rows go to disk as they come; metrics read them
    layer by layer. Beside one model, memory holds a batch of its activations and the rows of two
    layers, and for the heatmaps the rows of all layers of two models, at most 2,048 of each.

    Args:
        sources: At least two, from `name_models`.
        texts: From `hrsa_lightning.io.sources.TextEntry.read`.
        out: Folder for the representations.
        extraction: How models turn texts into rows.
        metrics: What is measured.
        device: See `find_device`.
        keep: Leave the representations there for a later call. When a call is interrupted, those
            of the models that were done stay in any case.
        resume: Use representations that an earlier call left of the same weights, texts and
            options.

    Raises:
        ConfigError: The device or the disk cannot serve, a model has no such layers, or no metric
            can take models of such widths.
        DataError: There are too few texts, or tokens differ at token level.
        BackboneError: A model cannot be loaded.
    """
    extraction, metrics = extraction or ExtractionOptions(), metrics or MetricOptions()
    place = find_device(device)
    probes = _ordered(texts, extraction.batch_size)
    # float64, which the metrics need, does not exist on MPS.
    measured_on = torch.device("cpu") if place.type == "mps" else place
    labels = probes.labels if extraction.level == "sentence" else None
    comparer, min_samples = _make_comparer(metrics, labels, measured_on)
    models = [read_model(name, source, extraction) for name, source in sources.items()]
    _check_widths(models, metrics)
    runner = ModelRunner(probes, extraction, out / REPRESENTATIONS, place, resume)
    num_rows = runner.num_rows(models)
    if num_rows < min_samples:
        raise DataError(f"--texts: the metrics need at least {min_samples} rows, got {num_rows}")
    runner.check_space(models, num_rows)
    with _made(out):
        found = [runner.extract(known) for known in models]
    comparisons = _measure(models, found, comparer, measured_on, metrics.standardize)
    if not keep:
        runner.remove()
    kept = out / REPRESENTATIONS if keep else None
    return ComparisonResults(models, texts, num_rows, extraction, metrics, comparisons, kept)


def find_device(name: str) -> torch.device:
    """The device of a name; `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: There is no such device.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps") from None
    if not available.get(device.type, False):
        raise ConfigError(f"--device {name}: there is no such device here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: there are {torch.cuda.device_count()} devices")
    return device


def pair_layers(layers: Sequence[str], reference_layers: Sequence[str]) -> dict[str, str]:
    """Which layer of a model is compared with which of the reference.

    Models of one depth are compared layer by layer. Otherwise each layer of the shallower one meets
    the layer of the deeper one that is nearest in relative depth, counted from 1: layer i of s
    meets layer round(i l / s) of l, so that the last meets the last. Outputs meet outputs.

    Example:
        >>> pair_layers(["layer_0", "layer_1", "output"], ["a", "b", "c", "d", "e", "output"])
        {'layer_0': 'c', 'layer_1': 'e', 'output': 'output'}
    """
    left = [name for name in layers if not _is_output(name)]
    right = [name for name in reference_layers if not _is_output(name)]
    shorter, longer = sorted((len(left), len(right)))
    steps = range(1, shorter + 1)
    deep = [(2 * step * longer + shorter) // (2 * shorter) - 1 for step in steps]
    flat = [step - 1 for step in steps]
    rows, columns = (flat, deep) if len(left) <= len(right) else (deep, flat)
    pairs = {left[i]: right[j] for i, j in zip(rows, columns, strict=True)}
    outputs = {name: name for name in layers if _is_output(name) and name in reference_layers}
    return pairs | outputs


def _is_output(name: str) -> bool:
    return name == OUTPUT or name.startswith(f"{OUTPUT}.")


def _ordered(texts: Texts, size: int) -> ProbeSet:
    labels: Sequence[str | None] = texts.labels or [None] * len(texts.texts)
    records = [
        {"text": text, "label": label} for text, label in zip(texts.texts, labels, strict=True)
    ]
    return text_probes(records, size=size)


def _make_comparer(
    options: MetricOptions, labels: Sequence[str] | None, device: torch.device
) -> tuple[LabeledComparer, int]:
    """Metrics over all rows and within labels, and how many rows they need.

    Raises:
        ConfigError: The probe is asked for by name, or labels, and there are none.
    """
    num_classes = len(set(labels or ()))
    if num_classes < 2:
        labels = None
    probes = "probe_transfer" in options.metrics and options.metrics != METRICS
    if labels is None and (probes or options.by_label):
        option = "--by-label" if options.by_label else "--metrics probe_transfer"
        raise ConfigError(f"{option}: needs texts with two labels or more, at sentence level")
    plain = labeled = None
    if options.metrics != ("probe_transfer",):
        plain = Comparer(_collection(options, None, device), num_permutations=options.null)
    if labels is not None:
        collection = _collection(options, num_classes, device)
        labeled = Comparer(collection, num_permutations=options.null)
    chief = labeled or plain
    assert chief is not None
    return LabeledComparer(plain, labels, labeled, by_label=options.by_label), chief.min_samples


def _collection(
    options: MetricOptions, num_classes: int | None, device: torch.device
) -> MetricCollection:
    everything = hrsa_metrics(
        num_classes=num_classes,
        protocol=options.protocol,
        k=options.k,
        extra=[name for name in EXTRAS if name in options.metrics],
        chunk_bytes=CHUNK_BYTES.get(device.type, DEFAULT_CHUNK_BYTES),
    )
    members = _members(everything)
    wanted = {name: part for name, part in members if _option(name, part) in options.metrics}
    return MetricCollection(wanted, compute_groups=[list(wanted)])


def _members(metrics: MetricCollection) -> list[tuple[str, Any]]:
    return list(metrics.items(keep_base=True, copy_state=False))


def _option(name: str, metric: Any) -> str:
    """What `--metrics` calls a member of the collection, whose name is its key where it has one."""
    return option_of((metric.keys() or [name])[0])


def _check_widths(models: Sequence[KnownModel], options: MetricOptions) -> None:
    known = _members(hrsa_metrics(num_classes=2, extra=EXTRAS))
    by_feature = {_option(name, metric) for name, metric in known if metric.equal_width}
    for first, second in combinations(models, 2):
        if first.width != second.width and by_feature.issuperset(options.metrics):
            raise ConfigError(
                f"--metrics {','.join(options.metrics)}: needs models of one width, got "
                f"{first.name} {first.width} and {second.name} {second.width}"
            )


@contextmanager
def _made(out: Path) -> Iterator[None]:
    """Make the folder, and remove it when a failure leaves it empty."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None
    try:
        yield
    finally:
        for folder in (out / REPRESENTATIONS, out):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _measure(
    models: Sequence[KnownModel],
    found: Sequence[StoredRepresentations],
    comparer: LabeledComparer,
    device: torch.device,
    standardize: bool,
) -> list[Comparison]:
    comparisons = {
        (i, j): Comparison(
            models[j].name,
            models[i].name,
            pair_layers(found[j].layers, found[i].layers),
            _heatmap(found[j], found[i], device, standardize),
        )
        for i, j in combinations(range(len(models)), 2)
    }
    # Comparisons with one layer of the reference follow each other: its neighbors are found once.
    depth = [{layer: place for place, layer in enumerate(one.layers)} for one in found]
    jobs = sorted(
        ((pair, *layers) for pair, each in comparisons.items() for layers in each.layers.items()),
        key=lambda job: (job[0][0], depth[job[0][0]][job[2]]),
    )
    for (i, j), layer, reference_layer in tqdm(jobs, "metrics", unit="layer", disable=None):
        comparison = comparisons[i, j]
        place = Measurement("", 0.0, None, "", comparison.model, comparison.reference, layer)
        x = found[j].rows(layer).to(device)
        y = found[i].rows(reference_layer).to(device)
        measurements, notes = comparer.compare(place, x, y, calibrate=True)
        comparison.measurements += measurements
        for rows in (x, y):
            share = variance_shares(rows)["variance_share_dimension"]
            if is_dominated(share, rows.shape[1]):
                comparison.dominated[layer] = max(share, comparison.dominated.get(layer, 0.0))
        for note, where in notes:
            label = f" within {where.label!r}" if where.label else ""
            comparison.notes.setdefault(note, []).append(f"{layer}{label}")
    for comparison in comparisons.values():
        comparison.means = means_over_layers(comparison.measurements)
        depths = [
            sum(not _is_output(layer) for layer in side)
            for side in (comparison.heatmap.rows, comparison.heatmap.columns)
        ]
        if comparison.means and depths[0] != depths[1]:
            note = f"{depths[0]} layers against {depths[1]}, paired by relative depth"
            comparison.notes[note] = [MEAN_OVER_LAYERS]
    return list(comparisons.values())


def _heatmap(
    x: StoredRepresentations, y: StoredRepresentations, device: torch.device, standardize: bool
) -> Heatmap:
    """All layers of one model against all of another, on at most `HEATMAP_ROWS` rows."""
    step = -(-len(x.rows(x.layers[0])) // HEATMAP_ROWS)
    # Copies: views would keep all that was mapped to read them.
    left, right = (
        [model.rows(layer)[::step].to(device, copy=True) for layer in model.layers]
        for model in (x, y)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the values of the layers say which are undefined
        plain, debiased = linear_cka_heatmaps(left, right)
        names = ["dimension_correlation", *(["cka_standardized"] if standardize else [])]
        others = {k: v.tolist() for k, v in layer_heatmaps(left, right, names).items()}
    return Heatmap(
        x.layers,
        y.layers,
        debiased.tolist(),
        plain.tolist(),
        others.get("dimension_correlation"),
        others.get("cka_standardized"),
        len(left[0]),
    )
