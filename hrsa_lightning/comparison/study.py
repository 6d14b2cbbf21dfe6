"""The whole of a comparison: check, look, measure."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import torch
from tqdm import tqdm

from hrsa_lightning.comparison.loading import KnownModel, know
from hrsa_lightning.comparison.looking import Viewer
from hrsa_lightning.comparison.options import Look, Measures
from hrsa_lightning.comparison.pairs import (
    EQUAL_WIDTHS,
    Heatmap,
    LabelRows,
    Meter,
    Value,
    heatmap,
    pair_layers,
)
from hrsa_lightning.comparison.store import Representations
from hrsa_lightning.comparison.texts import Texts
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.similarity.probes import ProbeSet, text_probes
from hrsa_lightning.sources import Source

__all__ = ["Comparison", "Study", "compare_models", "find_device", "quieten"]

REPRESENTATIONS = "representations"


@dataclass
class Comparison:
    """One model against another.

    Attributes:
        model: Name of the model whose rows are x in the metrics.
        reference: Name of the model whose rows are y.
        values: Layer by layer; within a layer all rows first, then labels.
        heatmap: Every layer with every layer.
        notes: What a reader has to know, with the layers where it holds.
    """

    model: str
    reference: str
    values: list[Value]
    heatmap: Heatmap
    notes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as `rlvr_vs_base`."""
        return f"{self.model}_vs_{self.reference}"


@dataclass
class Study:
    """What came out.

    Attributes:
        models: In the order given.
        texts: What they were compared on.
        num_rows: Rows of every representation: texts, or tokens.
        look: How the models were looked at.
        measures: What was measured.
        comparisons: Every pair; the model given first is the reference.
        kept: Folder of the representations, `None` when they are gone.
    """

    models: list[KnownModel]
    texts: Texts
    num_rows: int
    look: Look
    measures: Measures
    comparisons: list[Comparison]
    kept: Path | None = None


def compare_models(
    sources: Mapping[str, Source],
    texts: Texts,
    out: Path,
    *,
    look: Look | None = None,
    measures: Measures | None = None,
    device: str = "auto",
    keep: bool = False,
    resume: bool = True,
) -> Study:
    """Compare every pair of models, with one model in memory at a time.

    Each model runs once over the texts, and its rows go to disk as they come; metrics read them
    layer by layer. Beside one model, memory holds a batch of its activations and the rows of two
    layers, and for the heatmaps the rows of all layers of two models, at most 2,048 of each.

    Args:
        sources: At least two, from `name_models`.
        texts: From `load_texts`.
        out: Folder for the representations.
        look: How models turn texts into rows.
        measures: What is measured.
        device: See `find_device`.
        keep: Leave the representations there for a later call. When a call is interrupted, those
            of the models that were done stay in any case.
        resume: Use representations that an earlier call left of the same weights, texts and look.

    Raises:
        ConfigError: The device or the disk cannot serve, a model has no such layers, or no metric
            can take models of such widths.
        DataError: There are too few texts, or tokens differ at token level.
        BackboneError: A model cannot be loaded.
    """
    look, measures = look or Look(), measures or Measures()
    place = find_device(device)
    probes = _ordered(texts, look.batch_size)
    by_row = look.level == "sentence" and probes.labels is not None
    meter = Meter(measures, LabelRows.of(probes.labels or ()) if by_row else None, place)
    models = [know(name, source, look) for name, source in sources.items()]
    _check_widths(models, measures)
    viewer = Viewer(probes, look, out / REPRESENTATIONS, place, resume)
    num_rows = viewer.num_rows(models)
    meter.check_count(num_rows)
    viewer.check_space(models, num_rows)
    with _made(out):
        found = [viewer.look_at(known) for known in models]
    comparisons = _measure_all(models, found, meter, place)
    if not keep:
        viewer.remove()
    kept = out / REPRESENTATIONS if keep else None
    return Study(models, texts, num_rows, look, measures, comparisons, kept)


def quieten() -> None:
    """Leave the screen to our own progress bars."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]


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


def _ordered(texts: Texts, size: int) -> ProbeSet:
    labels: Sequence[str | None] = texts.labels or [None] * len(texts.texts)
    records = [
        {"text": text, "label": label} for text, label in zip(texts.texts, labels, strict=True)
    ]
    return text_probes(records, size=size)


def _check_widths(models: Sequence[KnownModel], measures: Measures) -> None:
    for first, second in combinations(models, 2):
        if first.width != second.width and EQUAL_WIDTHS.issuperset(measures.metrics):
            raise ConfigError(
                f"--metrics {','.join(measures.metrics)}: needs models of one width, got "
                f"{first.name} {first.width} and {second.name} {second.width}"
            )


@contextmanager
def _made(out: Path) -> Iterator[None]:
    """Make the folder, and take it away again when a failure leaves it empty."""
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


def _measure_all(
    models: Sequence[KnownModel],
    found: Sequence[Representations],
    meter: Meter,
    device: torch.device,
) -> list[Comparison]:
    pairs = list(combinations(range(len(models)), 2))
    comparisons = {
        (i, j): Comparison(models[j].name, models[i].name, [], heatmap(found[j], found[i], device))
        for i, j in pairs
    }
    jobs = [
        (i, j, layer, reference_layer)
        for i, j in pairs
        for layer, reference_layer in pair_layers(found[j].layers, found[i].layers)
    ]
    # Comparisons with one layer of the reference stand together: its neighbors are found once.
    depth = [{layer: place for place, layer in enumerate(one.layers)} for one in found]
    for i, j, layer, reference_layer in tqdm(
        sorted(jobs, key=lambda job: (job[0], depth[job[0]][job[3]])),
        "metrics",
        unit="layer",
        disable=None,
    ):
        values, notes = meter.measure(found[j], found[i], layer, reference_layer)
        comparison = comparisons[i, j]
        comparison.values += values
        for note in notes:
            comparison.notes.setdefault(note, []).append(layer)
    return list(comparisons.values())
